"""Model profiles: those that ship, options, and refusals that name file, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_model import small_profile
from toprovar.profiles.errors import ProfileError
from toprovar.profiles.geometry import scale_sizes
from toprovar.profiles.infinity import Sampling
from toprovar.profiles.model import ModelProfile, load_profile, shipped


def test_shipped_profiles() -> None:
    images = {name: load_profile(name).image_size for name in shipped()}
    assert images == {
        "infinity-125m": (256, 256),
        "infinity-1b": (256, 256),
        "infinity-2b": (1024, 1024),
        "infinity-8b": (1024, 1024),
        "infinity-8b-512": (512, 512),
        "tiny": (256, 256),
        **{f"var-d{depth}": (256, 256) for depth in (16, 20, 24, 30)},
        "var-d36": (512, 512),
        "hart-0.7b": (1024, 1024),
    }
    assert load_profile("infinity-8b").transformer.token_bits == 56


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    profile = small_profile()
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"format": 1, **profile.to_dict()}))
    assert load_profile(str(tmp_path / "p.yaml")) == profile
    assert ModelProfile.from_dict(profile.to_dict(), "x").digest() == profile.digest()


def test_options_replace_only_what_is_given() -> None:
    tiny = load_profile("tiny")
    assert tiny.with_options(cfg=None, tau=None, aspect_ratio=None, pixel_budget=None) == tiny
    wide = tiny.with_options(aspect_ratio=0.5, pixel_budget="0.06M", cfg=1.0)
    assert wide.sizes == scale_sizes(0.5, "0.06M")
    assert not wide.sampling.guided
    assert tiny.sampling.guided


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "diffusion"}, "family 'diffusion' is not known"),
        ({"transformer": {"depth": 2}}, "missing keys"),
        ({"pixel_budget": "2M"}, "pixel budget '2M' is not known"),
        ({"sampling": {"cfg": 2.0, "temperature": 1}}, r"sampling: unknown keys \['temperature'\]"),
        ({"sampling": {"tau": 0}}, "tau must be > 0"),
        ({"text": {"kind": "bert"}}, "text encoder kind"),
        ({"aspect_ratio": -1}, "aspect ratio must be"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        ModelProfile.from_dict({**small_profile().to_dict(), **change}, "p.yaml")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="infinity-2b"):
        load_profile("infinity-3b")


def test_one_value_a_scale() -> None:
    sampling = Sampling(cfg=(3.0, 2.0, 1.0), tau=0.5)
    assert sampling.per_scale("cfg", 2) == (3.0, 2.0)
    assert sampling.per_scale("tau", 2) == (0.5, 0.5)
    with pytest.raises(ProfileError, match="cfg lists 3 values for 4 scales"):
        sampling.per_scale("cfg", 4)
