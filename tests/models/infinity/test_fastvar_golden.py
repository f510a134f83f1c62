"""FastVAR as released, reproduced: the same tokens kept in every branch, layer and row, every bit equal, tensors within 1e-4.

Every `fastvar_*.safetensors` in TOPROVAR_GOLDEN runs, with the configuration and fields of its JSON.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from golden_files import Golden, golden_files
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.step import ScaleStep
from toprovar.models.infinity.transformer import Infinity
from toprovar.models.infinity.vae import Decoder, to_uint8
from toprovar.profiles.baselines import baseline
from toprovar.profiles.plan import BRANCHES
from torch import Tensor

TOLERANCE = 1e-4
OFFICIAL_BRANCHES = dict(zip(("sa", "ca", "ffn"), BRANCHES, strict=True))


@pytest.fixture(scope="module", params=golden_files("fastvar"))
def data(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


class Run:
    """One image of the official policy, with all that is recorded of it, by width of the scale."""

    def __init__(self, data: Golden) -> None:
        self.data, profile = data, data.profile(data.meta["call"])
        schedule = baseline("fastvar-official", profile)
        model = Infinity(profile.transformer)
        model.load_state_dict(data.weights(), strict=True)
        self.steps = build_steps(model.eval(), profile, schedule, observe=True)
        self.outputs: dict[int, dict[str, Tensor]] = {}
        self.streams: dict[int, dict[int, Tensor]] = defaultdict(dict)
        self.attended: dict[int, dict[int, Tensor]] = defaultdict(dict)
        for step in self.steps:
            self._listen(step)
        executed = torch.tensor([size[-2:] for size in data.meta["executed_scales"]]).prod(dim=1).tolist()
        text, lengths = data.text(data.tensors["in.text"], data.meta["lens"])
        recorded = data.tensors["noise.u"].split(executed, dim=1)
        total = sum(rule.count for rule in schedule.scales)
        noise = torch.zeros(recorded[0].shape[0], total, recorded[0].shape[2])
        for step, part in zip(self.steps, recorded, strict=True):
            noise[:, step.plan.offset : step.plan.offset + step.plan.count] = part
        self.summed = generate(
            self.steps, text, lengths, noise, on_scale=lambda plan, out: self.outputs.update({plan.size[1]: dict(out)})
        )

    def _listen(self, step: ScaleStep) -> None:
        """Keep the stream behind every layer, and what self-attention gives before its gate."""
        width = step.plan.size[1]
        for name in ("_layer", "_layer_by_branch"):
            run = getattr(step, name)

            def kept(layer: int, block: Any, *args: Any, run: Any = run) -> Tensor:
                hook = block.sa.register_forward_hook(lambda *call: self.attended[width].update({layer: call[2][0]}))
                self.streams[width][layer] = run(layer, block, *args)
                hook.remove()
                return self.streams[width][layer]

            setattr(step, name, kept)

    def observed(self, name: str) -> Tensor:
        """Of all scales, concatenated over tokens."""
        return torch.cat([out[f"observed.{name}"] for out in self.outputs.values()], dim=-1 if "entropy" in name else 1)


@pytest.fixture(scope="module")
def run(data: Golden) -> Run:
    return Run(data)


def _close(ours: Tensor, stored: Tensor) -> None:
    torch.testing.assert_close(ours.double(), stored.double(), rtol=0, atol=TOLERANCE)


def _kept(run: Run, width: int, layer: int, branch: str) -> Tensor:
    return run.outputs[width][f"observed.kept_{OFFICIAL_BRANCHES[branch]}.{layer}"]


def _stored_kept(data: Golden, width: int) -> dict[tuple[int, str], Tensor]:
    """Indices `[rows, n]` by layer and branch, best first."""
    layers = data.tensors["kept.layers"].tolist()
    stored = data.tensors[f"kept.scale{width}"].long()
    return {(layer, branch): stored[i, j] for i, layer in enumerate(layers) for j, branch in enumerate(OFFICIAL_BRANCHES)}


def _widths(data: Golden) -> list[int]:
    return [int(width) for width in data.meta["rule"]["prune_widths"]]


def test_scales_and_counts(data: Golden, run: Run) -> None:
    assert [list(step.plan.size) for step in run.steps] == [size[-2:] for size in data.meta["executed_scales"]]
    for width, count in data.meta["rule"]["kept"].items():
        plan = next(step.plan for step in run.steps if step.plan.size[1] == int(width))
        assert {plan.kept[layer] for layer in data.tensors["kept.layers"].tolist()} == {count}
        assert list(plan.branch_layers) == data.tensors["kept.layers"].tolist()


def test_the_same_tokens_are_kept(data: Golden, run: Run) -> None:
    """As sets: the official code keeps them in order of score, this one in order of place."""
    for width in _widths(data):
        for (layer, branch), stored in _stored_kept(data, width).items():
            ours = _kept(run, width, layer, branch)
            assert torch.equal(ours, stored.sort(dim=-1).values), (width, layer, branch)


def test_every_bit(data: Golden, run: Run) -> None:
    assert int((run.observed("bits") != data.tensors["bits"]).sum()) == 0
    _close(run.observed("logits"), data.tensors["logits_post_cfg"])
    _close(run.observed("probability"), data.tensors["noise.p_bit1"])


def test_cached_branch_outputs(data: Golden, run: Run) -> None:
    source = {step.plan.tokens.cache_scale for step in run.steps if step.plan.tokens is not None}
    width = run.steps[source.pop()].plan.size[1]
    for name in (name for name in data.tensors if name.startswith("cache.layer")):
        layer, branch = name.removeprefix("cache.layer").split(".")
        ours = run.outputs[width][f"delta_{OFFICIAL_BRANCHES[branch]}.{layer}"]
        _close(ours.flatten(2).transpose(1, 2), data.tensors[name])


def test_block_outputs(data: Golden, run: Run) -> None:
    found = 0
    for name, stored in data.tensors.items():
        if not name.startswith("scale"):
            continue
        scale, block, *rest = name.split(".")
        width, layer = int(scale.removeprefix("scale")), int(block.removeprefix("block"))
        if rest == ["out"]:
            _close(run.streams[width][layer], stored)
        else:
            assert rest == ["sa", "out_kept"], name
            order = _stored_kept(data, width)[layer, "sa"].argsort(dim=-1)
            _close(run.attended[width][layer], stored.gather(1, order[..., None].expand_as(stored)))
        found += 1
    assert found


def test_entropies_and_keys(data: Golden, run: Run) -> None:
    for name, stored in data.tensors.items():
        if name.startswith("nkeys.layer"):
            layer = int(name.removeprefix("nkeys.layer"))
            ours = [[step.plan.kept[layer], step.plan.past[layer] + step.plan.kept[layer]] for step in run.steps]
            assert ours == stored.tolist(), name
        if name.startswith("entropy.layer"):
            layer = int(name.removeprefix("entropy.layer"))
            parts = list(stored.split([step.plan.kept[layer] for step in run.steps], dim=-1))
            for i, step in enumerate(run.steps):
                if layer in step.plan.branch_layers:
                    order = _stored_kept(data, step.plan.size[1])[layer, "sa"].argsort(dim=-1)
                    parts[i] = parts[i].gather(2, order[:, None].expand_as(parts[i]))
            _close(run.observed(f"entropy.{layer}"), torch.cat(parts, dim=-1))


def test_sum_and_image(data: Golden, run: Run) -> None:
    """The codes go to the size of the full schedule, also where its last scale is not run."""
    last = [out["summed"] for out in run.outputs.values()][-len(data.tensors["summed_codes"]) :]
    _close(torch.stack(last), data.tensors["summed_codes"])
    decoder = Decoder(data.profile(data.meta["call"]).vae).eval()
    weights = data.vae_weights()
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith("decoder.")})
    with torch.inference_mode():
        ours = to_uint8(decoder(run.summed).clamp(-1, 1)).flip(-1).int()
    difference = (ours - data.tensors["image_uint8_bgr"].int()).abs()
    # the cut to whole numbers turns rounding noise into a step of one, rarely
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 2e-3
