"""One CUDA graph for the whole image: text features, lengths and noise in, pixels out, nothing of Python in between.

The graph is captured once for each number of images and each capacity of text; shorter prompts run in a larger capacity at the
cost of their own length. Its memory is taken during the capture and kept, so a replay allocates nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.family import ImageSteps
from ..models.infinity.vae import to_uint8

LEAST_TEXT = 64


class Inputs:
    """What a captured image is drawn from, written before each replay: features, their lengths, every scale's noise.

    Args:
        text: `[R, T, Ct]` an example of the features.
        noise: An example of every scale's noise by name.
    """

    def __init__(self, text: Tensor, noise: Sequence[Mapping[str, Tensor]]) -> None:
        self.text = torch.zeros_like(text)
        self.lengths = torch.ones(text.shape[0], dtype=torch.int64, device=text.device)
        self.noise = [{name: value.clone() for name, value in scale.items()} for scale in noise]

    def write(self, text: Tensor, lengths: Tensor) -> None:
        """The text to draw from, of the example's shape."""
        self.text.copy_(text)
        self.lengths.copy_(lengths)


class CudaProgram(Inputs):
    """A captured image.

    Args:
        steps: All scales, for as many images as `noise` has.
        decode: Summed codes to an image, about [-1, 1].
        text: `[R, T, Ct]` an example of the features; its shape is the capacity.
        noise: An example of every scale's noise by name; shapes and device are taken from it.
    """

    picked: tuple[str, ...] = ()
    """No rungs."""

    def __init__(
        self,
        steps: ImageSteps,
        decode: Callable[[Tensor], Tensor],
        text: Tensor,
        noise: Sequence[Mapping[str, Tensor]],
    ) -> None:
        super().__init__(text, noise)
        self._steps, self._decode = steps, decode
        self._graph = Captured(self._image)

    @torch.inference_mode()
    def _image(self) -> None:
        summed = self._steps.run(self.text, self.lengths, self.noise)
        self.pixels = to_uint8(self._decode(summed).float())

    def replay(self) -> Tensor:
        """Draw from what stands in `text`, `lengths` and `noise`.

        Returns:
            `[B, h, w, 3]` uint8 RGB: the program's own buffer, overwritten by the next replay.
        """
        self._graph.replay()
        return self.pixels


class Captured:
    """A graph of what a call launches; holds the call, and with it every tensor that the graph reads.

    The call runs once before, which compiles the kernels and lets the libraries choose theirs.
    """

    def __init__(self, call: Callable[[], object], pool: Any = None) -> None:
        self._call = call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        # a graph that is garbage must not be destroyed while another is captured
        gc.collect()
        # memory of the run before would stay reserved beside the graph's own
        torch.cuda.empty_cache()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            call()

    def replay(self) -> None:
        """Queue all launches again."""
        self._graph.replay()


def text_capacity(longest: int, most: int) -> int:
    """Text tokens a graph is captured for: a power of two from 64 on, at most what the encoder gives."""
    capacity = LEAST_TEXT
    while capacity < longest:
        capacity *= 2
    return max(longest, min(capacity, most))
