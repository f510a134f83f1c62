"""The engine bundle's manifest: which file is which graph, what goes in and out, and the SHA-256 of everything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import BundleError
from .model import ModelProfile
from .strict import build

MANIFEST = "manifest.json"
SCHEDULE = "schedule.yaml"
WEIGHTS = "weights.safetensors"
TARGETS = ("onnx", "cuda", "tensorrt", "tensorrt-rtx")
PLAN_TARGETS = ("tensorrt", "tensorrt-rtx")
"""Targets whose graphs are compiled to plans; their weights are inputs, one copy for all plans."""
PRECISIONS = ("fp32", "fp16", "bf16")
OUTPUT_SUFFIX = ".out"
"""Of every graph output: an input and an output of one graph cannot share a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One subgraph.

    Attributes:
        file: Its ONNX model in the bundle; of the target `cuda` only a name, as one graph is captured of all.
        inputs: Names of the state's tensors that go in, in order.
        outputs: Names of those that come out, in order.
        plan: The plan compiled from it, or empty.
        weights: Of a plan, its weight inputs and the tensors of `weights.safetensors` that feed them.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    plan: str = ""
    weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleGraph:
    """The subgraph of one scale that runs.

    Attributes:
        scale: 0-based index.
        graph: Its file; inputs and outputs are names of the state.
        offset: First token of the scale in the image's noise.
        tokens: Tokens of the scale, h * w.
        guidance: Whether unconditional rows run.
        flops: Of the scale, an image.
    """

    scale: int
    graph: Graph
    offset: int
    tokens: int
    guidance: bool
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RungGraphs:
    """One way to end an image.

    Attributes:
        name: As the schedule names it.
        scales: Those after the decision, coarse to fine; rungs share the graphs of scales that compute the same.
        flops_speedup: Dense FLOPs over those of an image that ends so.
    """

    name: str
    scales: tuple[ScaleGraph, ...]
    flops_speedup: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """What a bundle is, and all that must be true before it runs.

    Attributes:
        toprovar: Version that built it.
        target: One of TARGETS.
        profile: The model profile, as a mapping.
        schedule_sha256: Digest of what runs (`Schedule.digest`).
        policy: How the schedule was made.
        flops_speedup: Dense FLOPs over the schedule's; with rungs the first one's.
        weights: SHA-256 of the weight files it was built from, by part.
        prompts_sha256: Of the calibration prompts, or empty.
        versions: Of the packages that built it.
        text_encoder: `kind` and what is needed to make it again.
        condition: Subgraph of the text conditioning.
        decoder: Subgraph of the VAE decoder.
        words: Subgraph of the word-level text encoder, or None.
        scales: Coarse to fine; with rungs those that all images share, up to the decision.
        files: Every file of the bundle but the manifest.
        precision: Of weights and state, one of PRECISIONS.
        engine: Of plans, what must fit the machine: `flavour`, `version`, `sm` (targets), `kernel_hash`, build options.
        rungs: Ways to end an image, or none.
        view: Subgraph that decodes what the decision looks at, where it looks at images.
    """

    toprovar: str
    target: str
    profile: dict[str, Any]
    schedule_sha256: str
    policy: str
    flops_speedup: float
    weights: dict[str, str]
    prompts_sha256: str
    versions: dict[str, str]
    text_encoder: dict[str, Any]
    condition: Graph
    decoder: Graph
    words: Graph | None
    scales: tuple[ScaleGraph, ...]
    files: dict[str, FileEntry] = field(default_factory=dict)
    precision: str = "fp32"
    engine: dict[str, Any] = field(default_factory=dict)
    rungs: tuple[RungGraphs, ...] = ()
    view: Graph | None = None

    @property
    def all_scales(self) -> tuple[ScaleGraph, ...]:
        """Those of every rung too; a graph that rungs share stands once."""
        found = {scale.graph.file: scale for scale in self.scales}
        found |= {scale.graph.file: scale for rung in self.rungs for scale in rung.scales}
        return tuple(found.values())

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """Every subgraph once, in the order they run."""
        optional = (graph for graph in (self.words, self.view) if graph is not None)
        return (self.condition, *(scale.graph for scale in self.all_scales), self.decoder, *optional)

    def model_profile(self) -> ModelProfile:
        return ModelProfile.from_dict(self.profile, f"{MANIFEST}: profile")

    def to_json(self) -> bytes:
        """Deterministic JSON, as it stands in the file."""
        return (json.dumps({"format": 1, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> EngineManifest:
        """Read `manifest.json` of a bundle.

        Raises:
            BundleError: There is none, or it is damaged or of another format.
        """
        path = folder / MANIFEST
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such bundle; build one with `build-engine --out {folder}`")
        if not path.is_file():
            raise BundleError(f"{folder}: is no engine bundle, it has no {MANIFEST}; build one with `build-engine`")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise BundleError(f"{path}: damaged ({problem}); build the bundle again") from problem
        if not isinstance(data, dict) or data.pop("format", None) != 1:
            raise BundleError(f"{path}: is of another format; this version reads format 1, build the bundle again")
        return cls._from_dict(data, str(path))

    @classmethod
    def _from_dict(cls, data: dict[str, Any], where: str) -> EngineManifest:
        def graph(value: Any, name: str) -> Graph:
            return build(Graph, value, f"{where}: {name}", BundleError)

        def scales(items: Any) -> tuple[ScaleGraph, ...]:
            place = f"{where}: scales"
            return tuple(build(ScaleGraph, {**s, "graph": graph(s["graph"], "scales")}, place, BundleError) for s in items)

        data = dict(data)
        try:
            for name in ("condition", "decoder", "words", "view"):
                if data.get(name) is not None:
                    data[name] = graph(data[name], name)
            data["scales"] = scales(data["scales"])
            data["rungs"] = tuple(
                build(RungGraphs, {**rung, "scales": scales(rung["scales"])}, f"{where}: rungs", BundleError)
                for rung in data.get("rungs", ())
            )
            data["files"] = {
                name: build(FileEntry, entry, f"{where}: files: {name}", BundleError) for name, entry in data["files"].items()
            }
        except (KeyError, TypeError, AttributeError) as problem:
            raise BundleError(f"{where}: damaged ({problem!r}); build the bundle again") from problem
        return build(cls, data, where, BundleError)

    def verify(self, folder: Path) -> None:
        """Compare every file with its recorded size and SHA-256.

        Raises:
            BundleError: Files are missing or differ; all of them are listed.
        """
        problems = []
        for name, entry in sorted(self.files.items()):
            path = folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry.bytes:
                problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry.bytes}")
            elif sha256_of(path) != entry.sha256:
                problems.append(f"{name} has another SHA-256 than recorded")
        if problems:
            raise BundleError(f"{folder}: {'; '.join(problems)}; build the bundle again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    # larger ones than `hashlib.file_digest` takes: after each, the thread waits for one that imports
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
