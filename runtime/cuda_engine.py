"""The engine on PyTorch's CUDA: weights mapped straight to the GPU, fused kernels, one CUDA graph an image, two with rungs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.family import family_of, noise_of, stored_modules
from ..models.load import LoadedModel
from ..models.rungs import View, split_plans
from ..models.skeleton import skeleton
from ..models.text.random_features import RandomTextEncoder
from ..models.tiny.text_encoder import WordEncoder
from ..profiles.errors import BundleError
from ..profiles.manifest import WEIGHTS, EngineManifest
from ..profiles.plan import plan_scales
from ..profiles.schedule import Schedule
from . import loop
from .cuda_program import CudaProgram, text_capacity
from .cuda_rungs import RungProgram
from .file_check import Problems
from .kernel_archive import KernelArchive
from .loop import FloatArray, Images
from .machine import Machine
from .preflight import preflight


class CudaEngine(loop.Engine):
    """A verified bundle of the target `cuda`, its weights on the GPU.

    Graphs are captured when a number of images or a length of text is first asked for. An image depends on its prompt and
    seed, whatever was drawn before and whatever is drawn beside it; another number of images is another order of sums.
    Kernels that were compiled for a graph are kept in the bundle, see `kernel_archive`.

    Args:
        folder: The bundle.
        machine: What is here; None looks.
        device: Where to run; None takes the current GPU.
        checked: Of `begin_file_check` for the bundle; None checks its files now.

    Raises:
        BundleError: The bundle is damaged, or this machine has no GPU that it runs on.
    """

    text_device = "cuda"

    def __init__(
        self,
        folder: Path,
        machine: Machine | None = None,
        device: torch.device | None = None,
        checked: Problems | None = None,
    ) -> None:
        manifest = EngineManifest.load(folder)
        machine = machine or Machine.here()
        self.warnings = preflight(folder, manifest, machine, checked)
        super().__init__(folder, manifest)
        # before anything is compiled
        self._kernels = KernelArchive(folder, machine)
        self._kernels.restore()
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        # fp32 means fp32
        if manifest.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False
        self.family = family_of(self.profile)
        weights = _load(folder / WEIGHTS, self.device)
        self.model = self._model(weights)
        self._encoder = self._word_encoder(weights)
        self.decode = self.family.fast_decoder(self.model.decoder)
        self._programs: dict[tuple[int, int], CudaProgram | RungProgram] = {}

    @torch.inference_mode()
    def draw(self, request: dict[str, NDArray[Any]], batch: int) -> Images:
        """Replay the graph of the request's size."""
        text, lengths = torch.from_numpy(request["text"]), torch.from_numpy(request["lengths"])
        program = self._program(text, batch)
        # padded here: a copy into a part of the buffer would take memory on the GPU
        program.write(F.pad(text, (0, 0, 0, program.text.shape[1] - text.shape[1])), lengths)
        for scale in {graph.scale for graph in self.manifest.all_scales}:
            for name, buffer in program.noise[scale].items():
                buffer.copy_(torch.from_numpy(request[f"{name}.{scale}"]))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        pixels = program.replay()
        end.record()
        rgb: NDArray[np.uint8] = pixels.cpu().numpy()
        return Images(None, {"image": start.elapsed_time(end)}, program.picked, rgb)

    def words(self, ids: NDArray[np.int64]) -> FloatArray:
        """Run the bundled text encoder."""
        assert self._encoder is not None, "a bundle with a word encoder holds its weights"
        with torch.inference_mode():
            text: FloatArray = self._encoder(torch.from_numpy(ids).to(self.device)).float().cpu().numpy()
        return text

    def _program(self, text: Tensor, batch: int) -> CudaProgram | RungProgram:
        """The captured graph for a size, captured now if it is the first of its size."""
        rows, longest, channels = text.shape
        capacity = text_capacity(longest, self.profile.text.max_length)
        key = (batch, capacity)
        if key not in self._programs:
            self.tell(f"capturing the graph for a batch of {batch}, up to {capacity} text tokens")
            started = time.perf_counter()
            self._programs[key] = self._captured(torch.zeros(rows, capacity, channels, device=self.device), batch)
            self._kernels.keep()
            self.tell(f"captured in {time.perf_counter() - started:.1f} s")
        return self._programs[key]

    def _captured(self, example: Tensor, batch: int) -> CudaProgram | RungProgram:
        """The graph for text features of an example's shape."""
        scales = (noise_of(self.profile, [0], scale) for scale in range(len(self.profile.sizes)))
        # its values do not matter: one image's stand for all
        noise = [
            {name: torch.from_numpy(part).to(self.device).expand(batch, *part.shape[1:]) for name, part in scale.items()}
            for scale in scales
        ]
        return make_program(self.model, self.schedule, self.decode, example, noise)

    def _model(self, weights: dict[str, Tensor]) -> LoadedModel:
        """The model without its text encoder: features come with each request."""
        profile = self.profile
        with skeleton():
            transformer, vae = self.family.transformer(profile.transformer), self.family.vae(profile.vae)
        text = RandomTextEncoder(profile.transformer.text_channels, profile.text.max_length, 0)
        model = LoadedModel(profile=profile, transformer=transformer, vae=vae, text=text, digests=self.manifest.weights)
        for prefix, module in stored_modules(model).items():
            _fill(module, weights, f"{prefix}.", self.folder)
        return model

    def _word_encoder(self, weights: dict[str, Tensor]) -> WordEncoder | None:
        if self.profile.text.kind != "words":
            return None
        with skeleton():
            encoder = WordEncoder(width=self.profile.transformer.text_channels, max_length=self.profile.text.max_length)
        _fill(encoder, weights, "text_encoder.", self.folder)
        return encoder


def make_program(
    model: LoadedModel,
    schedule: Schedule,
    decode: Callable[[Tensor], Tensor],
    text: Tensor,
    noise: Sequence[Mapping[str, Tensor]],
) -> CudaProgram | RungProgram:
    """Capture a schedule for one size; arguments as of `CudaProgram`."""
    fast_steps, batch = family_of(model.profile).fast_steps, next(iter(noise[0].values())).shape[0]
    decision = schedule.decision
    if decision is None:
        return CudaProgram(fast_steps(model, plan_scales(schedule), batch), decode, text, noise)
    shared, ends = split_plans(schedule)
    tails = {name: fast_steps(model, plans, 1) if plans else None for name, plans in ends.items()}
    view = View(decode, model.profile, decision) if decision.features == "detail" else None
    return RungProgram(fast_steps(model, shared, batch), tails, decision, view, decode, text, noise)


def _load(path: Path, device: torch.device) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path, device=str(device))
    return found


def _fill(module: nn.Module, weights: dict[str, Tensor], prefix: str, folder: Path) -> None:
    """Give a module on the meta device its tensors, without a copy."""
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    differing = sorted(found.keys() ^ module.state_dict().keys())
    if differing:
        names = ", ".join(prefix + name for name in differing[:4])
        raise BundleError(f"{folder / WEIGHTS}: holds other tensors than the model, as {names}; build the bundle again")
    module.load_state_dict(found, assign=True)
    module.eval().requires_grad_(False)
