"""A bundle of the target `cuda`: weights and schedule. Its kernels are compiled, and its graph is captured, where it runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..models.family import family_of, stored_modules
from ..models.load import LoadedModel
from ..models.text.words import WordTextEncoder
from ..profiles.manifest import MANIFEST, SCHEDULE, WEIGHTS, EngineManifest, Graph
from ..profiles.schedule import Schedule
from .bundle import Progress, check_destination, make_manifest, swap
from .graph_files import scale_files


def build_cuda_bundle(
    model: LoadedModel, schedule: Schedule, out: Path, text: dict[str, Any], progress: Progress
) -> EngineManifest:
    """Write the bundle, then swap it in; needs no GPU. Arguments, result and errors as of `build_bundle`."""
    check_destination(out)
    schedule.check_model(model.profile)
    work = out.with_name(f".{out.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        progress(WEIGHTS)
        modules = stored_modules(model)
        if isinstance(model.text, WordTextEncoder):
            modules["text_encoder"] = model.text.encoder
        tensors = {f"{prefix}.{name}": t.contiguous() for prefix, m in modules.items() for name, t in m.state_dict().items()}
        save_file(tensors, work / WEIGHTS)
        (work / WEIGHTS).chmod(0o644)
        schedule.save(work / SCHEDULE)
        manifest = replace(make_manifest(model, schedule, text, _captured(model, schedule), work), target="cuda")
        (work / MANIFEST).write_bytes(manifest.to_json())
        swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _captured(model: LoadedModel, schedule: Schedule) -> dict[str, Graph]:
    """What goes in and out of each part; the parts have no files, they are captured together."""
    family = family_of(model.profile)
    graphs = {"condition.onnx": Graph(file="condition", inputs=("text", "lengths"), outputs=("condition",))}
    for plan, file in scale_files(schedule).items():
        step = family.step(model, plan)
        graphs[file] = Graph(file=file.removesuffix(".onnx"), inputs=step.input_names(), outputs=step.output_names())
    if schedule.decision is not None and schedule.decision.features == "detail":
        graphs["view.onnx"] = Graph(file="view", inputs=("summed",), outputs=("image",))
    return {**graphs, "decoder.onnx": Graph(file="decoder", inputs=("summed",), outputs=("image",))}
