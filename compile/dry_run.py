"""`build-engine --dry-run`: what would be built, how large, how long, in how much memory."""

from __future__ import annotations

from ..profiles.model import ModelProfile
from ..profiles.plan import plan_paths
from ..profiles.schedule import Schedule
from ..profiles.tables import schedule_table
from .graph_files import graph_files, scale_files
from .plan_options import PlanOptions

# measured on two cores, 13 graphs of the tiny model in 88 s: seconds to export one layer of one scale, and the rest of a graph
SECONDS_A_LAYER, SECONDS_A_GRAPH = 0.9, 1.2
BYTES_A_LAYER = 30_000
# 7.3 GB for the 4.5 GB of Infinity-2B in fp16
MEMORY_A_WEIGHT_BYTE = 1.45
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# TensorRT-RTX 1.7 on two busy cores, whatever the number of GPUs: 33.0 MB and 33 s for 32 layers of Infinity-2B, 4.0 MB for two
PLAN_BYTES_A_LAYER, PLAN_BYTES, PLAN_SECONDS_A_LAYER = 1_000_000, 2_000_000, 1.0


def dry_run(
    schedule: Schedule, profile: ModelProfile, precision: str, options: PlanOptions | None, captured: bool = False
) -> int:
    """Print the prediction; build nothing. `captured` is the target `cuda`, which has no graphs of its own."""
    import torch

    from ..models.family import family_of

    plans = scale_files(schedule)
    with torch.device("meta"):
        family = family_of(profile)
        modules = (family.transformer(profile.transformer), family.decoder(family.vae(profile.vae)))
    weights = sum(p.numel() * WEIGHT_BYTES[precision] for module in modules for p in module.parameters())
    if captured:
        print(schedule_table(schedule, profile))
        print(f"would write  {weights / 1e6:.0f} MB of weights, {precision}, and the schedule")
        one = f", one up to the decision and {len(schedule.rungs)} of rungs" if schedule.rungs else ""
        print(f"graph        captured where it runs, on the first image of a size{one}")
        return 0
    layers = sum(len(plan.layers) for plan in plans)
    graphs = len(graph_files(schedule)) + (profile.text.kind == "words")
    seconds = layers * SECONDS_A_LAYER + graphs * SECONDS_A_GRAPH
    print(schedule_table(schedule, profile))
    print(f"would build  {graphs} ONNX graphs of about {layers * BYTES_A_LAYER / 1e6:.1f} MB in all")
    if options is not None:
        size = layers * PLAN_BYTES_A_LAYER + graphs * PLAN_BYTES
        seconds += layers * PLAN_SECONDS_A_LAYER
        images = f"up to {options.max_batch} images and {options.max_text} text tokens"
        print(f"             {graphs} plans of about {size / 1e6:.0f} MB in all, {options.target}, {images}")
    if schedule.rungs:
        alone = sum(len(path) for path in plan_paths(schedule))
        print(f"rungs        {len(schedule.rungs)} of {alone} scales in all, in {len(plans)} graphs: rungs share what is equal")
    print(f"weights      {weights / 1e6:.0f} MB, once, {precision}")
    print(f"memory       about {MEMORY_A_WEIGHT_BYTE * weights / 1e9 + 0.8:.1f} GB while building")
    print(f"time         about {seconds:.0f} s on two cores")
    return 0
