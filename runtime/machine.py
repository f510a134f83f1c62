"""What this machine offers to a plan: TensorRT, driver, CUDA build of torch, GPU. TensorRT itself is not imported."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Packages that bring a flavour's library; the bindings alone cannot load a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts that a manifest is compared with.

    Attributes:
        flavours: Version of each installed flavour, by the target's name.
        driver: Version of NVIDIA's driver, or None.
        cuda: CUDA version of the torch build, or None for a build without CUDA.
        gpu: Name of the GPU that torch uses, or None.
        sm: Its compute capability as a number, as 89 for 8.9, or None.
        kernel_hash: Of the attention kernels this version of the project would build, or empty where Triton is missing.
    """

    flavours: dict[str, str] = field(default_factory=dict)
    driver: str | None = None
    cuda: str | None = None
    gpu: str | None = None
    sm: int | None = None
    kernel_hash: str = ""

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine."""
        import torch

        flavours = {flavour: found for flavour, names in PACKAGES.items() if (found := _installed(names))}
        gpu, sm = None, None
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            gpu, sm = torch.cuda.get_device_name(), 10 * major + minor
        kernels = _kernel_hash() if sm else ""
        return cls(flavours=flavours, driver=_driver(), cuda=torch.version.cuda, gpu=gpu, sm=sm, kernel_hash=kernels)


def _installed(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _driver() -> str | None:
    """The driver's version as its own management library tells it."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(96)
    if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    library.nvmlShutdown()
    return text.value.decode()


def _kernel_hash() -> str:
    from ..plugins.flash_attention_entropy.ahead_of_time import kernel_hash

    try:
        return kernel_hash()
    except ImportError:
        return ""
