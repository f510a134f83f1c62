"""Build an engine bundle: export every subgraph, lay the weights out once, write the manifest, then swap it in.

The bundle is made in a folder beside its destination and renamed when it is complete; an older bundle stays until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from .. import __version__
from ..models.infinity.generate import build_steps
from ..models.load import LoadedModel
from ..models.text.words import WordTextEncoder
from ..profiles.baselines import dense
from ..profiles.errors import BundleError
from ..profiles.manifest import MANIFEST, SCHEDULE, WEIGHTS, EngineManifest, FileEntry, Graph, ScaleGraph, sha256_of
from ..profiles.plan import plan_scales, scale_flops, schedule_flops
from ..profiles.schedule import Schedule
from .graphs import OPSET, Exported, export_conditioning, export_decoder, export_scale, export_words
from .plan_bundle import compile_plans, engine_entry, kept_folder, with_plan
from .plan_record import PlanRecord
from .plans import PlanBuilder
from .weight_store import WeightStore, place

Job = tuple[str, Callable[[], Exported]]
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
        records = compile_plans(builder, exported, schedule.guided, out, work, progress) if builder is not None else {}
        manifest = _manifest(model, schedule, text, exported, work)
        if builder is not None:
            weight_bytes = sum(length for _, length in layout.values())
            engine = engine_entry(builder, records, weight_bytes)
            manifest = replace(_with_plans(manifest, records), target=builder.kit.flavour.name, engine=engine)
        (work / MANIFEST).write_bytes(manifest.to_json())
        _swap(work, out)
        shutil.rmtree(kept_folder(out), ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def check_destination(out: Path) -> None:
    """Refuse to replace what is no bundle."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists()):
        raise BundleError(f"{out}: exists and is no engine bundle; choose another --out or remove it")


def scale_file(scale: int) -> str:
    """A scale's graph; beside the weights, since ONNX refuses external data outside the graph's own folder."""
    return f"scale_{scale:02d}.onnx"


def graph_files(schedule: Schedule) -> tuple[str, ...]:
    """Files of the subgraphs, in the order they are built."""
    scales = tuple(scale_file(rule.scale) for rule in schedule.scales if rule.run)
    return ("condition.onnx", *scales, "decoder.onnx")


def _jobs(model: LoadedModel, schedule: Schedule, store: WeightStore) -> Iterator[Job]:
    profile = model.profile
    if isinstance(model.text, WordTextEncoder):
        encoder = model.text.encoder
        yield "words.onnx", lambda: export_words(encoder, encoder.max_length, store)
    yield "condition.onnx", lambda: export_conditioning(model.transformer, store)
    for step in build_steps(model.transformer, profile, schedule):
        yield scale_file(step.plan.scale), lambda step=step: export_scale(step, store)  # type: ignore[misc]
    latent = (profile.vae.bits, *profile.latent_size)
    yield "decoder.onnx", lambda: export_decoder(model.vae.decoder, latent, store)


def _export_all(
    model: LoadedModel, schedule: Schedule, work: Path, progress: Progress
) -> tuple[dict[str, Exported], dict[str, tuple[int, int]]]:
    """Graphs by file, and offset and length of every weight; both are written to `work`."""
    store = WeightStore()
    store.register("transformer", model.transformer)
    store.register("vae.decoder", model.vae.decoder)
    if isinstance(model.text, WordTextEncoder):
        store.register("text_encoder", model.text.encoder)
    exported: dict[str, Exported] = {}
    for name, job in _jobs(model, schedule, store):
        progress(name)
        exported[name] = job()
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
    scales = tuple(replace(scale, graph=with_plan(scale.graph, records)) for scale in manifest.scales)
    condition, decoder = with_plan(manifest.condition, records), with_plan(manifest.decoder, records)
    return replace(manifest, words=words, condition=condition, decoder=decoder, scales=scales)


def _manifest(
    model: LoadedModel, schedule: Schedule, text: dict[str, Any], exported: dict[str, Exported], work: Path
) -> EngineManifest:
    profile = model.profile
    graphs = {name: Graph(file=name, inputs=graph.inputs, outputs=graph.outputs) for name, graph in exported.items()}
    scales = []
    for plan in plan_scales(schedule):
        scales.append(
            ScaleGraph(
                scale=plan.scale,
                graph=graphs[scale_file(plan.scale)],
                offset=plan.offset,
                tokens=plan.count,
                guidance=plan.guidance,
                flops=scale_flops(plan, profile),
            )
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
        flops_speedup=schedule_flops(dense(profile), profile) / schedule_flops(schedule, profile),
        weights=model.digests,
        prompts_sha256=str(schedule.provenance.get("prompts", {}).get("sha256", "")),
        versions={**{name: version(name) for name in PACKAGES}, "opset": str(OPSET)},
        text_encoder=text,
        condition=graphs["condition.onnx"],
        decoder=graphs["decoder.onnx"],
        words=graphs.get("words.onnx"),
        scales=tuple(scales),
        files=files,
        precision=next(name for name, dtype in DTYPES.items() if dtype == model.transformer.pos_start.dtype),
    )


def _swap(work: Path, out: Path) -> None:
    """Put the finished folder in place of an older bundle."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
