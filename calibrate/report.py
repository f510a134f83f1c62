"""The calibration report: one HTML file that needs nothing beside it and no network.

Figures are PNG in base64, styles are inline, and there is no date in it: the same measurements and schedule give the same
bytes, so a report can be compared and kept under version control.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..profiles.baselines import dense
from ..profiles.errors import MeasurementError
from ..profiles.measurements import Measurements
from ..profiles.model import ModelProfile
from ..profiles.pages import fill_page
from ..profiles.plan import TEXT_TOKENS, ScalePlan, plan_scales, scale_flops
from ..profiles.schedule import Schedule
from ..profiles.strict import write_atomic
from ..profiles.tables import flops_speedups, speed_span
from . import example_figures as examples
from . import figures
from .policy import representative_scale
from .search import figures as search_figures
from .search import front_page, rule_page

TEMPLATE = Path(__file__).with_name("report.html")
NO_EXAMPLES = "<p>The measurements hold no example images.</p>"
CONSTANTS = {
    "tau": "tau",
    "tau_side": "rho against tau",
    "first_pruned_scale": "first pruned scale D",
    "representative_scale": "scale at which layers are scored",
    "ratio": "sigma1 / sigma2",
    "beta": "beta",
    "entropy": "entropies",
    "alpha": "alpha",
    "fill": "a pruned token's slot",
    "entropy_layer": "layer that ranks tokens",
    "guidance": "guidance and scales",
}
"""Names of the policy's constants, in the order of the table."""


def write_report(path: Path, measurements: Measurements, schedule: Schedule, profile: ModelProfile) -> None:
    """Write the report, atomically.

    Args:
        path: Of the .html file.
        measurements: Of the dense model.
        schedule: Made for this model, by any policy.
        profile: The model.

    Raises:
        ScheduleError: The schedule is for another model or geometry.
        MeasurementError: The measurements are, or they hold no image.
    """
    schedule.check_model(profile)
    if measurements.sizes != profile.sizes or measurements.header["layers"] != profile.transformer.depth:
        raise MeasurementError(f"measurements are not of model {profile.name} at this geometry; run `calibrate` for it")
    page = fill_page(TEMPLATE, _parts(measurements, schedule, profile))
    write_atomic(path, page.encode())


def _parts(measurements: Measurements, schedule: Schedule, profile: ModelProfile) -> dict[str, str]:
    """What stands in the template's places, as HTML."""
    found = schedule.provenance.get("toprovar")
    scale = found["representative_scale"] if found else representative_scale(profile.sizes)
    score = found["score"] if found else None
    return {
        "title": html.escape(f"Calibration report: {profile.name}, policy {schedule.policy}"),
        "facts": _facts(measurements, schedule, profile),
        "schedule_picture": _figure(figures.schedule_picture(schedule), "The schedule: share of tokens by scale and layer"),
        "schedule_table": _schedule_table(schedule, profile),
        "constants": _constants(found, schedule) if found else "",
        "front": _front_section(schedule.provenance.get("auto")),
        "rho_chart": _figure(figures.rho_chart(measurements, found), "rho by scale"),
        "entropy_chart": _figure(figures.entropy_chart(measurements), "Mean entropy by scale"),
        "layer_maps": _figure(figures.layer_maps(measurements, scale, score), "Entropy, updates and structure by layer"),
        "entropy_maps": _entropy_section(measurements, schedule),
        "kept_tokens": _kept_section(measurements, schedule),
        "flops_chart": _figure(figures.flops_chart(schedule, profile), "FLOPs by scale, dense beside the schedule"),
        "counted": _counted(profile),
    }


