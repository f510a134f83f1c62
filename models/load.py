"""From a profile and what the user points at to a model in memory: strict, one copy, every file's SHA-256 on record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..profiles.errors import CheckpointError
from ..profiles.hart import HartConfig
from ..profiles.model import FOLDER, ModelProfile
from .checkpoint import fetch_weights, load_into, open_checkpoint, random_weights
from .family import family_of
from .skeleton import skeleton
from .text import TextEncoder
from .text.classes import ClassEncoder, ClassNames
from .text.llm import LlmTextEncoder
from .text.random_features import RandomTextEncoder
from .text.system_prompt import SYSTEM_PROMPT, prompt_sha256, read_system_prompt
from .text.t5 import T5TextEncoder
from .text.words import WordTextEncoder
from .tiny.text_encoder import WordEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """Where weights come from.

    Attributes:
        weights: Path or hub id of the transformer, `random`, or None for the profile's own.
        vae: Path or hub id of the VAE, or None for the profile's own.
        text_encoder: Path or hub id of the text encoder, or None for the profile's own.
        revision: Branch, tag or commit of every hub id.
        seed: Of random weights.
    """

    weights: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    revision: str | None = None
    seed: int = 0

    @property
    def random(self) -> bool:
        return self.weights == "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run on one device.

    Attributes:
        profile: Architecture, geometry and sampling.
        transformer: Of the profile's family, as `models.generate.Conditioned`; in evaluation mode.
        vae: Of the profile's family; in evaluation mode.
        text: Prompts to features.
        digests: SHA-256 of every weight file by part and name; for random weights the seed.
        text_source: How the run time makes the text encoder again: its `kind`, and what that needs.
    """

    profile: ModelProfile
    transformer: Any
    vae: Any
    text: TextEncoder
    digests: dict[str, str]
    text_source: dict[str, Any] = field(default_factory=dict)

    @property
    def decoder(self) -> torch.nn.Module:
        """Summed codes `[B, d, H, W]` to an image `[B, 3, h, w]`, about [-1, 1]."""
        return family_of(self.profile).decoder(self.vae)

    @property
    def weight(self) -> torch.Tensor:
        """Any weight of the transformer: tells its device and dtype."""
        weight: torch.Tensor = next(self.transformer.parameters())
        return weight

    def weights_digest(self) -> str:
        """One SHA-256 over all of them."""
        return hashlib.sha256(json.dumps(self.digests, sort_keys=True).encode()).hexdigest()


def load_model(
    profile: ModelProfile,
    options: WeightOptions,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load or draw all weights of a profile.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit the profile.
    """
    _check_text(profile, options)
    digests: dict[str, str] = {}
    family = family_of(profile)
    with skeleton():
        transformer, vae = family.transformer(profile.transformer), family.vae(profile.vae)
    for name, module, spec in (
        ("transformer", transformer, _source(profile, options, "transformer", options.weights)),
        ("vae", vae, _source(profile, options, "vae", options.vae)),
    ):
        _fill(name, module, spec, options, dtype, device, digests)
    text, source = _text_encoder(profile, options, transformer, dtype, device, digests)
    return LoadedModel(
        profile=profile,
        transformer=transformer.eval(),
        vae=vae.eval(),
        text=text,
        digests=digests,
        text_source=source,
    )


def _check_text(profile: ModelProfile, options: WeightOptions) -> None:
    """Refuse a text encoder that cannot be had, before the weights are read."""
    source = options.text_encoder or profile.text.source
    if profile.text.kind not in ("t5", "llm") or (options.random and options.text_encoder is None):
        return
    if not source:
        raise CheckpointError(f"{profile.name}: no text encoder is known for this profile; pass --text-encoder FOLDER")
    if profile.text.kind == "llm":
        read_system_prompt(source)


def _source(profile: ModelProfile, options: WeightOptions, part: str, given: str | None) -> str:
    """What the user gave, else the file that ships, else the profile's hub file; `random` where asked."""
    if given is not None:
        return given
    if options.random:
        return "random"
    bundled = FOLDER / profile.name / f"{part}.safetensors"
    if bundled.exists():
        return str(bundled)
    file = getattr(profile.weights, part, "")
    if profile.weights.repo and file:
        return f"{profile.weights.repo}:{file}"
    raise CheckpointError(f"{profile.name}: no {part} weights are known for this profile; pass a path or `--weights random`")


def _fill(
    name: str,
    module: torch.nn.Module,
    spec: str,
    options: WeightOptions,
    dtype: torch.dtype,
    device: torch.device | str,
    digests: dict[str, str],
) -> None:
    """Give a module on the meta device its weights."""
    if spec == "random":
        random_weights(module, options.seed, dtype, device)
        digests[name] = f"random, seed {options.seed}"
        return
    checkpoint = open_checkpoint(Path(fetch_weights(spec, options.revision)), key="vae" if name == "vae" else None)
    # HART's tokenizer lies beside the discriminator it was trained with
    load_into(module, checkpoint.part(f"{name}."), dtype, device=device)
    digests |= {f"{name}/{file}": digest for file, digest in checkpoint.digest().items()}


def _text_encoder(
    profile: ModelProfile,
    options: WeightOptions,
    transformer: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    digests: dict[str, str],
) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder, and how the run time makes it again."""
    kind, source, config = profile.text.kind, options.text_encoder or profile.text.source, profile.transformer
    described: dict[str, Any] = {"kind": kind, "source": source, "revision": options.revision}
    if kind == "classes":
        embedding = transformer.class_emb.weight
        names = ClassNames.read(len(embedding) - 1, source)
        return ClassEncoder(names, embedding), {"kind": kind, "names": list(names.names)}
    if kind == "words":
        with skeleton():
            encoder = WordEncoder(width=config.text_channels, max_length=profile.text.max_length)
        spec = _source(profile, options, "text_encoder", options.text_encoder)
        _fill("text_encoder", encoder, spec, options, dtype, device, digests)
        return WordTextEncoder(encoder), described
    # with random weights the text is as good as random too: no 5 GB download for latency work
    if options.random and options.text_encoder is None:
        digests["text_encoder"] = "none: random features"
        random = RandomTextEncoder(config.text_channels, profile.text.max_length, options.seed, config.text_tokens)
        return random, {"kind": "random", "seed": options.seed}
    digests["text_encoder"] = f"{source}@{options.revision or 'main'}"
    if kind == "llm":
        tokens, padding = profile.text.max_length, config.text_padding if isinstance(config, HartConfig) else "right"
        described |= {"padding": padding}
        llm = LlmTextEncoder.load(source, tokens, padding, revision=options.revision, device=device)
        digests[f"text_encoder/{SYSTEM_PROMPT}"] = prompt_sha256(llm.system_prompt)
        return llm, described
    return T5TextEncoder.load(source, options.revision, device=device), described
