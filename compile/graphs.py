"""The subgraphs of a bundle as ONNX models: text encoder, conditioning, one for each scale that runs, decoder."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..models.rungs import View
from ..models.step import ScaleStep
from ..plugins.flash_attention_entropy import onnx as fae
from ..profiles.manifest import OUTPUT_SUFFIX
from ..profiles.plan import FP32_STATE
from . import attention
from .layer_bodies import write_out
from .layer_calls import LayerCalls
from .weight_store import Exported, WeightStore, externalize

# 18: ONNX Runtime's Attention of opset 23 refuses the broadcast text mask, and the body of our function is as fast
OPSET = 18

_BATCH = Dim("batch", min=1, max=64)
_TEXT = Dim("text", min=1, max=512)
_BATCH_EXAMPLE, _TEXT_EXAMPLE = 2, 5


class Conditioning(nn.Module):
    """Text features of all rows to everything that depends on the text alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """`[R, T, Ct]`, `[R]` -> the state before the first scale, in the order of its names."""
        return tuple(self.model.initial_state(text, lengths).values())


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
    symbols = {"B": _BATCH, "R": 2 * _BATCH if step.plan.guidance else _BATCH, "T": _TEXT}
    shapes = {
        name: {axis: symbols[size] for axis, size in enumerate(step.input_shape(name)) if isinstance(size, str)}
        for name in example
    }
    calls = LayerCalls(step)
    with calls.recorded():
        proto, weights = _traced(step, {"state": example}, {"state": shapes}, step.input_names(), step.output_names(), store)
    return _finished(proto, weights | write_out(proto, calls, store, _traced))


@torch.inference_mode()
def export_conditioning(model: Any, store: WeightStore) -> Exported:
    """Text conditioning of R rows by a family's transformer."""
    module, tokens = Conditioning(model), model.config.text_tokens or _TEXT_EXAMPLE
    example = {
        "text": torch.randn(_BATCH_EXAMPLE, tokens, model.config.text_channels),
        "lengths": torch.tensor([tokens, max(1, tokens - 1)]),
    }
    names = tuple(model.initial_state(**example))
    text = {0: _BATCH} if model.config.text_tokens else {0: _BATCH, 1: _TEXT}
    return _export(module, example, {"text": text, "lengths": {0: _BATCH}}, tuple(example), names, store)


def export_decoder(decoder: nn.Module, latent: tuple[int, int, int], store: WeightStore) -> Exported:
    """VAE decoder; `latent` is (d, H, W)."""
    example = {"summed": torch.randn(_BATCH_EXAMPLE, *latent)}
    return _export(ClampedDecoder(decoder), example, {"summed": {0: _BATCH}}, ("summed",), ("image",), store)


def export_view(view: View, latent: tuple[int, int, int], store: WeightStore) -> Exported:
    """The small image that a decision looks at; `latent` is (d, H, W) of the full sum."""
    example = {"summed": torch.randn(_BATCH_EXAMPLE, *latent)}
    return _export(view, example, {"summed": {0: _BATCH}}, ("summed",), ("image",), store)


def export_words(encoder: nn.Module, max_length: int, store: WeightStore) -> Exported:
    """Word-level text encoder."""
    example = {"ids": torch.ones(_BATCH_EXAMPLE, _TEXT_EXAMPLE, dtype=torch.int64)}
    shapes = {"ids": {0: _BATCH, 1: Dim("text", min=1, max=max_length)}}
    return _export(encoder, example, shapes, ("ids",), ("text",), store)


def _example(name: str, step: ScaleStep) -> Tensor:
    """A tensor of the right shape for one name of the state.

    The exporter reads only shape and dtype, so it is left empty: the last scale of Infinity-2B has 6.7 GB of cached keys and
    values for two images, and pages that nobody touches take no memory.
    """
    sizes = {"B": _BATCH_EXAMPLE, "R": _BATCH_EXAMPLE * step.plan.rows, "T": _TEXT_EXAMPLE}
    shape = [sizes[size] if isinstance(size, str) else size for size in step.input_shape(name)]
    return torch.empty(shape, dtype=torch.float32 if name.partition(".")[0] in FP32_STATE else step.dtype)


def _export(
    module: nn.Module,
    example: dict[str, Any],
    shapes: dict[str, Any],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    store: WeightStore,
) -> Exported:
    return _finished(*_traced(module, example, shapes, inputs, outputs, store))


def _traced(
    module: nn.Module,
    example: dict[str, Any],
    shapes: dict[str, Any],
    inputs: Sequence[str],
    outputs: Sequence[str] | None,
    store: WeightStore,
) -> tuple[Any, dict[str, str]]:
    """A module as `onnx.ModelProto`, and the store's names of its large weights."""
    import onnx_ir as ir

    with _quiet(), _rare_collections():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=None if outputs is None else [name + OUTPUT_SUFFIX for name in outputs],
            custom_translation_table={**fae.translation(), **attention.translation()},
            # the rewriter takes longer than all the rest, and ONNX Runtime folds the same constants when it loads a graph
            optimize=False,
            verbose=False,
        )
    assert program is not None
    found = {value.name for value in program.model.graph.inputs}
    assert found == set(inputs), (found, inputs)
    weights = externalize(program.model, store)
    return ir.to_proto(program.model), weights


def _finished(proto: Any, weights: dict[str, str]) -> Exported:
    """With the functions that its nodes name, and nothing in it of the machine that made it."""
    fae.attach(proto)
    attention.attach(proto)
    for entry in (proto.graph.value_info, proto.metadata_props):
        del entry[:]
    for node in proto.graph.node:
        # stack traces of the exporting machine do not belong into an artefact
        del node.metadata_props[:]
        node.doc_string = ""
    proto.producer_name, proto.producer_version, proto.doc_string = "toprovar", "", ""
    inputs, outputs = (tuple(tensor.name for tensor in entry) for entry in (proto.graph.input, proto.graph.output))
    return Exported(proto, weights, inputs, outputs)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Tracing makes millions of objects that live until its end; looking for garbage among them took a fifth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


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