def _facts(measurements: Measurements, schedule: Schedule, profile: ModelProfile) -> str:
    header = measurements.header
    (height, width), speedup = profile.image_size, speed_span(flops_speedups(schedule, profile), 3, "×")
    target = schedule.provenance.get("target_speedup")
    weights = hashlib.sha256(json.dumps(header["weights"], sort_keys=True).encode()).hexdigest()
    rows = [
        ("Model", html.escape(f"{profile.name}, {width}×{height} pixels, {profile.transformer.depth} layers")),
        ("Policy", html.escape(schedule.policy) + (f", target {target:g}×" if target else "")),
        ("Speed-up in FLOPs", f"<strong>{speedup}</strong>, predicted; time depends on the target it is compiled for"),
        ("Prompts", f"{measurements.images}, noise seed {html.escape(str(header['seed']))}"),
        *(
            (name, f"<code>{html.escape(digest)}</code>")
            for name, digest in (
                ("Prompts SHA-256", str(header["prompts_sha256"])),
                ("Weights SHA-256", weights),
                ("Model profile SHA-256", profile.digest()),
                ("Schedule SHA-256", schedule.digest()),
            )
        ),
    ]
    return _table(("", ""), rows, head=False)


def _schedule_table(schedule: Schedule, profile: ModelProfile) -> str:
    plans = {plan.scale: plan for plan in plan_scales(schedule)}
    rows, whole, total = [], 0, 0
    for reference in plan_scales(dense(profile)):
        plan, cost = plans.get(reference.scale), scale_flops(reference, profile)
        own = scale_flops(plan, profile) if plan else 0
        whole, total = whole + cost, total + own
        h, w = reference.size
        rows.append(
            (
                str(reference.scale),
                f"{h}×{w} = {reference.count}",
                str(plan.rows) if plan else "0",
                _kept(plan) if plan else "not run",
                _skipped(schedule, plan) if plan else "all",
                f"{own / 1e9:,.2f}",
                f"{own / cost:.1%}",
            )
        )
    tokens = sum(h * w for h, w in profile.sizes)
    rows.append(("all", str(tokens), "", "", "", f"{total / 1e9:,.2f}", f"{total / whole:.1%}"))
    heads = ("scale", "tokens", "rows", "kept", "skipped layers", "GFLOPs", "share of dense")
    return _table(heads, rows, numbers=(0, 1, 2, 5, 6), total=True)


def _kept(plan: ScalePlan) -> str:
    least, most = min(plan.kept[layer] for layer in plan.layers), max(plan.kept)
    if least == plan.count:
        return "all"
    share = sum(plan.kept) / (plan.count * len(plan.layers))
    return f"{least} to {most} ({share:.0%})" if least != most else f"{least} ({share:.0%})"


def _skipped(schedule: Schedule, plan: ScalePlan) -> str:
    rule = schedule.scales[plan.scale]
    names = {**{layer: str(layer) for layer in rule.skip_layers}, **{n: f"{n} (update reused)" for n in rule.reuse_layers}}
    return ", ".join(names[layer] for layer in sorted(names)) or "none"


def _constants(found: dict[str, Any], schedule: Schedule) -> str:
    """What the policy chose, and how each gap of the published method was closed."""
    values = {
        **found,
        "ratio": f"{min(found['ratio']):.2f} to {max(found['ratio']):.2f}",
        "entropy": "mean 1",
        "alpha": f"{found['alpha_min']:g} to {found['alpha_max']:g}",
        "fill": f"update of scale {found['first_pruned_scale'] - 1}",
        "entropy_layer": schedule.entropy_layer,
        "guidance": "unchanged",
    }
    rows = [
        (html.escape(name), html.escape(str(values.get(key, ""))), html.escape(found["gaps"][key]))
        for key, name in CONSTANTS.items()
        if key in found["gaps"]
    ]
    table = _table(("constant", "value", "how it was chosen"), rows)
    return f'<p>The policy’s constants, all taken from the measurements for the target.</p>\n<div class="scroll">{table}</div>'


