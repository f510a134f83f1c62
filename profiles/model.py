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
from .strict import build, read_yaml

FOLDER = Path(__file__).parent
BSQ_LEVELS_MAX = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of an Infinity transformer.

    Attributes:
        depth: Number of blocks L.
        width: Channels C.
        heads: Attention heads H; the head width is C / H.
        block_chunks: Groups the checkpoint stores the blocks in; divides `depth`.
        text_channels: Width of the text features.
        text_maxlen: Rows of the learned unconditional text.
        bits: Bits of one latent position d; with `patchify` a token carries 4 d.
        patchify: A token is 2 x 2 latent positions (Infinity-8B).
        mlp_ratio: Hidden width of the MLP over C.
        level_embed_every_chunk: Add the level embedding before every chunk, not only before block 0.
    """

    depth: int
    width: int
    heads: int
    block_chunks: int = 1
    text_channels: int
    text_maxlen: int = 512
    bits: int = 32
    patchify: bool = False
    mlp_ratio: float = 4.0
    level_embed_every_chunk: bool = False

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "block_chunks", "text_channels", "text_maxlen", "bits"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ProfileError(f"width {self.width} must be heads {self.heads} x a head width divisible by 4")
        if self.depth % self.block_chunks:
            raise ProfileError(f"depth {self.depth} must be divisible by block_chunks {self.block_chunks}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def token_bits(self) -> int:
        """Bits of one token: d, or 4 d where a token is 2 x 2 latent positions."""
        return self.bits * (4 if self.patchify else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Shape of a BSQ-VAE: `stride` is 2 ** (len(channel_mult) - 1)."""

    bits: int = 32
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    res_blocks: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        if not self.channel_mult or any(not isinstance(m, int) or m < 1 for m in self.channel_mult):
            raise ProfileError(f"channel_mult must be whole numbers >= 1, got {self.channel_mult!r}")

    @property
    def stride(self) -> int:
        """Image pixels a latent position."""
        return int(2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text encoder: `words` (word-level, ships with tiny) or `t5` (`source` is a folder or a hub id)."""

    kind: str
    source: str = ""
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.kind not in ("words", "t5"):
            raise ProfileError(f"text encoder kind must be 'words' or 't5', got {self.kind!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        cfg: Guidance strength, one for all scales or one a scale; 1 everywhere means no unconditional rows.
        tau: Temperature of the bit logits, one for all scales or one a scale.
        top_k: Kept for the official interface; a bit has two values, so only 1 changes anything.
        top_p: The less likely value of a bit is dropped when its probability is at most 1 - top_p.
        cfg_insertion_layer: Where guidance mixes the rows: 0 = logits, -k = hidden states after block depth - k.
    """

    cfg: float | tuple[float, ...] = 4.0
    tau: float | tuple[float, ...] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_insertion_layer: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("cfg", "tau"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(float(v) for v in value))
        object.__setattr__(self, "cfg_insertion_layer", tuple(self.cfg_insertion_layer))
        if any(t <= 0 for t in self.per_scale("tau", 1)):
            raise ProfileError(f"tau must be > 0, got {self.tau!r}")
        if not 0 < self.top_p <= 1:
            raise ProfileError(f"top_p must be in (0, 1], got {self.top_p!r}")
        if any(entry > 0 for entry in self.cfg_insertion_layer):
            raise ProfileError(f"cfg_insertion_layer takes 0 and negative entries, got {self.cfg_insertion_layer}")

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """`cfg` or `tau` as one number a scale; a list shorter than `scales` is an error."""
        value = getattr(self, name)
        if isinstance(value, (int, float)):
            return (float(value),) * scales
        if len(value) < scales:
            raise ProfileError(f"{name} lists {len(value)} values for {scales} scales")
        return tuple(value[:scales])

    @property
    def guided(self) -> bool:
        """Whether unconditional rows exist at all."""
        return any(c != 1 for c in (self.cfg if isinstance(self.cfg, tuple) else (self.cfg,)))


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
    transformer: TransformerConfig
    vae: VaeConfig
    text: TextConfig
    sampling: Sampling = field(default_factory=Sampling)
    pixel_budget: str = "1M"
    aspect_ratio: float = 1.0
    weights: WeightSource = field(default_factory=WeightSource)

    def __post_init__(self) -> None:
        if self.family != "infinity":
            raise ProfileError(f"family {self.family!r} is not known; this version has 'infinity'")
        if self.vae.bits != self.transformer.bits:
            raise ProfileError(f"the VAE has {self.vae.bits} bits, the transformer {self.transformer.bits}")
        if len(self.sizes) > BSQ_LEVELS_MAX:
            raise ProfileError(f"{len(self.sizes)} scales; the level embedding has {BSQ_LEVELS_MAX} rows")

    @property
    def sizes(self) -> tuple[geometry.Size, ...]:
        """Token grids (h, w), coarse to fine."""
        return geometry.scale_sizes(self.aspect_ratio, self.pixel_budget)

    @property
    def latent_size(self) -> geometry.Size:
        """(H, W) of the latent that the decoder sees."""
        (h, w), factor = self.sizes[-1], 2 if self.transformer.patchify else 1
        return h * factor, w * factor

    @property
    def image_size(self) -> geometry.Size:
        """(height, width) of the image, in pixels."""
        return self.latent_size[0] * self.vae.stride, self.latent_size[1] * self.vae.stride

    def with_options(self, **changes: Any) -> ModelProfile:
        """A copy with other `aspect_ratio`, `pixel_budget` or sampling fields; `None` leaves a field as it is."""
        given = {key: value for key, value in changes.items() if value is not None}
        own = {key: given.pop(key) for key in ("aspect_ratio", "pixel_budget") if key in given}
        return replace(self, sampling=replace(self.sampling, **given), **own)

    def digest(self) -> str:
        """SHA-256 of everything that changes the model's graph or its images."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> ModelProfile:
        """Build from a mapping; nested mappings are checked the same way."""
        parts = {
            "transformer": TransformerConfig,
            "vae": VaeConfig,
            "text": TextConfig,
            "sampling": Sampling,
            "weights": WeightSource,
        }
        data = dict(data)
        for key, part in parts.items():
            if key in data:
                data[key] = build(part, data[key], f"{where}: {key}", ProfileError)
        return build(cls, data, where, ProfileError)


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
