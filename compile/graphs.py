"""The subgraphs of a bundle as ONNX models: text encoder, conditioning, one for each scale that runs, decoder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..models.infinity.step import ScaleStep
from ..models.infinity.transformer import Infinity
from ..plugins.flash_attention_entropy import onnx as fae
from ..profiles.manifest import OUTPUT_SUFFIX
from ..profiles.plan import FP32_STATE
from .weight_store import WeightStore, externalize

# 18: ONNX Runtime's Attention of opset 23 refuses the broadcast text mask, and its decomposition is as fast
OPSET = 18

_BATCH = Dim("batch", min=1, max=64)
_TEXT = Dim("text", min=1, max=512)
_BATCH_EXAMPLE, _TEXT_EXAMPLE = 2, 5


@dataclass(frozen=True, slots=True)
class Exported:
    """A model proto without its large weights, and where those stand in the store."""

    proto: Any
    weights: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Conditioning(nn.Module):
    """Text features of all rows to everything that depends on the text alone."""

    def __init__(self, model: Infinity) -> None:
        super().__init__()
        self.model = model

    def names(self) -> tuple[str, ...]:
        layers = range(self.model.config.depth)
        return ("sos", "shared", "head", "mask", *(f"ca_k.{i}" for i in layers), *(f"ca_v.{i}" for i in layers))

    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """`[R, T, Ct]`, `[R]` -> tensors in the order of `names`."""
        c = self.model.condition(text, lengths)
        return (c.sos, c.shared, c.head, c.mask, *c.keys, *c.values)


class ClampedDecoder(nn.Module):
    """Summed codes to an image in [-1, 1]; both fp32, between them the decoder's own dtype."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, summed: Tensor) -> Tensor:
        """`[B, d, H, W]` -> `[B, 3, h, w]`."""
        return self.decoder(summed).float().clamp(-1, 1)  # type: ignore[no-any-return]


def export_scale(step: ScaleStep, store: WeightStore) -> Exported:
    """The subgraph of one scale; batch and text length stay symbolic."""
    example = {name: _example(name, step) for name in step.input_names()}
    rows = 2 * _BATCH if step.plan.guidance else _BATCH
    shapes = {name: _dims(name, step, rows) for name in example}
    return _export(step, {"state": example}, {"state": shapes}, step.input_names(), step.output_names(), store)


def export_conditioning(model: Infinity, store: WeightStore) -> Exported:
    """Text conditioning of R rows."""
    module = Conditioning(model)
    example = {
        "text": torch.randn(_BATCH_EXAMPLE, _TEXT_EXAMPLE, model.config.text_channels),
        "lengths": torch.tensor([_TEXT_EXAMPLE, _TEXT_EXAMPLE - 1]),
    }
    shapes = {"text": {0: _BATCH, 1: _TEXT}, "lengths": {0: _BATCH}}
    return _export(module, example, shapes, tuple(example), module.names(), store)


def export_decoder(decoder: nn.Module, latent: tuple[int, int, int], store: WeightStore) -> Exported:
    """VAE decoder; `latent` is (d, H, W)."""
    example = {"summed": torch.randn(_BATCH_EXAMPLE, *latent)}
    return _export(ClampedDecoder(decoder), example, {"summed": {0: _BATCH}}, ("summed",), ("image",), store)


def export_words(encoder: nn.Module, max_length: int, store: WeightStore) -> Exported:
    """Word-level text encoder."""
    example = {"ids": torch.ones(_BATCH_EXAMPLE, _TEXT_EXAMPLE, dtype=torch.int64)}
    shapes = {"ids": {0: _BATCH, 1: Dim("text", min=1, max=max_length)}}
    return _export(encoder, example, shapes, ("ids",), ("text",), store)


def _example(name: str, step: ScaleStep) -> Tensor:
    """A tensor of the right shape for one name of the state."""
    plan, profile = step.plan, step.profile
    config = profile.transformer
    kind, _, index = name.partition(".")
    layer = int(index) if index else 0
    rows = _BATCH_EXAMPLE * plan.rows
    heads, width = config.heads, config.head_width
    shape = {
        "sos": (rows, config.width),
        "shared": (rows, 1, 6, config.width),
        "head": (rows, 2, config.width),
        "mask": (rows, 1, 1, _TEXT_EXAMPLE),
        "noise": (_BATCH_EXAMPLE, plan.count, config.token_bits),
        "summed": (_BATCH_EXAMPLE, config.bits, *profile.latent_size),
        "ca_k": (rows, heads, _TEXT_EXAMPLE, width),
        "ca_v": (rows, heads, _TEXT_EXAMPLE, width),
        "k": (rows, heads, plan.past[layer], width),
        "v": (rows, heads, plan.past[layer], width),
        "entropy": (_BATCH_EXAMPLE, 1, *_entropy_size(step)),
        "delta": (rows, config.width, *_delta_size(step)),
        "cfg": (1,),
        "tau": (1,),
    }[kind]
    return torch.rand(shape, dtype=torch.float32 if kind in FP32_STATE else step.model.pos_start.dtype) + 0.5


def _entropy_size(step: ScaleStep) -> tuple[int, int]:
    source = step.plan.entropy_from
    return step.profile.sizes[source] if source is not None else (1, 1)


def _delta_size(step: ScaleStep) -> tuple[int, int]:
    tokens = step.plan.tokens
    return step.profile.sizes[tokens.cache_scale] if tokens and tokens.cache_scale is not None else (1, 1)


def _dims(name: str, step: ScaleStep, rows: Any) -> dict[int, Any]:
    """Symbolic dimensions of one name of the state."""
    kind = name.partition(".")[0]
    if kind in ("cfg", "tau"):
        return {}
    if kind in ("noise", "summed", "entropy"):
        return {0: _BATCH}
    text_axis = {"mask": 3, "ca_k": 2, "ca_v": 2}.get(kind)
    return {0: rows} if text_axis is None else {0: rows, text_axis: _TEXT}


def _export(
    module: nn.Module,
    example: dict[str, Any],
    shapes: dict[str, Any],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    store: WeightStore,
) -> Exported:
    import onnx_ir as ir

    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=[name + OUTPUT_SUFFIX for name in outputs],
            custom_translation_table=fae.translation(),
            # the rewriter takes longer than all the rest, and ONNX Runtime folds the same constants when it loads a graph
            optimize=False,
            verbose=False,
        )
    assert program is not None
    weights = externalize(program.model, store)
    proto = ir.to_proto(program.model)
    fae.attach(proto)
    for entry in (proto.graph.value_info, proto.metadata_props):
        del entry[:]
    for node in proto.graph.node:
        # stack traces of the exporting machine do not belong into an artefact
        del node.metadata_props[:]
        node.doc_string = ""
    proto.producer_name, proto.producer_version, proto.doc_string = "toprovar", "", ""
    names = [tensor.name for tensor in proto.graph.input]
    assert sorted(names) == sorted(inputs), (names, inputs)
    return Exported(proto, weights, tuple(names), tuple(tensor.name for tensor in proto.graph.output))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages we do not need, on every call."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
