"""Bundles of plans that the stand-in of TensorRT runs, and machines that they fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from host_device import HostDevice
from tensorrt_run_time import RecordingTensorRT
from toprovar.profiles.manifest import MANIFEST, EngineManifest, FileEntry, Graph, ScaleGraph, sha256_of
from toprovar.runtime.machine import Machine
from toprovar.runtime.tensorrt_engine import TensorRTEngine

MAX_BATCH, MAX_TEXT = 4, 64
ADA = {"driver": "580.65.06", "cuda": "13.0", "gpu": "stand-in", "sm": 89}
MACHINES = {
    "tensorrt": Machine(flavours={"tensorrt": "11.4.0.106"}, **ADA),  # type: ignore[arg-type]
    "tensorrt-rtx": Machine(flavours={"tensorrt-rtx": "1.7.1.116"}, **ADA),  # type: ignore[arg-type]
}


def as_plans(bundle: Path, out: Path, target: str = "tensorrt", words: bool = True) -> Path:
    """A bundle of the onnx target as one of plans that the stand-in runs; with `words` the text encoder is a plan too."""
    shutil.copytree(bundle, out)
    manifest = EngineManifest.load(bundle)
    layout = _layout(bundle / "weights.safetensors")

    def planned(graph: Graph) -> Graph:
        plan = Path(graph.file).with_suffix(".plan").name
        (out / plan).write_text(json.dumps({"onnx": str(out / graph.file)}))
        weights = {}
        for initializer in onnx.load(out / graph.file, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in initializer.external_data}
            if entries:
                weights[initializer.name] = layout[int(entries["offset"])]
        return replace(graph, plan=plan, weights=weights)

    def scales(found: tuple[ScaleGraph, ...]) -> tuple[ScaleGraph, ...]:
        return tuple(replace(scale, graph=planned(scale.graph)) for scale in found)

    rtx = target == "tensorrt-rtx"
    engine = {"flavour": target, "version": "1.7.1.116" if rtx else "11.4.0.106", "sm": [80, 89], "weight_bytes": 0}
    engine |= {
        "kernel_hash": "" if rtx else "abc",
        "max_batch": MAX_BATCH,
        "max_text": MAX_TEXT,
        "opt_level": 3,
        "workspace_gib": 2.5,
    }
    manifest = replace(
        manifest,
        target=target,
        condition=planned(manifest.condition),
        decoder=planned(manifest.decoder),
        words=planned(manifest.words) if manifest.words and words else manifest.words,
        view=manifest.view and planned(manifest.view),
        scales=scales(manifest.scales),
        rungs=tuple(replace(rung, scales=scales(rung.scales)) for rung in manifest.rungs),
    )
    plans = {
        path.name: {"bytes": path.stat().st_size, "seconds": 1.5, "layers": 12, "plugins": 1} for path in out.glob("*.plan")
    }
    entries = {name: FileEntry(bytes=(out / name).stat().st_size, sha256=sha256_of(out / name)) for name in plans}
    manifest = replace(manifest, engine={**engine, "plans": plans}, files={**manifest.files, **entries})
    (out / MANIFEST).write_bytes(manifest.to_json())
    return out


def opened(folder: Path, trt: RecordingTensorRT | None = None, whole: bool = True) -> tuple[TensorRTEngine, RecordingTensorRT]:
    """The engine of such a bundle, and the stand-in that runs it; `whole` False refuses a graph of more than one plan."""
    trt = trt or RecordingTensorRT()
    machine = MACHINES["tensorrt-rtx" if trt.rtx else "tensorrt"]
    return TensorRTEngine(folder, machine, HostDevice(trt, whole), trt, threads=1), trt


def _layout(path: Path) -> dict[int, str]:
    """Where in the file each tensor begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {8 + size + entry["data_offsets"][0]: name for name, entry in header.items() if name != "__metadata__"}
