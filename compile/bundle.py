"""Build an engine bundle: export every subgraph, lay the weights out once, write the manifest, then swap it in.

The bundle is made in a folder beside its destination and renamed when it is complete; an older bundle stays until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from .. import __version__
from ..models.family import family_of, stored_modules
from ..models.load import LoadedModel
from ..models.rungs import View
from ..models.text.words import WordTextEncoder
from ..profiles.baselines import dense
from ..profiles.errors import BundleError
from ..profiles.manifest import (
    MANIFEST,
    SCHEDULE,
    WEIGHTS,
    EngineManifest,
    FileEntry,
    Graph,
    RungGraphs,
    ScaleGraph,
    sha256_of,
)
from ..profiles.model import ModelProfile
from ..profiles.plan import plan_paths, scale_flops, schedule_flops
from ..profiles.schedule import Schedule
from .export_cache import exported_once, reusing_graphs
from .graph_files import graph_files, scale_files
from .graphs import OPSET, export_conditioning, export_decoder, export_scale, export_view, export_words
from .plan_bundle import compile_plans, engine_entry, kept_folder, with_plan
from .plan_record import PlanRecord
from .plans import PlanBuilder
from .weight_store import Exported, WeightStore, place

Job = tuple[str, Hashable, Callable[[], Exported]]
"""File, what the graph computes, and how it is made."""
Progress = Callable[[str], None]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


def build_bundle(
    model: LoadedModel,
    schedule: Schedule,
    out: Path,
    text: dict[str, Any],
    progress: Progress,
    builder: PlanBuilder | None = None,
) -> EngineManifest:
    """Export everything and put the bundle in place.

    Args:
        model: On the CPU; its dtype is the bundle's precision.
        schedule: Fits the model's profile.
        out: Folder of the bundle; an existing bundle there is replaced, anything else is refused.
        text: How the run time makes the text encoder again; recorded in the manifest.
        progress: Called with the name of each graph before it is exported, and of each plan before it is built.
        builder: Compiles every graph to a plan; None for the target `onnx`.

    Raises:
        BundleError: `out` is a folder that holds something else than a bundle.
    """
    check_destination(out)
    work = out.with_name(f".{out.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        exported, layout = _export_all(model, schedule, work, progress)
        records = compile_plans(builder, exported, schedule, out, work, progress) if builder is not None else {}
        graphs = {name: Graph(file=name, inputs=graph.inputs, outputs=graph.outputs) for name, graph in exported.items()}
        manifest = make_manifest(model, schedule, text, graphs, work)
        if builder is not None:
            weight_bytes = sum(length for _, length in layout.values())
            engine = engine_entry(builder, records, weight_bytes)
            manifest = replace(_with_plans(manifest, records), target=builder.kit.flavour.name, engine=engine)
        (work / MANIFEST).write_bytes(manifest.to_json())
        swap(work, out)
        shutil.rmtree(kept_folder(out), ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def check_destination(out: Path) -> None:
    """Refuse to replace what is no bundle."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists()):
        raise BundleError(f"{out}: exists and is no engine bundle; choose another --out or remove it")


def _jobs(model: LoadedModel, schedule: Schedule, store: WeightStore) -> Iterator[Job]:
    profile = model.profile
    schedule.check_model(profile)
    if isinstance(model.text, WordTextEncoder):
        encoder = model.text.encoder
        yield "words.onnx", "words", lambda: export_words(encoder, encoder.max_length, store)
    yield "condition.onnx", "condition", lambda: export_conditioning(model.transformer, store)
    for plan, file in scale_files(schedule).items():
        step = family_of(profile).step(model, plan)
        yield file, plan.computed, lambda step=step: export_scale(step, store)  # type: ignore[misc]
    latent = (profile.transformer.latent_channels, *profile.latent_size)
    yield "decoder.onnx", "decoder", lambda: export_decoder(model.decoder, latent, store)
    if "view.onnx" in graph_files(schedule):
        assert schedule.decision is not None, "only a decision looks at images"
        view = View(model.decoder, profile, schedule.decision)
        yield "view.onnx", ("view", view.size), lambda: export_view(view, latent, store)


