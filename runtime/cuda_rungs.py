"""An image that picks a rung, in CUDA graphs: one up to the decision for all images, then one for each image, its rung's.

The host reads the numbers of the decision between the two. A rung's graph runs one image, whichever it is told, so that an
image does not depend on what others of its batch pick; late scales fill a GPU with one image alone. What an image leaves at
the decision is read where the first graph wrote it, without a copy where it is the only one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..models.family import ImageSteps
from ..models.generate import run_scales
from ..models.infinity.vae import to_uint8
from ..models.state import State
from ..profiles.decision import Decision, observe
from ..profiles.plan import NOISES, NUMBERS
from . import cuda_program


class RungProgram(cuda_program.Inputs):
    """A captured image with rungs.

    Args:
        shared: The scales up to the decision, for as many images as `noise` has.
        tails: Those after it for one image, by rung; None where a rung ends at the decision.
        decision: Picks.
        view: Decodes what the decision looks at, where it looks at images.
        decode: Summed codes to an image, about [-1, 1].
        text: `[R, T, Ct]` an example of the features; its shape is the capacity.
        noise: An example of every scale's noise by name; shapes and device are taken from it.
    """

    def __init__(
        self,
        shared: ImageSteps,
        tails: Mapping[str, ImageSteps | None],
        decision: Decision,
        view: nn.Module | None,
        decode: Callable[[Tensor], Tensor],
        text: Tensor,
        noise: Sequence[Mapping[str, Tensor]],
    ) -> None:
        super().__init__(text, noise)
        self.picked: tuple[str, ...] = ()
        self._batch = next(iter(noise[0].values())).shape[0]
        # which image the graph of a rung draws: itself, and its rows in the batch's
        self._image = torch.zeros(1, dtype=torch.int64, device=text.device)
        self._shared, self._decision, self._view, self._decode = shared, decision, view, decode
        self._pixels: dict[str, Tensor] = {}
        self._first = cuda_program.Captured(self._begin)
        # one runs at a time, and its pixels are copied out at once: they may share memory
        pool = torch.cuda.graph_pool_handle() if text.is_cuda else None
        self._ends = {name: cuda_program.Captured(partial(self._end, name, steps), pool) for name, steps in tails.items()}

    def replay(self) -> Tensor:
        """Draw from what stands in `text`, `lengths` and `noise`; `picked` then names each image's rung.

        Returns:
            `[B, h, w, 3]` uint8 RGB; of one image a buffer that the next replay overwrites.
        """
        self._first.replay()
        self.picked = self._decision.pick(
            observe(
                self._decision,
                lambda: self._after["entropy"].cpu().numpy(),
                lambda: tuple(np.split(self._seen.cpu().numpy(), 2)),
            )
        )
        if self._batch == 1:
            self._ends[self.picked[0]].replay()
            return self._pixels[self.picked[0]]
        images = []
        for index, name in enumerate(self.picked):
            self._image.fill_(index)
            self._ends[name].replay()
            images.append(self._pixels[name].clone())
        return torch.cat(images)

    @torch.inference_mode()
    def _begin(self) -> None:
        """Up to the decision; what stays is the state there, and what the decision looks at."""
        steps = self._shared.steps
        state = self._shared.begin(self.text, self.lengths)
        own = set(state)
        before = run_scales(steps[:-1], state, self.noise)
        after = run_scales(steps[-1:], before, self.noise)
        if self._view is not None:
            # both at once: images of this size leave most of a GPU idle
            self._seen = self._view(torch.cat([before["summed"], after["summed"]]))
        # what depends on the text alone is made anew, and every scale has noise and numbers of its own
        self._after = {name: value for name, value in after.items() if name not in {*own, *NOISES, *NUMBERS}}

    @torch.inference_mode()
    def _end(self, name: str, steps: ImageSteps | None) -> None:
        """One image from the decision to its pixels."""
        state: State = {key: self._own(value) for key, value in self._after.items()}
        for key in (key for key in state if key.startswith("delta")):
            # these maps are views of tokens, and kernels read them as such
            state[key] = state[key].contiguous(memory_format=torch.channels_last)
        summed = state["summed"]
        if steps is not None:
            noise = [{key: self._own(value) for key, value in scale.items()} for scale in self.noise]
            rows = len(self.text) if self._shared.steps[-1].plan.guidance else self._batch
            summed = steps.resume(self._own(self.text[:rows]), self._own(self.lengths[:rows]), state, noise)
        self._pixels[name] = to_uint8(self._decode(summed).float())

    def _own(self, value: Tensor) -> Tensor:
        """The image's rows of a tensor: the conditional one and, where there is one, the unconditional one."""
        if self._batch == 1:
            return value
        return value[torch.cat([self._image + start for start in range(0, len(value), self._batch)])]
