"""What a rule for rungs looks like in the report: its words, its table, and every prompt's number over what it lost."""

from __future__ import annotations

from typing import Any

from ...profiles.fidelity import psnr
from ...profiles.tables import counted
from ..figures import BLUE, GREY, ORANGE, charted, new_figure

COLOURS = {"quality": BLUE, "balanced": GREY, "fast": ORANGE}
HEADS = ("Rung", "Speed-up", "PSNR of all prompts, dB", "share of the prompts", "share of held-out prompts")
VERDICTS = {
    "better": "The rule is better.",
    "worse": "The rule is worse: use a single schedule.",
    "within noise": "That is within the noise of so few prompts: the rule brings nothing here; use a single schedule.",
}


def rule_text(found: dict[str, Any]) -> str:
    """The rule, and what it brings on either set of prompts; plain text.

    Args:
        found: `provenance["auto"]["adaptive"]` of the schedule.
    """
    unit, digits = ("", 4) if found["measure"] == "ssim" else (" dB", 2)
    limits = ", ".join(f"{limit:.4g}" for limit in found["limits"])
    text = (
        f"After scale {found['scale']} each image picks its rung by one number of that scale’s entropy map, "
        f"“{found['feature']}”; from low values to high: {', '.join(found['order'])}, with limits at {limits}. "
        "The schedule above is the first rung’s."
    )
    for name, words in (("searched", "searched on"), ("held_out", "held out")):
        side = found[name]
        prompts = counted(side["prompts"], "prompt")
        text += (
            f" On {prompts} {words}: {side['speedup']:.2f}× on average at {side['fidelity']:.{digits}f}{unit}; "
            f"single schedules mixed blindly to the same speed: {side['single_fidelity']:.{digits}f}{unit}."
        )
    return f"{text} {VERDICTS[found['held_out']['verdict']]}"


def rule_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a rung, under HEADS."""
    return [
        (r["name"], f"{r['speedup']:.2f}×", f"{r['psnr_db']:.1f}", f"{r['share']:.0%}", f"{r['held_out_share']:.0%}")
        for r in found["rungs"]
    ]


@charted
def rule_chart(found: dict[str, Any]) -> Any:
    """The feature over the fidelity, a point a prompt, coloured by rung; lines are the limits."""
    figure = new_figure(7.2, 3.6)
    axes = figure.add_subplot()
    with_ssim = found["measure"] == "ssim"
    for name, colour in COLOURS.items():
        for held_out, marker in ((False, "o"), (True, "x")):
            shown = [i for i in found["images"] if i["rung"] == name and i["held_out"] == held_out]
            if shown:
                reached = [1 - i["loss"] if with_ssim else psnr(i["loss"]) for i in shown]
                label = f"{name}, held out" if held_out else name
                axes.plot([i["value"] for i in shown], reached, color=colour, marker=marker, linestyle="", label=label)
    for limit in found["limits"]:
        axes.axvline(limit, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"{found['feature']} of the entropy after scale {found['scale']}")
    axes.set_ylabel("SSIM to dense" if with_ssim else "PSNR to dense, dB")
    axes.set_title("What each image’s rung was picked by, and how near it came")
    axes.legend()
    return figure