def _front_section(found: dict[str, Any] | None) -> str:
    """What the search of the `auto` policy found, and why it chose as it did."""
    if found is None:
        return ""
    heads, rows = front_page.front_table(found)
    table = _table(heads, [[html.escape(cell) for cell in row] for row in rows])
    pictures = _figure(search_figures.front_chart(found), "PSNR over speed-up") + _figure(
        search_figures.singles_chart(found), "Cost of pruning one scale"
    )
    text = f"<p>{html.escape(front_page.front_text(found))}</p>"
    return f'<h2>The search</h2>{text}{pictures}<div class="scroll">{table}</div>{_rule_section(found.get("adaptive"))}'


def _rule_section(found: dict[str, Any] | None) -> str:
    """How images pick their rungs."""
    if found is None:
        return ""
    picture = _figure(rule_page.rule_chart(found), "Entropy statistic over fidelity, by rung")
    table = _table(rule_page.HEADS, rule_page.rule_rows(found), numbers=(1, 2, 3, 4))
    return f'<h2>Rungs</h2><p>{html.escape(rule_page.rule_text(found))}</p>{picture}<div class="scroll">{table}</div>'


def _entropy_section(measurements: Measurements, schedule: Schedule) -> str:
    if not examples.examples_shown(measurements) or not examples.scales_shown(measurements):
        return NO_EXAMPLES
    picture = examples.entropy_maps(measurements, schedule.entropy_layer)
    return (
        f"<p>Layer {schedule.entropy_layer}, mean over its heads, one square a token: dark tokens attend to few places and are "
        "kept first, bright ones spread their attention and are pruned first; each scale has its own range of colours.</p>\n"
        f"{_prompt_list(measurements)}\n{_figure(picture, 'Entropy maps over the example images')}"
    )


def _kept_section(measurements: Measurements, schedule: Schedule) -> str:
    if not any(plan.tokens is not None for plan in plan_scales(schedule)):
        what = "The first rung" if schedule.rungs else "This schedule"
        return f"<p>{what} prunes no tokens: every scale that runs keeps all of them.</p>"
    plans = examples.pruned_plans(schedule)
    if not plans:
        return "<p>This schedule keeps a fixed random set of tokens, the same for every image.</p>"
    if not examples.examples_shown(measurements):
        return NO_EXAMPLES
    left_out = len(plans) - examples.MAPS_MAX
    note = f" The {left_out} coarser pruned scales are not shown." if left_out > 0 else ""
    return (
        "<p>The more layers run a token, the more of the image shows: clear runs in all of them, grey in none. Those of lowest "
        f"entropy in layer {schedule.entropy_layer}’s map of an earlier scale are kept, here the map of the dense run.{note}"
        f"</p>\n{_figure(examples.kept_tokens(measurements, schedule), 'Kept tokens over the example images')}"
    )


def _prompt_list(measurements: Measurements) -> str:
    texts = measurements.header["examples"]
    items = "".join(f'<li value="{i + 1}">{html.escape(str(texts[i]))}</li>' for i in examples.examples_shown(measurements))
    return f'<ol class="prompts">{items}</ol>'


def _counted(profile: ModelProfile) -> str:
    """What the FLOPs are of."""
    if profile.text.kind == "classes":
        return "transformer only"
    fixed = profile.transformer.text_tokens
    return f"transformer only, text of {fixed or TEXT_TOKENS} tokens{', padding included' if fixed else ''}"


def _figure(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), head: bool = True, total: bool = False
) -> str:
    """An HTML table of cells that are HTML already.

    Args:
        heads: Of the columns.
        rows: Cells.
        numbers: Columns that are set flush right.
        head: Whether `heads` are shown; without, the first column is the head of its row.
        total: Whether the last row is a sum.
    """

    def cell(column: int, text: str, tag: str) -> str:
        kind = ' class="n"' if column in numbers else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    lines = ["<tr>" + "".join(cell(i, text, "th") for i, text in enumerate(heads)) + "</tr>"] if head else []
    for index, row in enumerate(rows):
        kind = ' class="total"' if total and index == len(rows) - 1 else ""
        cells = "".join(cell(i, text, "td" if head or i else "th") for i, text in enumerate(row))
        lines.append(f"<tr{kind}>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
