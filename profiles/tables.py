"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .baselines import dense
from .model import ModelProfile
from .plan import plan_scales, scale_flops, schedule_flops
from .schedule import Schedule


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])


def counted(number: int, what: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def milliseconds(value: float) -> str:
    """`3.42 ms`, `76.3 ms`, `225 ms`."""
    return f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    """`3.42`, `76.3`, `225`, `1916`: as many decimals as make three digits, none above them."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def rung_files_table(rungs: Mapping[str, Sequence[str]]) -> str:
    """By rung, the files that an image of it runs after the decision; every other file is of all images."""
    rows = {"rung": "after the decision", **{name: ", ".join(files) or "nothing" for name, files in rungs.items()}}
    width = max(len(name) for name in rows)
    return "\n".join(f"{name.ljust(width)}  {files}" for name, files in rows.items())


def flops_speedups(schedule: Schedule, profile: ModelProfile) -> list[float]:
    """Dense FLOPs over the schedule's, one number; with rungs one for each, the slowest first."""
    whole = schedule_flops(dense(profile), profile)
    return sorted(whole / schedule_flops(path, profile) for path in schedule.paths)


def speed_span(speedups: Sequence[float], digits: int = 2, sign: str = "x") -> str:
    """One speed-up, or the least and the most of several."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}{sign}" for value in (min(speedups), max(speedups))))


def schedule_table(schedule: Schedule, profile: ModelProfile) -> str:
    """What runs at each scale: tokens, rows, layers, kept tokens, FLOPs and their share of dense."""
    full = dense(profile)
    whole = {plan.scale: scale_flops(plan, profile) for plan in plan_scales(full)}
    plans = {plan.scale: plan for plan in plan_scales(schedule)}
    rows = [["scale", "h x w", "tokens", "rows", "layers", "kept", "fill", "GFLOP", "of dense"]]
    for rule in schedule.scales:
        name = [str(rule.scale), f"{rule.size[0]} x {rule.size[1]}", str(rule.count)]
        plan = plans.get(rule.scale)
        if plan is None:
            rows.append([*name, "0", "0", "0", "not run", "0.00", "0 %"])
            continue
        flops = scale_flops(plan, profile)
        kept = sorted({n for n in plan.kept if n})
        span = str(kept[0]) if len(kept) == 1 else f"{kept[0]}..{kept[-1]}"
        fill = plan.tokens.fill if plan.tokens else "-"
        share = f"{flops / whole[rule.scale]:.0%}".replace("%", " %")
        rows.append([*name, str(plan.rows), str(len(plan.layers)), span, fill, f"{flops / 1e9:.2f}", share])
    total, base = schedule_flops(schedule, profile), schedule_flops(full, profile)
    share = f"{total / base:.0%}".replace("%", " %")
    rows.append(["all", "", str(sum(r.count for r in schedule.scales)), "", "", "", "", f"{total / 1e9:.2f}", share])
    head = f"{schedule.model}: {schedule.policy}, {speed_span(flops_speedups(schedule, profile))} fewer FLOPs than dense"
    return "\n".join([head, table(rows), *_rung_lines(schedule, profile, base)])


def _rung_lines(schedule: Schedule, profile: ModelProfile, whole: int) -> list[str]:
    """What each rung costs; the table above is the first one's."""
    if schedule.decision is None:
        return []
    rows = [["rung", "GFLOP", "of dense"]]
    for rung, path in zip(schedule.rungs, schedule.paths, strict=True):
        flops = schedule_flops(path, profile)
        rows.append([rung.name, f"{flops / 1e9:.2f}", f"{flops / whole:.0%}".replace("%", " %")])
    return [
        "",
        f"each image picks one after scale {schedule.decision.scale}; the scales above are those of the first",
        table(rows),
    ]
