"""Read golden files of the official Infinity: configuration, weights, recorded noise and tensors."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toprovar.profiles.infinity import Sampling, TransformerConfig, VaeConfig
from toprovar.profiles.model import ModelProfile, TextConfig
from torch import Tensor


def golden_folder() -> Path:
    """The folder in TOPROVAR_GOLDEN, by default ../shared/golden beside the repository."""
    return Path(os.environ.get("TOPROVAR_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def golden_files(kind: str) -> list[Any]:
    """Every golden file of a kind as a test parameter; without any, one that is skipped and says why."""
    folder = golden_folder()
    found = [p for p in sorted(folder.glob(f"{kind}_*.safetensors")) if not p.stem.endswith("_weights")]
    if found:
        return [pytest.param(path, id=f"golden-{path.stem}") for path in found]
    reason = f"no {kind}_*.safetensors in {folder}; set TOPROVAR_GOLDEN to the folder of the golden vectors"
    return [pytest.param(None, id=f"golden-{kind}-none", marks=pytest.mark.skip(reason=reason))]


@dataclass(frozen=True)
class Case:
    """One call of the official model: `main`, or a variant of it."""

    name: str
    call: dict[str, Any]
    lengths: list[int]
    negative: tuple[Tensor, list[int]] | None = None
    fields: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Golden:
    """One golden file."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Golden:
        meta = json.loads(path.with_suffix(".json").read_text())
        tensors = load_file(path)
        weights = path.with_name(f"{path.stem}_weights.safetensors")
        if weights.exists():
            tensors |= load_file(weights)
        return cls(meta, tensors)

    def profile(self, call: dict[str, Any]) -> ModelProfile:
        """The profile of one call; the geometry is found by its scale schedule."""
        kwargs, vae = self.meta["constructor_kwargs"], self.meta["vae_kwargs"]
        cfg, tau = (tuple(v) if isinstance(v, list) else v for v in (call["cfg"], call["tau"]))
        insertion = call.get("cfg_insertion_layer", [0])
        transformer = TransformerConfig(
            depth=kwargs["depth"],
            width=kwargs["embed_dim"],
            heads=kwargs["num_heads"],
            block_chunks=kwargs["block_chunks"],
            text_channels=kwargs["text_channels"],
            text_maxlen=kwargs["text_maxlen"],
            bits=vae["codebook_dim"],
            patchify=bool(kwargs["apply_spatial_patchify"]),
            mlp_ratio=kwargs["mlp_ratio"],
            level_embed_every_chunk=not kwargs["add_lvl_embeding_only_first_block"],
        )
        sizes = [tuple(size[-2:]) for size in self.meta["scale_schedule"]]
        ratio = kwargs.get("train_h_div_w_list", [1.0])[0]
        ratio = call.get("h_div_w", ratio if sizes[-1][0] == sizes[-1][1] else sizes[-1][0] / sizes[-1][1])
        profile = ModelProfile(
            name=self.meta["name"],
            family="infinity",
            transformer=transformer,
            vae=VaeConfig(bits=vae["codebook_dim"], base_channels=vae["base_ch"], channel_mult=tuple(vae["ch_mult"])),
            text=TextConfig(kind="t5"),
            sampling=Sampling(
                cfg=cfg,
                tau=tau,
                top_k=call.get("top_k", 900),
                top_p=call.get("top_p", 0.97),
                cfg_insertion_layer=tuple(insertion if isinstance(insertion, list) else [insertion]),
            ),
            pixel_budget=kwargs["pn"],
            aspect_ratio=ratio,
        )
        assert list(profile.sizes) == sizes, f"{profile.sizes} is not the recorded schedule {sizes}"
        return profile

    def weights(self) -> dict[str, Tensor]:
        """The transformer's state dict under its official keys, fp32."""
        return {key[2:]: value.float() for key, value in self.tensors.items() if key.startswith("w.")}

    def vae_weights(self) -> dict[str, Tensor]:
        """The VAE's state dict: int8 mantissa times 2 ** exponent."""
        return {
            key[4:]: value.float() * torch.exp2(self.tensors[f"vae_exp.{key[4:]}"].float())
            for key, value in self.tensors.items()
            if key.startswith("vae.") and f"vae_exp.{key[4:]}" in self.tensors
        }

    def text(self, packed: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Packed `[sum(lengths), Ct]` -> zero-padded `[B, T, Ct]` and lengths `[B]`."""
        padded = torch.nn.utils.rnn.pad_sequence(list(packed.float().split(lengths)), batch_first=True)
        return padded, torch.tensor(lengths)

    def cases(self) -> list[Case]:
        """The main call and every variant the JSON names."""
        variants = self.meta.get("variants") or {}
        if isinstance(variants, list):
            variants = {entry.get("name", str(i)): entry for i, entry in enumerate(variants)}
        names = sorted({key.split(".")[1] for key in self.tensors if key.startswith("variant.")} | set(variants))
        main = {key: value for key, value in self.tensors.items() if not key.startswith("variant.")}
        cases = [Case("main", self.meta["call"], self.meta["lens"], None, main)]
        for name in names:
            prefix = f"variant.{name}."
            fields = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
            described = variants.get(name, {})
            call = {**self.meta["call"], **_overrides(name, described)}
            cases.append(Case(name, call, self.meta["lens"], self._negative(name, described, fields), fields))
        return cases

    def _negative(self, name: str, described: Any, fields: dict[str, Tensor]) -> tuple[Tensor, list[int]] | None:
        """Features and lengths of a negative prompt, wherever the file keeps them; None where the variant has none."""
        if "neg" not in f"{name} {json.dumps(described)}":
            return None
        width = self.meta["constructor_kwargs"]["text_channels"]
        pool = {**{k: v for k, v in self.tensors.items() if "neg" in k}, **fields}
        packed = next(v for k, v in pool.items() if v.ndim == 2 and v.shape[-1] == width and "normed" not in k)
        lengths = _lengths(self.meta, "") + _lengths(described, "neg")
        if lengths:
            return packed, lengths[-1]
        cumulative = next((v for k, v in pool.items() if "cu_seqlens" in k), None)
        if cumulative is not None:
            return packed, cumulative.diff().tolist()
        count = self.meta["B"]
        assert packed.shape[0] % count == 0, "the lengths of the negative prompts are not recorded"
        return packed, [packed.shape[0] // count] * count


def _lengths(described: Any, path: str) -> list[list[int]]:
    """Lists of lengths that stand under names with `neg` and `len` in them, at any depth."""
    if isinstance(described, dict):
        return [found for key, value in described.items() for found in _lengths(value, f"{path}.{key}".lower())]
    numbers = isinstance(described, list) and bool(described) and all(isinstance(n, int) for n in described)
    return [described] if numbers and "neg" in path and "len" in path else []


def _overrides(name: str, described: Any) -> dict[str, Any]:
    """What a variant changes of the call: its description where there is one, else its name."""
    if isinstance(described, dict):
        nested = described.get("call", described)
        known = {k: v for k, v in nested.items() if k in ("cfg", "tau", "top_k", "top_p", "cfg_insertion_layer")}
        if known or nested:
            return known
    if "cfg1" in name.replace("_", "").replace("=", ""):
        return {"cfg": 1.0}
    return {"cfg_insertion_layer": [-2]} if "ins" in name else {}
