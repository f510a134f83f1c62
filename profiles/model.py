"""Model profiles: everything a stage must know of a model before it touches a tensor.

A profile is a YAML file that ships (`profiles/*.yaml`) or that a user writes; each stage reads it again by name or path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import geometry
from .errors import ProfileError
from .families import FAMILIES, FamilyParts, SamplingPart, TransformerPart, VaePart
from .infinity import Sampling
from .strict import build, read_yaml

FOLDER = Path(__file__).parent
TEXT_KINDS = ("words", "t5", "llm", "classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text encoder.

    Attributes:
        kind: `words` (word-level, ships with tiny), `t5`, `llm` (a language model), or `classes`: a prompt is the number of a
            class, or its name.
        source: Of `t5` and `llm` a folder or a hub id; of `classes` a file of names, one a line, or empty: numbers only.
        max_length: Tokens of the longest prompt.
    """

    kind: str
    source: str = ""
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.kind not in TEXT_KINDS:
            raise ProfileError(f"text encoder kind must be one of {TEXT_KINDS}, got {self.kind!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Where the official weights live: a hub repository and the file or folder names in it."""

    repo: str = ""
    transformer: str = ""
    vae: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """One model at one size: architecture, text encoder, sampling defaults, where its weights are."""

    name: str
    family: str
    transformer: TransformerPart
    vae: VaePart
    text: TextConfig
    sampling: SamplingPart = field(default_factory=Sampling)
    pixel_budget: str = "1M"
    aspect_ratio: float = 1.0
    weights: WeightSource = field(default_factory=WeightSource)

    def __post_init__(self) -> None:
        for name in ("transformer", "vae", "sampling"):
            part, expected = getattr(self, name), getattr(_parts(self.family), name)
            if not isinstance(part, expected):
                raise ProfileError(f"{name} of family {self.family!r} is a {expected.__name__}, got {type(part).__name__}")
        self.transformer.check_vae(self.vae)
        # an unknown geometry is told here and not where it is first used
        assert self.sizes

    @property
    def sizes(self) -> tuple[geometry.Size, ...]:
        """Token grids (h, w), coarse to fine."""
        return self.transformer.sizes(self.aspect_ratio, self.pixel_budget)

    @property
    def latent_size(self) -> geometry.Size:
        """(H, W) of the latent that the decoder sees."""
        (h, w), factor = self.sizes[-1], self.transformer.token_side
        return h * factor, w * factor

    @property
    def image_size(self) -> geometry.Size:
        """(height, width) of the image, in pixels."""
        return self.latent_size[0] * self.vae.stride, self.latent_size[1] * self.vae.stride

    def with_options(self, **changes: Any) -> ModelProfile:
        """A copy with other `aspect_ratio`, `pixel_budget` or sampling fields; `None` leaves a field as it is."""
        given = {key: value for key, value in changes.items() if value is not None}
        own = {key: given.pop(key) for key in ("aspect_ratio", "pixel_budget") if key in given}
        if own and self.transformer.one_geometry:
            raise ProfileError(
                "{} draws {} x {} pixels only; leave aspect ratio and pixel budget out".format(self.name, *self.image_size)
            )
        known = self.sampling.__dataclass_fields__
        if unknown := sorted(key for key in given if key not in known):
            raise ProfileError(f"{self.name} has no {', '.join(unknown)}; its sampling has {', '.join(known)}")
        return replace(self, sampling=replace(self.sampling, **given), **own)

    def digest(self) -> str:
        """SHA-256 of everything that changes the model's graph or its images."""
        return _sha256(asdict(self))

    def graph_digest(self) -> str:
        """The same of what changes the graphs: numbers that they take as inputs do not."""
        data = asdict(self)
        for name in self.sampling.controls:
            del data["sampling"][name]
        return _sha256(data)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> ModelProfile:
        """Build from a mapping; nested mappings are checked the same way."""
        family = _parts(str(data.get("family", "infinity")), f"{where}: ")
        parts = {
            "transformer": family.transformer,
            "vae": family.vae,
            "text": TextConfig,
            "sampling": family.sampling,
            "weights": WeightSource,
        }
        data = {"sampling": {}, **data}
        for key, part in parts.items():
            if key in data:
                data[key] = build(part, data[key], f"{where}: {key}", ProfileError)
        return build(cls, data, where, ProfileError)


def _sha256(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _parts(family: str, where: str = "") -> FamilyParts:
    if family not in FAMILIES:
        raise ProfileError(f"{where}family {family!r} is not known; this version has {', '.join(FAMILIES)}")
    return FAMILIES[family]


def shipped() -> tuple[str, ...]:
    """Names of the profiles that ship."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "infinity_scales"))


def load_profile(name_or_path: str) -> ModelProfile:
    """A shipped profile by name, or one from a YAML file."""
    path = Path(name_or_path)
    if name_or_path in shipped():
        path = FOLDER / f"{name_or_path}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise ProfileError(f"model {name_or_path!r} is not known; choose {', '.join(shipped())} or a profile .yaml file")
    return ModelProfile.from_dict(read_yaml(path, ProfileError), str(path.name))
