"""Before anything is loaded: does the bundle fit this machine, and are its files what was built? All problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..profiles.errors import BundleError
from ..profiles.manifest import PLAN_TARGETS, EngineManifest
from .file_check import Problems, file_problems
from .machine import Machine

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Of a CUDA version, the oldest driver branch that runs it, on Linux."""
INSTALL = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13"}
OLDEST_SM = 75
NO_GPU = "torch sees no GPU; check `nvidia-smi` and the variable CUDA_VISIBLE_DEVICES"
RTX_WITHOUT = (90, 100, 103)
"""GPUs of data centres for which TensorRT-RTX has no code."""


def preflight(
    folder: Path, manifest: EngineManifest, machine: Machine | None = None, checked: Problems | None = None
) -> tuple[str, ...]:
    """Compare a bundle with the machine and with its own hashes.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        machine: What is here; None leaves the machine out, as for the onnx target, which runs everywhere.
        checked: Of `begin_file_check` for this bundle; None checks the files now.

    Returns:
        Warnings: what differs and does no harm.

    Raises:
        BundleError: Every problem, each with what mends it.
    """
    problems = [] if machine is None else machine_problems(manifest, machine)
    problems += checked() if checked else file_problems(folder, manifest)
    if problems:
        named = [problem if problem.startswith(str(folder)) else f"{folder}: {problem}" for problem in problems[:1]]
        raise BundleError("; ".join([*named, *problems[1:]]))
    return () if machine is None else _warnings(manifest, machine)


def machine_problems(manifest: EngineManifest, machine: Machine) -> list[str]:
    """One sentence for each thing that is missing here or of another version, with the command that mends it."""
    if manifest.target == "cuda":
        return [problem for problem in (_driver(machine) or _visible(machine),) if problem]
    if manifest.target not in PLAN_TARGETS:
        return []
    checks = (_flavour(manifest.engine, machine), _driver(machine), _gpu(manifest, machine))
    return [problem for problem in checks if problem]


def _flavour(engine: dict[str, Any], machine: Machine) -> str:
    flavour, built = str(engine["flavour"]), str(engine["version"])
    wanted = ".".join(built.split(".")[:2])
    remedy = f'run `pip install "{INSTALL.get(flavour, flavour)}=={wanted}.*"`'
    found = machine.flavours.get(flavour)
    if found is None:
        return f"{flavour} is not installed, the plans were built with {flavour} {built}; {remedy}"
    if found.split(".")[:2] != built.split(".")[:2]:
        return f"the plans were built with {flavour} {built}, here is {found}, expected {wanted}; {remedy} or build again"
    return ""


def _driver(machine: Machine) -> str:
    if machine.driver is None:
        return "no NVIDIA driver answers, this target needs an NVIDIA GPU; install the driver, `nvidia-smi` names the GPU"
    if machine.cuda is None:
        return "torch is a build without CUDA, and it holds the GPU's memory; run `pip install torch` for a CUDA build"
    cuda, branch = int(machine.cuda.split(".")[0]), int(machine.driver.split(".")[0])
    least = LEAST_DRIVER.get(cuda, 0)
    if branch < least:
        return f"the driver is {machine.driver}, torch for CUDA {machine.cuda} expects {least} or newer; update the driver"
    return ""


def _visible(machine: Machine) -> str:
    return "" if machine.sm is not None else NO_GPU


def _gpu(manifest: EngineManifest, machine: Machine) -> str:
    if machine.sm is None:
        # without driver or CUDA the sentence about them says it all
        present = machine.driver is not None and machine.cuda is not None
        return NO_GPU if present else ""
    built = [int(sm) for sm in manifest.engine["sm"]]
    if machine.sm in built:
        return ""
    names = ", ".join(f"sm_{sm}" for sm in built)
    what = f"the plans were built for {names}, this GPU ({machine.gpu}) is sm_{machine.sm}"
    if manifest.target == "tensorrt-rtx" and machine.sm in RTX_WITHOUT:
        return f"{what}, for which TensorRT-RTX has no code; build with `build-engine --target tensorrt`"
    if machine.sm < OLDEST_SM:
        return f"{what}, older than TensorRT runs on; build with `build-engine --target onnx`"
    return f"{what}; build again with `build-engine --target {manifest.target}` on this machine"


def _warnings(manifest: EngineManifest, machine: Machine) -> tuple[str, ...]:
    """A plan carries its kernels as machine code, so another hash changes nothing that runs."""
    built = manifest.engine.get("kernel_hash", "")
    if built and machine.kernel_hash and built != machine.kernel_hash:
        reason = f"the plans hold attention kernels {built[:12]}, this version would build {machine.kernel_hash[:12]}"
        return (f"{reason}; they run as built, `build-engine` makes them anew",)
    return ()
