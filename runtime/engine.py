"""The run-time loop on ONNX Runtime: for each scale, run one graph; the state stays in ONNX Runtime's own tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.noise import image_noise
from ..profiles.errors import BundleError, ToprovarError
from ..profiles.manifest import OUTPUT_SUFFIX, SCHEDULE, WEIGHTS, EngineManifest, Graph
from ..profiles.plan import ROWLESS
from ..profiles.schedule import Schedule

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Images:
    """Images of one call.

    Attributes:
        pixels: `[B, 3, h, w]` fp32 in [-1, 1].
        milliseconds: Time of every graph by name, in order.
    """

    pixels: FloatArray
    milliseconds: dict[str, float]

    def uint8(self) -> NDArray[np.uint8]:
        """`[B, h, w, 3]` RGB: (x + 1) / 2 * 255, cut off, as the official code does."""
        scaled = ((self.pixels + np.float32(1)) / np.float32(2)) * np.float32(255)
        return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))


class Engine:
    """A verified bundle with its graphs loaded.

    Args:
        folder: The bundle.
        threads: Threads of every graph; None takes all cores this process may use.

    Raises:
        BundleError: The bundle is incomplete, corrupted, foreign, or its parts contradict each other.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.manifest = EngineManifest.load(folder)
        self.manifest.verify(folder)
        self.profile = self.manifest.model_profile()
        self.schedule = Schedule.load(folder / SCHEDULE)
        if self.schedule.digest() != self.manifest.schedule_sha256:
            raise BundleError(f"{folder}: {SCHEDULE} is not the schedule that was built; build the bundle again")
        self._options = _session_options(threads)
        graphs = [self.manifest.condition, *(s.graph for s in self.manifest.scales), self.manifest.decoder]
        if self.manifest.words is not None:
            graphs.append(self.manifest.words)
        self._sessions = {graph.file: self._session(graph) for graph in graphs}

    def _session(self, graph: Graph) -> Any:
        import onnxruntime as ort

        try:
            return ort.InferenceSession(str(self.folder / graph.file), self._options, providers=["CPUExecutionProvider"])
        except Exception as problem:
            reason = " ".join(str(problem).split())[:200]
            raise BundleError(f"{self.folder / graph.file}: ONNX Runtime refuses it ({reason})") from problem

    def run_graph(self, graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run one graph on ONNX Runtime tensors (or arrays); returns tensors by name without the output suffix."""
        import onnxruntime as ort

        values = {name: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(v) for name, v in feeds.items()}
        outputs = self._sessions[graph.file].run_with_ort_values(list(graph.outputs), values)
        return {name.removesuffix(OUTPUT_SUFFIX): value for name, value in zip(graph.outputs, outputs, strict=True)}

    @cached_property
    def unconditional(self) -> FloatArray:
        """The learned unconditional text vectors `[text_maxlen, Ct]`."""
        from safetensors import safe_open

        with safe_open(self.folder / WEIGHTS, framework="numpy") as file:
            return np.asarray(file.get_tensor("transformer.cfg_uncond"), dtype=np.float32)

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
        profile, times = self.profile, dict[str, float]()
        tokens = sum(h * w for h, w in profile.sizes)
        noise = np.stack([image_noise(seed, tokens, profile.transformer.token_bits) for seed in seeds])
        cfg, tau = (profile.sampling.per_scale(name, len(profile.sizes)) for name in ("cfg", "tau"))
        rows, row_lengths = self._rows(text, lengths, negative)
        state = self._timed("condition", times, self.manifest.condition, {"text": rows, "lengths": row_lengths})
        guidance = self.schedule.guided
        for scale in self.manifest.scales:
            if guidance and not scale.guidance:
                state = _narrow_rows(state, len(seeds))
            guidance = scale.guidance
            state["noise"] = np.ascontiguousarray(noise[:, scale.offset : scale.offset + scale.tokens])
            state["cfg"], state["tau"] = (np.array([values[scale.scale]], dtype=np.float32) for values in (cfg, tau))
            feeds = {name: state[name] for name in scale.graph.inputs}
            state.update(self._timed(f"scale {scale.scale}", times, scale.graph, feeds))
        image = self._timed("decoder", times, self.manifest.decoder, {"summed": state["summed"]})["image"]
        return Images(image.numpy(), times)

    def _timed(self, name: str, times: dict[str, float], graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        outputs = self.run_graph(graph, feeds)
        times[name] = (time.perf_counter() - start) * 1000
        return outputs

    def _rows(
        self, text: FloatArray, lengths: NDArray[np.int64], negative: tuple[FloatArray, NDArray[np.int64]] | None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Conditional rows, then with guidance the unconditional ones: the learned vectors, cut to the prompt's length."""
        if not self.schedule.guided:
            if negative is not None:
                raise ToprovarError("a negative prompt needs guidance, this engine was built with cfg 1; build one with --cfg")
            return text, lengths
        if negative is None:
            learned = self.unconditional[: text.shape[1]]
            other, other_lengths = np.broadcast_to(learned, (len(text), *learned.shape)), lengths
        else:
            other, other_lengths = negative
        longest = max(text.shape[1], other.shape[1])
        padded = [np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0))) for part in (text, other)]
        return np.concatenate(padded).astype(np.float32), np.concatenate([lengths, other_lengths])


def _narrow_rows(state: dict[str, Any], batch: int) -> dict[str, Any]:
    """The state with its conditional rows only."""
    return {name: value if name in ROWLESS else np.ascontiguousarray(value.numpy()[:batch]) for name, value in state.items()}


def _session_options(threads: int | None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as problem:
        raise ToprovarError("the onnx target needs onnxruntime; run `pip install onnxruntime`") from problem
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