def _export_all(
    model: LoadedModel, schedule: Schedule, work: Path, progress: Progress
) -> tuple[dict[str, Exported], dict[str, tuple[int, int]]]:
    """Graphs by file, and offset and length of every weight; both are written to `work`."""
    store = WeightStore()
    for prefix, module in stored_modules(model).items():
        store.register(prefix, module)
    if isinstance(model.text, WordTextEncoder):
        store.register("text_encoder", model.text.encoder)
    exported: dict[str, Exported] = {}
    # scales share what their layers compute
    with reusing_graphs():
        for name, what, job in _jobs(model, schedule, store):
            progress(name)
            exported[name] = exported_once(model, what, store, job)
    progress(WEIGHTS)
    layout = store.save(work / WEIGHTS)
    for name, graph in exported.items():
        place(graph.proto, graph.weights, layout)
        (work / name).write_bytes(graph.proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(work / name))
    schedule.save(work / SCHEDULE)
    return exported, layout


def _with_plans(manifest: EngineManifest, records: dict[str, PlanRecord]) -> EngineManifest:
    words = manifest.words and with_plan(manifest.words, records)
    view = manifest.view and with_plan(manifest.view, records)
    condition, decoder = with_plan(manifest.condition, records), with_plan(manifest.decoder, records)

    def planned(scales: tuple[ScaleGraph, ...]) -> tuple[ScaleGraph, ...]:
        return tuple(replace(scale, graph=with_plan(scale.graph, records)) for scale in scales)

    rungs = tuple(replace(rung, scales=planned(rung.scales)) for rung in manifest.rungs)
    scales = planned(manifest.scales)
    return replace(manifest, words=words, condition=condition, decoder=decoder, view=view, scales=scales, rungs=rungs)


def make_manifest(
    model: LoadedModel, schedule: Schedule, text: dict[str, Any], graphs: dict[str, Graph], work: Path
) -> EngineManifest:
    """The manifest of a finished folder; `graphs` by their ONNX file."""
    profile, dense_flops = model.profile, schedule_flops(dense(model.profile), model.profile)
    paths = _scale_graphs(schedule, profile, graphs)
    last = schedule.decision.scale if schedule.decision is not None else len(schedule.scales)
    rungs = tuple(
        RungGraphs(
            name=rung.name,
            scales=tuple(scale for scale in path if scale.scale > last),
            flops_speedup=dense_flops / sum(scale.flops for scale in path),
        )
        for rung, path in zip(schedule.rungs, paths, strict=False)
    )
    files = {
        path.relative_to(work).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }
    return EngineManifest(
        toprovar=__version__,
        target="onnx",
        profile=profile.to_dict(),
        schedule_sha256=schedule.digest(),
        policy=schedule.policy,
        flops_speedup=dense_flops / sum(scale.flops for scale in paths[0]),
        weights=model.digests,
        prompts_sha256=str(schedule.provenance.get("prompts", {}).get("sha256", "")),
        versions={**{name: version(name) for name in PACKAGES}, "opset": str(OPSET)},
        text_encoder=text,
        condition=graphs["condition.onnx"],
        decoder=graphs["decoder.onnx"],
        words=graphs.get("words.onnx"),
        scales=tuple(scale for scale in paths[0] if scale.scale <= last),
        rungs=rungs,
        view=graphs.get("view.onnx"),
        files=files,
        precision=next(name for name, dtype in DTYPES.items() if dtype == model.weight.dtype),
    )


def _scale_graphs(schedule: Schedule, profile: ModelProfile, graphs: dict[str, Graph]) -> tuple[tuple[ScaleGraph, ...], ...]:
    """The scales of every path, the schedule's only one where it has no rungs."""
    files = scale_files(schedule)
    return tuple(
        tuple(
            ScaleGraph(
                scale=plan.scale,
                graph=graphs[files[plan]],
                offset=plan.offset,
                tokens=plan.count,
                guidance=plan.guidance,
                flops=scale_flops(plan, profile),
            )
            for plan in path
        )
        for path in plan_paths(schedule)
    )


def swap(work: Path, out: Path) -> None:
    """Put the finished folder in place of an older bundle."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
