"""What every engine does alike: open a bundle, lay a request out as arrays, walk the scales in order. No torch here.

The walk knows names, not tensors: ONNX Runtime runs it for every image, TensorRT walks it once a shape to plan its buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..models.family import noise_of
from ..profiles.errors import ToprovarError
from ..profiles.manifest import SCHEDULE, WEIGHTS, EngineManifest, Graph, ScaleGraph
from ..profiles.plan import NOISES, NUMBERS, ROWLESS
from ..profiles.schedule import Schedule

FloatArray = NDArray[np.float32]
Value = TypeVar("Value")
PER_SCALE = (*NOISES, *NUMBERS)
"""Inputs that every scale has of its own: `noise.3` is the noise of scale 3."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images of one call.

    Attributes:
        pixels: `[B, 3, h, w]` fp32 in [-1, 1]; None where the engine hands out `rgb`.
        milliseconds: Time of every graph by name, in order; where one CUDA graph holds many, one entry for it, as `image`.
        rungs: The rung that each image picked, where the schedule has rungs.
        rgb: `[B, h, w, 3]`, where the engine made bytes itself.
    """

    pixels: FloatArray | None
    milliseconds: dict[str, float]
    rungs: tuple[str, ...] = ()
    rgb: NDArray[np.uint8] | None = None

    def uint8(self) -> NDArray[np.uint8]:
        """`[B, h, w, 3]` RGB: (x + 1) / 2 * 255, cut off, as the official code does."""
        if self.rgb is not None:
            return self.rgb
        assert self.pixels is not None, "an engine hands out pixels or bytes"
        scaled = ((self.pixels + np.float32(1)) / np.float32(2)) * np.float32(255)
        return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


class Runner(Protocol[Value]):
    """Runs one graph on values of its own kind."""

    def run(self, name: str, graph: Graph, feeds: dict[str, Value]) -> dict[str, Value]:
        """Outputs by name, without the output suffix."""
        ...

    def narrow(self, value: Value, batch: int) -> Value:
        """The first `batch` rows."""
        ...


def walk(manifest: EngineManifest, guided: bool, batch: int, inputs: Mapping[str, Value], runner: Runner[Value]) -> Value:
    """Text conditioning, the scales that run, the decoder; returns the image.

    Args:
        manifest: Says which graphs run, and what goes in and out.
        guided: Whether the rows begin with conditional and unconditional ones.
        batch: Images B.
        inputs: As of `Engine.request`.
        runner: Runs the graphs.
    """
    state = runner.run("condition", manifest.condition, {"text": inputs["text"], "lengths": inputs["lengths"]})
    state = walk_scales(manifest.scales, state, guided, batch, inputs, runner)
    return runner.run("decoder", manifest.decoder, {"summed": state["summed"]})["image"]


def walk_scales(
    scales: Sequence[ScaleGraph],
    state: Mapping[str, Value],
    guided: bool,
    batch: int,
    inputs: Mapping[str, Value],
    runner: Runner[Value],
    label: str = "",
) -> dict[str, Value]:
    """The state behind some scales.

    Args:
        scales: Coarse to fine.
        state: Before the first of them; is not changed.
        guided: Whether its rows are conditional and unconditional ones.
        batch: Images B.
        inputs: As of `Engine.request`.
        runner: Runs the graphs.
        label: Put before the name under which a scale's time is kept.
    """
    state = dict(state)
    for scale in scales:
        if guided and not scale.guidance:
            state = {name: value if name in ROWLESS else runner.narrow(value, batch) for name, value in state.items()}
        guided = scale.guidance
        own = {name: f"{name}.{scale.scale}" for name in PER_SCALE}
        feeds = {name: inputs[own[name]] if name in own else state[name] for name in scale.graph.inputs}
        state.update(runner.run(f"{label}scale {scale.scale}", scale.graph, feeds))
    return state


class Engine(ABC):
    """A bundle that draws images.

    Args:
        folder: The bundle.
        manifest: Its manifest, compared with folder and machine before (`preflight`).
    """

    text_device: ClassVar[str] = "cpu"
    """Where a text encoder in torch runs."""

    def __init__(self, folder: Path, manifest: EngineManifest) -> None:
        self.folder, self.manifest = folder, manifest
        # commands print what takes seconds; a library says nothing
        self.tell: Callable[[str], None] = lambda _: None
        self.profile = manifest.model_profile()
        self.schedule = Schedule.load(folder / SCHEDULE)

    @abstractmethod
    def draw(self, request: dict[str, NDArray[Any]], batch: int) -> Images:
        """Draw the B images of one request."""

    @abstractmethod
    def words(self, ids: NDArray[np.int64]) -> FloatArray:
        """Word ids `[B, T]` to text features `[B, T, Ct]`, where the bundle holds its own text encoder."""

    @cached_property
    def unconditional(self) -> FloatArray:
        """Features of an unconditional row, `[T, Ct]`, as many as any text may have."""
        config = self.profile.transformer
        if config.unconditional is None:
            return np.zeros((config.text_tokens or self.profile.text.max_length, config.text_channels), np.float32)
        name, first = config.unconditional
        return self.tensor(name)[first:]

    def tensor(self, name: str) -> FloatArray:
        """One of the bundle's weights, in fp32."""
        return read_tensor(self.folder / WEIGHTS, name)

    def generate(
        self,
        text: FloatArray,
        lengths: NDArray[np.int64],
        seeds: Sequence[int],
        negative: tuple[FloatArray, NDArray[np.int64]] | None = None,
    ) -> Images:
        """Draw B images.

        Args:
            text: `[B, T, Ct]` features, zero-padded.
            lengths: `[B]`.
            seeds: One a image, >= 0; an image depends on its prompt and seed alone.
            negative: Features and lengths of negative prompts.
        """
        rows, row_lengths = self._rows(text, lengths, negative)
        return self.draw({"text": rows, "lengths": row_lengths, **self._per_scale(seeds)}, len(seeds))

    def _per_scale(self, seeds: Sequence[int]) -> dict[str, NDArray[Any]]:
        """What every scale S that runs has of its own: `noise.S` `[B, N, ...]`, `cfg.S` `[1]` and others as the family has."""
        profile = self.profile
        lists = {name: profile.sampling.per_scale(name, len(profile.sizes)) for name in profile.sampling.controls}
        found: dict[str, NDArray[Any]] = {}
        for scale in self.manifest.all_scales:
            found |= {f"{name}.{scale.scale}": noise for name, noise in noise_of(profile, seeds, scale.scale).items()}
            for name, values in lists.items():
                found[f"{name}.{scale.scale}"] = np.array([values[scale.scale]], dtype=np.float32)
        return found

    def _rows(
        self, text: FloatArray, lengths: NDArray[np.int64], negative: tuple[FloatArray, NDArray[np.int64]] | None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Conditional rows, then with guidance the unconditional ones: the learned vectors, cut to the prompt's length."""
        if not self.schedule.guided:
            if negative is not None:
                raise ToprovarError(
                    "a negative prompt needs guidance, this engine was built without; build one with another --cfg"
                )
            return text, lengths
        if negative is None:
            learned = self.unconditional[: text.shape[1]]
            other, other_lengths = np.broadcast_to(learned, (len(text), *learned.shape)), lengths
        else:
            other, other_lengths = negative
        longest = max(text.shape[1], other.shape[1])
        padded = [np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0))) for part in (text, other)]
        return np.concatenate(padded).astype(np.float32), np.concatenate([lengths, other_lengths])


def read_tensor(path: Path, name: str) -> FloatArray:
    """One tensor of a safetensors file, in fp32; bf16 is widened here, since NumPy has none."""
    import json

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + size + start)
        raw = file.read(end - start)
    if entry["dtype"] == "BF16":
        bits = np.frombuffer(raw, dtype=np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(entry["shape"])
    kind = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
    return np.frombuffer(raw, dtype=kind).reshape(entry["shape"]).astype(np.float32)
