"""A bundle to the engine that its target asks for; only that engine's packages are imported."""

from __future__ import annotations

from pathlib import Path

from ..profiles.errors import BundleError
from ..profiles.manifest import MANIFEST, PLAN_TARGETS, TARGETS, EngineManifest
from .file_check import begin_file_check
from .loop import Engine


def open_engine(folder: Path, threads: int | None = None) -> Engine:
    """Check and load a bundle.

    Args:
        folder: The bundle.
        threads: CPU threads of graphs on ONNX Runtime; None takes all cores this process may use.

    Raises:
        BundleError: The bundle is damaged or does not fit this machine, with every reason.
    """
    manifest = EngineManifest.load(folder)
    target = manifest.target
    if target not in TARGETS:
        raise BundleError(f"{folder / MANIFEST}: target {target!r}, this version knows {', '.join(TARGETS)}; update toprovar")
    # what is imported next takes seconds
    checked = begin_file_check(folder, manifest)
    if target in PLAN_TARGETS:
        from .tensorrt_engine import TensorRTEngine

        return TensorRTEngine(folder, threads=threads, checked=checked)
    if target == "cuda":
        from .cuda_engine import CudaEngine

        return CudaEngine(folder, checked=checked)
    from . import engine

    return engine.Engine(folder, threads, checked)
