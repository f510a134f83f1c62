"""The official VAR, reproduced: every sampled index equal, every stored tensor within 1e-4.

`var_tiny` holds three calls: AdaLN a block, the same with softly mixed codes (`more_smooth`), and shared AdaLN.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from golden_files import Golden, golden_folder
from toprovar.models.generate import generate
from toprovar.models.var.step import VarStep
from toprovar.models.var.transformer import Var
from toprovar.models.vq.quantizer import Quantizer
from toprovar.profiles.baselines import dense
from toprovar.profiles.model import ModelProfile, TextConfig
from toprovar.profiles.plan import plan_scales
from toprovar.profiles.var import VarConfig, VarSampling
from toprovar.profiles.vq import VqConfig
from torch import Tensor

TOLERANCE = 1e-4
# temperatures down to 0.005 magnify the rounding of logits
SOFT_TOLERANCE = 6e-4
PATH = golden_folder() / "var_tiny.safetensors"
WEIGHTS = {"main": "w.", "smooth": "w.", "saln": "saln_w."}


@pytest.fixture(scope="module")
def data() -> Golden:
    if not PATH.exists():
        pytest.skip(f"no {PATH.name} in {PATH.parent}; set TOPROVAR_GOLDEN to the folder of the golden vectors")
    return Golden.read(PATH)


def _profile(data: Golden, call: str) -> ModelProfile:
    made, vae = data.meta["constructor"], data.meta["constructor"]["vqvae"]
    kwargs, given = {**made["main"], **made.get(call, {})}, data.meta["calls"][call]
    vq = VqConfig(vocabulary=vae["vocab_size"], latent_channels=vae["z_channels"], base_channels=vae["ch"])
    config = VarConfig(
        depth=kwargs["depth"],
        width=kwargs["embed_dim"],
        heads=kwargs["num_heads"],
        classes=kwargs["num_classes"],
        patch_nums=tuple(kwargs["patch_nums"]),
        shared_modulation=kwargs["shared_aln"],
        mlp_ratio=kwargs["mlp_ratio"],
        vocabulary=vq.vocabulary,
        latent_channels=vq.latent_channels,
    )
    sampling = VarSampling(**{name: given[name] for name in ("cfg", "top_k", "top_p", "more_smooth")})
    text = TextConfig(kind="classes", max_length=1)
    return ModelProfile(name="golden", family="var", transformer=config, vae=vq, text=text, sampling=sampling)


class Recorder:
    """Collects what the official run recorded, under the official names, scale after scale."""

    def __init__(self, model: Var) -> None:
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        blocks = list(model.layers())
        first, last = blocks[0], len(blocks) - 1
        project = first.attn.project
        first.attn.project = lambda x, rope: self._project(project, x, rope)  # type: ignore[method-assign]
        first.register_forward_pre_hook(lambda _, args: self.add("block0.in", args[0]))
        first.attn.register_forward_hook(lambda *args: self.add("block0.attn.out", args[2][0]))
        first.ffn.register_forward_hook(lambda *args: self.add("block0.ffn.out", args[2]))
        blocks[last].register_forward_hook(lambda *args: self.add(f"block{last}.out", args[2][0]))

    def add(self, name: str, value: Tensor) -> None:
        self.parts[name].append(value)

    def _project(self, project: Any, x: Tensor, rope: Any) -> Any:
        q, k, v = project(x, rope)
        self.add("block0.q", q[:1].transpose(1, 2))
        self.add("block0.k", k[:1].transpose(1, 2))
        return q, k, v

    def on_scale(self, plan: Any, out: dict[str, Tensor]) -> None:
        names = {"logits_before_guidance": "logits_pre_cfg", "logits": "logits_post_cfg", "index": "idx", "codes": "smooth_h"}
        for key, value in out.items():
            if key.startswith("observed.entropy."):
                self.add(f"entropy.layer{key.rsplit('.', 1)[1]}", value.transpose(1, 2))
            elif key.startswith("observed.") and key.split(".")[1] in names:
                self.add(names[key.split(".")[1]], value)
        self.add("f_hat", out["summed"][None])

    def result(self, name: str) -> Tensor:
        joined = torch.cat(self.parts[name], dim=0 if name == "f_hat" else 1)
        return joined.transpose(1, 2) if name.startswith(("entropy", "block0.q", "block0.k")) else joined


def _run(data: Golden, call: str) -> Recorder:
    profile, tensors = _profile(data, call), data.tensors
    prefix = WEIGHTS[call]
    weights = {key[len(prefix) :]: value.float() for key, value in tensors.items() if key.startswith(prefix)}
    model = Var(profile.transformer).eval()
    model.load_state_dict(weights, strict=True)
    quantizer = Quantizer(profile.vae).eval()
    name = "quantize."
    quantizer.load_state_dict({k[len(name) :]: v for k, v in data.vae_weights().items() if k.startswith(name)}, strict=True)
    counts = [h * w for h, w in profile.sizes]
    noise = [{"noise": part.float()} for part in tensors[f"{call}.gumbel"].split(counts, dim=1)]
    if profile.sampling.more_smooth:
        for entry, part in zip(noise, tensors[f"{call}.smooth_gumbel"].split(counts, dim=1), strict=True):
            entry["smooth_noise"] = part.float()
    text = model.class_emb.weight[[data.meta["calls"][call]["label"]]].unsqueeze(1)
    recorder = Recorder(model)
    steps = [VarStep(model, quantizer, profile, plan, observe=True).eval() for plan in plan_scales(dense(profile))]
    generate(model, steps, text, torch.ones(1, dtype=torch.int64), noise, on_scale=recorder.on_scale)
    return recorder


@pytest.mark.parametrize("call", WEIGHTS)
def test_every_index_and_tensor(data: Golden, call: str, subtests: pytest.Subtests) -> None:
    recorder, compared = _run(data, call), []
    given = {"gumbel", "smooth_gumbel", "image"}
    for key, stored in data.tensors.items():
        if not key.startswith(f"{call}.") or (name := key.removeprefix(f"{call}.")) in given:
            continue
        compared.append(name)
        with subtests.test(field=name):
            ours = recorder.result(name)
            if name == "idx":
                assert torch.equal(ours, stored.long())
                continue
            if name.startswith("logits"):
                # the first scales only
                ours = ours[:, : stored.shape[1]]
            soft = call == "smooth" and name in ("smooth_h", "f_hat")
            atol = SOFT_TOLERANCE if soft else TOLERANCE
            torch.testing.assert_close(ours.double(), stored.double(), rtol=0, atol=atol)
    assert {"idx", "f_hat"} <= set(compared)
