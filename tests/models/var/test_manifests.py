"""VAR's state dicts against the official ones, key by key: names, shapes, number of parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_files import golden_folder
from toprovar.models.checkpoint import OFFICIAL_EXTRAS
from toprovar.models.var.transformer import Var
from toprovar.profiles.model import load_profile
from toprovar.profiles.var import VarConfig

FILES = sorted((golden_folder().parent / "manifests").glob("var_d*.json"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem) for p in FILES]
    or [pytest.param(None, marks=pytest.mark.skip(reason="no manifests of VAR checkpoints"))],
)
def test_transformer(path: Any) -> None:
    manifest = json.loads(path.read_text())
    built, kwargs = manifest["build_kwargs"], manifest["var_kwargs"]
    config = VarConfig(
        depth=built["depth"],
        patch_nums=tuple(built["patch_nums"]),
        classes=built["num_classes"],
        vocabulary=built["V"],
        latent_channels=built["Cvae"],
        shared_modulation=kwargs["shared_aln"],
        mlp_ratio=kwargs["mlp_ratio"],
    )
    assert (config.width, config.heads, config.head_width) == (kwargs["embed_dim"], kwargs["num_heads"], kwargs["head_dim"])
    assert load_profile(path.stem.replace("_", "-")).transformer == config
    with torch.device("meta"):
        model = Var(config)
    ours = {key: [*value.shape] for key, value in model.state_dict().items()}
    theirs = {key: shape for key, (shape, _) in manifest["tensors"].items()}
    assert {key for key in theirs if key not in ours} == {"lvl_1L", "attn_bias_for_masking"} <= OFFICIAL_EXTRAS
    assert ours == {key: theirs[key] for key in ours}
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]
