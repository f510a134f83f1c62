"""What a search found, in the report: its words, and a row a schedule of the front."""

from __future__ import annotations

from typing import Any

from ...profiles.tables import counted

TARGETS = {
    "speedup": "at least {:g}×",
    "latency_ms": "at most {:g} ms",
    "psnr_db": "at least {:g} dB",
    "ssim": "an SSIM of at least {:g}",
}
"""What a search may be asked for, in words."""
MEASURES = {"latency_ms": ("Latency, ms", ".0f"), "psnr_db": ("PSNR, dB", ".1f"), "ssim": ("SSIM", ".4f")}
"""Columns of the front, where they were measured."""


def front_text(found: dict[str, Any]) -> str:
    """What was asked, what was chosen, and what the best product of baselines would give; plain text.

    Args:
        found: `provenance["auto"]` of the schedule.
    """
    chosen, rival, target, costs = (found[key] for key in ("chosen", "best_product", "target", "costs"))
    asked = next(text.format(target[name]) for name, text in TARGETS.items() if target[name] is not None)
    counts = (
        ""
        if costs is None
        else (
            f" Speed is latency, predicted from times measured on {costs['target']}, {costs['device']}: dense takes "
            f"{costs['dense_ms']:,.0f} ms, of which {costs['fixed_ms']:,.0f} ms whatever the schedule."
        )
    )
    searched, held = (counted(found["prompts"][name], "prompt") for name in ("searched", "held_out"))
    return (
        f"Asked for {asked}.{counts} Of {found['schedules_run']} schedules that were run on {searched}, "
        f"the chosen one is the best that meets it: {chosen['speedup']:.2f}× at {chosen['psnr_db']:.1f} dB, and "
        f"{chosen['held_out_psnr_db']:.1f} dB on {held} held out. The best product of skip-N and "
        f"noguide-M that is as fast: {rival['speedup']:.2f}× at "
        f"{rival['psnr_db']:.1f} dB, held out {rival['held_out_psnr_db']:.1f} dB."
    )


def front_table(found: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows, plain text."""
    shown = {name: entry for name, entry in MEASURES.items() if name in found["chosen"]}
    rows = []
    for point in found["front"]:
        measured = [f"{point[name]:{form}}" for name, (_, form) in shown.items()]
        changes = "; ".join(f"scale {scale}: {_change(change)}" for scale, change in point["changes"].items())
        rows.append((f"{point['speedup']:.2f}×", *measured, _ends(point), changes or "all tokens"))
    return ("Speed-up", *(head for head, _ in shown.values()), "Scales", "Tokens and layers"), rows


def _ends(point: dict[str, Any]) -> str:
    ends = f"{point['scales_run']} run, {point['scales_guided']} with guidance"
    return f"{ends}, the others with its last difference" if point["guidance_reused"] else ends


def _change(change: dict[str, Any]) -> str:
    """What one scale gives up, in words."""
    share, skipped, reused = change["share"], change["skipped_layers"], change["reused_layers"]
    parts = [f"{share:.0%} of the tokens ({change['fill']})"] if share < 1 else []
    parts += [f"without layers {skipped}"] if skipped else []
    parts += [f"layers {reused} add their update of an earlier scale"] if reused else []
    return ", ".join(parts) or "all tokens"
