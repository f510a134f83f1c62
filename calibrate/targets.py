"""What a calibration may be asked for: the flags of the target, checked before anything slow begins."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..profiles.baselines import dense
from ..profiles.costs import CostTable
from ..profiles.errors import ScheduleError
from ..profiles.fidelity import need_ssim
from ..profiles.model import ModelProfile
from ..profiles.tables import counted, milliseconds

DEFAULT_SPEEDUP = 2.0


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the target and of the search for it."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-speedup",
        type=float,
        help="dense FLOPs over the schedule's, for toprovar and auto (default: 2.0); with --costs predicted latency, for auto",
    )
    target.add_argument("--target-latency-ms", type=float, help="for auto, with --costs: the nearest to dense that is so fast")
    target.add_argument("--min-psnr", type=float, help="for auto: the fastest schedule at least so near to dense, in dB")
    target.add_argument("--min-ssim", type=float, help="for auto: the same by SSIM, below 1")
    parser.add_argument("--costs", type=Path, help="for auto: measured times of the target; latency counts instead of FLOPs")
    parser.add_argument("--adaptive", action="store_true", help="for auto: each image picks a rung; the target is a mean")
    parser.add_argument(
        "--budget-minutes", type=float, help="for auto: what the search may take; it tries less where all would take longer"
    )


def check_target(args: argparse.Namespace, profile: ModelProfile) -> CostTable | None:
    """The target fits the policy and the model; a speed-up of 2 where none is given.

    Returns:
        The measured times, where they are given.

    Raises:
        ScheduleError: It does not.
        CostError: The table cannot be read, or is of another model.
    """
    if args.policy != "auto":
        for name in ("target_latency_ms", "min_psnr", "min_ssim", "costs"):
            if getattr(args, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ScheduleError(f"{flag} is for --policy auto; policy {args.policy} is made for --target-speedup")
        if args.adaptive:
            raise ScheduleError(
                f"--adaptive is for --policy auto, which knows what each prompt loses; got policy {args.policy}"
            )
    for name, least, most, example in (
        ("target_speedup", 1, math.inf, "2 = half the FLOPs"),
        ("target_latency_ms", 0, math.inf, "milliseconds a batch of the cost table"),
        ("min_psnr", 0, math.inf, "35 = hard to tell apart, in dB"),
        ("min_ssim", 0, 1, "0.98 = hard to tell apart"),
        ("budget_minutes", 0, math.inf, "minutes"),
    ):
        value = getattr(args, name)
        if value is not None and not least < value < most:
            span = f"more than {least}" if math.isinf(most) else f"between {least} and {most}"
            raise ScheduleError(f"--{name.replace('_', '-')} must be {span} ({example}), got {value:g}")
    if args.target_latency_ms is not None and args.costs is None:
        raise ScheduleError("--target-latency-ms needs --costs, the measured times of the target (benchmarks.onnx_costs)")
    if args.min_ssim is not None:
        need_ssim()
    if (args.target_latency_ms, args.min_psnr, args.min_ssim, args.target_speedup) == (None,) * 4:
        args.target_speedup = DEFAULT_SPEEDUP
    if args.costs is None:
        return None
    costs = CostTable.load(args.costs)
    # a table of another model or without the dense points is told now
    costs.predict(dense(profile))
    return costs


def search_summary(found: dict[str, Any]) -> Iterator[str]:
    """Lines on what a search chose, what the best product of baselines would give, and whether the target holds.

    Args:
        found: `provenance["auto"]` of the schedule.
    """
    if "adaptive" in found:
        yield from _rule_lines(found["adaptive"])
        yield "              in the lines below, the single schedule that was found for the same target"
    chosen, rival, target, costs = (found[key] for key in ("chosen", "best_product", "target", "costs"))
    held = f"on {counted(found['prompts']['held_out'], 'held-out prompt')}"
    if costs is not None:
        yield (
            f"latency       {milliseconds(chosen['latency_ms'])} predicted, {chosen['speedup']:.2f}x faster than dense "
            f"({milliseconds(costs['dense_ms'])}), on {costs['target']}, {costs['device']}"
        )
    yield f"fidelity      {_fidelity(chosen)} to dense; {_fidelity(chosen, 'held_out_')} {held}"
    yield f"beside it     best of skip-N with noguide-M: {_fidelity(rival, 'held_out_')} {held}, {rival['speedup']:.2f}x"
    # a faster schedule may draw the very same images
    if chosen["speedup"] <= 1:
        yield "target        only the dense schedule meets it"
    for name, unit in (("psnr_db", " dB"), ("ssim", "")):
        asked = target[name]
        if asked is not None and chosen[f"held_out_{name}"] < asked:
            told = f"the held-out prompts reach {chosen[f'held_out_{name}']:g}{unit}, asked were {asked:g}{unit}"
            yield f"target        missed on new prompts: {told}; more prompts make the choice surer"


def _fidelity(point: dict[str, Any], prefix: str = "") -> str:
    ssim = point.get(f"{prefix}ssim")
    return f"{point[f'{prefix}psnr_db']:.1f} dB" + (f", SSIM {ssim:.4f}" if ssim is not None else "")


def _rule_lines(found: dict[str, Any]) -> Iterator[str]:
    """Lines on the rule: what it reads, what it picks, and whether a single schedule would do as well.

    Args:
        found: `provenance["auto"]["adaptive"]` of the schedule.
    """
    held, unit = found["held_out"], "" if found["measure"] == "ssim" else " dB"
    digits = 4 if found["measure"] == "ssim" else 2
    low_to_high = " < ".join(
        part
        for pair in zip(found["order"], [*(f"{limit:.4g}" for limit in found["limits"]), ""], strict=True)
        for part in pair
        if part
    )
    rungs = ", ".join(f"{r['name']} {r['speedup']:.2f}x for {r['held_out_share']:.0%}" for r in found["rungs"])
    by = f"{abs(held['gain']):.{digits}f}{unit}"
    single = f"a mixture of single schedules drawn blindly, {held['single_fidelity']:.{digits}f}{unit}"
    verdict = {
        "better": f"{by} better than {single}",
        "worse": f"{by} worse than {single}",
        "within noise": f"no difference beyond noise ({held['gain']:+.{digits}f}{unit}) to {single}",
    }[held["verdict"]]
    yield f"rule          {found['feature']} of the entropy after scale {found['scale']}: {low_to_high}"
    yield f"rungs         {rungs} of {counted(held['prompts'], 'held-out prompt')}"
    yield f"adaptive      {held['speedup']:.2f}x on average at {held['fidelity']:.{digits}f}{unit}: {verdict}"
    if held["verdict"] != "better":
        yield (
            "advice        the rule brings nothing here: run again without --adaptive for a single schedule; trials are kept"
        )
