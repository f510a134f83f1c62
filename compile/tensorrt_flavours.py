"""TensorRT and TensorRT-RTX: which versions build plans, and all that differs between them, in one place.

|                                    | TensorRT 10.13-10.16  | TensorRT 11.x        | TensorRT-RTX 1.x            |
|------------------------------------|-----------------------|----------------------|-----------------------------|
| strongly typed network             | STRONGLY_TYPED flag   | always, flag ignored | always, flag ignored        |
| builder flags FP16, BF16           | there, unused by us   | gone                 | gone                        |
| plugin of our attention            | PREFER_AOT flag       | PREFER_AOT flag      | none: the function's body   |
| plugin chosen over the function    | by `plugin_namespace` | the same             | never, attributes go away   |
| plans for                          | the GPU at hand       | the GPU at hand      | any of `targets`, no GPU    |
| operator Attention                 | from 10.14            | yes                  | yes, seen with 1.7          |
| timing cache                       | yes                   | yes                  | a no-op, not used           |
| numpy 2.4 and newer with a plugin  | fails                 | from 11.2            | no plugin                   |
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from ..profiles.errors import BundleError

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        name: The target's name.
        module: Python module.
        oldest: First version that is known to fit.
        below: First version that is not known any more.
        targets: GPUs that it builds plans for without having one; empty builds for the GPU at hand.
        plugins: Whether it takes Python plugins.
        attention: First version known to read the operator Attention; older ones get its function's body.
        timing_cache: Whether a timing cache has an effect.
        install: What mends its absence.
    """

    name: str
    module: str
    oldest: Version
    below: Version
    targets: tuple[int, ...]
    plugins: bool
    attention: Version
    timing_cache: bool
    install: str


FLAVOURS = {
    "tensorrt": Flavour(
        name="tensorrt",
        module="tensorrt",
        oldest=(10, 13),
        below=(12, 0),
        targets=(),
        plugins=True,
        attention=(10, 14),
        timing_cache=True,
        install='pip install "toprovar[tensorrt]"',
    ),
    "tensorrt-rtx": Flavour(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        oldest=(1, 1),
        below=(2, 0),
        targets=(75, 80, 86, 89, 120, 121),
        plugins=False,
        attention=(1, 7),
        timing_cache=False,
        install="pip install tensorrt-rtx-cu13",
    ),
}
RTX_DEFAULT_SM = (80, 86, 89, 120)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A flavour that is here.

    Attributes:
        flavour: Which one.
        trt: Its module.
    """

    flavour: Flavour
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def attention(self) -> bool:
        """Whether attention without entropy goes to it as an operator."""
        return numbers(self.version) >= self.flavour.attention

    def network_flags(self) -> int:
        """Bits for `Builder.create_network`."""
        kinds, flags = self.trt.NetworkDefinitionCreationFlag, 0
        if self.flavour.plugins:
            flags |= 1 << int(kinds.PREFER_AOT_PYTHON_PLUGINS)
            # up to 10.x a network is weakly typed unless told; 11 ignores the flag and warns
            flags |= 1 << int(kinds.STRONGLY_TYPED) if numbers(self.version) < (11,) else 0
        return flags


def toolkit(target: str) -> Toolkit:
    """Import the library of a target.

    Raises:
        BundleError: It is missing, does not load, or is of a version that we do not know.
    """
    flavour = FLAVOURS[target]
    try:
        found = Toolkit(flavour, importlib.import_module(flavour.module))
    except ModuleNotFoundError as problem:
        raise BundleError(f"--target {target}: {problem.name} is not installed; run `{flavour.install}`") from problem
    except (ImportError, OSError) as problem:
        first = str(problem).splitlines()[0]
        raise BundleError(f"--target {target}: {flavour.module} does not load ({first}); run `{flavour.install}`") from problem
    check_version(flavour, found.version)
    return found


def check_version(flavour: Flavour, version: str) -> None:
    """Refuse a version outside the table above."""
    if not flavour.oldest <= numbers(version)[:2] < flavour.below:
        span = f"{'.'.join(map(str, flavour.oldest))} or newer, below {'.'.join(map(str, flavour.below))}"
        raise BundleError(f"{flavour.name} {version}: expected {span}; run `{flavour.install}`")


def numbers(version: str) -> Version:
    """`1.7.1.116` as integers; what follows the first part that is no number is left out."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def target_sm(flavour: Flavour, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The GPUs to build for, sorted.

    Raises:
        BundleError: The flavour cannot build for one of them, or there is no GPU where one is needed.
    """
    if flavour.targets:
        check_targets(flavour.name, asked)
        return tuple(sorted(set(asked or RTX_DEFAULT_SM)))
    here = _gpu()
    if len(set(asked)) > 1 or (here and asked and asked[0] != here):
        known = f"sm_{here}" if here else "one number"
        raise BundleError(f"--sm {' '.join(map(str, asked))}: {flavour.name} builds for the GPU at hand only, {known}; omit it")
    if not asked and not here:
        raise BundleError(f"--target {flavour.name}: torch sees no GPU; build on the GPU that will run it, or tensorrt-rtx")
    return tuple(asked) or (here,)


def check_targets(target: str, asked: tuple[int, ...]) -> None:
    """Refuse GPUs that a flavour has no code for, as far as that is known without the library and a GPU."""
    flavour = FLAVOURS[target]
    wrong = [sm for sm in asked if flavour.targets and sm not in flavour.targets]
    if wrong:
        known = ", ".join(map(str, flavour.targets))
        remedy = "use `--target tensorrt` on that GPU" if any(sm >= 75 for sm in wrong) else "use `--target onnx`"
        raise BundleError(f"--sm {wrong[0]}: {flavour.name} has no such target, its targets are {known}; {remedy}")


def _gpu() -> int:
    """sm number of this process's GPU, 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor
