"""A sweep's results as files: `sweep.csv`, `sweep.json`, `sweep.png` and `report.html`, which needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...profiles.pages import fill_page
from ...profiles.strict import write_atomic
from ...profiles.tables import three_digits
from .front import SPEEDS, Record, margins
from .measure import PICTURES
from .plot import sweep_chart
from .policies import folder_name

TEMPLATE = Path(__file__).with_name("report.html")
COLUMNS = (
    "policy", "flops_speedup", "speedup", "latency_ms", "latency_min_ms", "latency_max_ms", "dense_ms", "predicted_ms",
    "psnr_db", "ssim", "equal_images", "images", "scene_eval", "scene_low", "scene_high", "scene_points", "scene_points_low",
    "scene_points_high", "schedule_sha256", "error",
)  # fmt: skip
SHOWN = {
    "policy": "Policy", "flops_speedup": "FLOPs, ×", "speedup": "Latency, ×",
    "latency_ms": "ms, median", "latency_min_ms": "min", "latency_max_ms": "max", "predicted_ms": "ms, predicted",
    "psnr_db": "PSNR, dB", "ssim": "SSIM",
    "scene_eval": "SceneEval", "scene_points": "points to dense", "scene_points_low": "low", "scene_points_high": "high",
}  # fmt: skip
DIFFERENCE_GAIN = 8
"""Differences are shown so many times as large, from grey."""
JPEG_QUALITY = 88


def write_results(out: Path, found: Sequence[Record]) -> list[Path]:
    """Write all four files; returns their paths.

    Args:
        out: Folder of the sweep.
        found: One record a policy, dense first; a record with `error` was not measured.
    """
    done = [record for record in found if "error" not in record]
    compared = {name: margins(done, name) for name in SPEEDS}
    flat = [flattened(record) for record in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    data = {"format": 1, "policies": list(found), "auto_over_the_others_db": compared}
    picture = sweep_chart(done)
    parts = {
        "chart": base64.b64encode(picture).decode(),
        "table": _table(flat),
        "margins": _margins(compared),
        "pictures": "\n".join(_pictures(out, record) for record in done[1:]),
        "images": str(done[0]["images"]),
        "gain": str(DIFFERENCE_GAIN),
        "machine": html.escape(f"{done[0]['machine']}, {done[0]['threads']} threads, target {done[0]['target']}"),
    }
    page = fill_page(TEMPLATE, parts)
    files = {
        "sweep.csv": text.getvalue().encode(),
        "sweep.json": (json.dumps(data, indent=1, sort_keys=True) + "\n").encode(),
        "sweep.png": picture,
        "report.html": page.encode(),
    }
    for name, content in files.items():
        write_atomic(out / name, content)
    return [out / name for name in files]


def flattened(record: Record) -> dict[str, Any]:
    """One line of the CSV file."""
    line = {name: record[name] for name in COLUMNS if name in record}
    if "error" in record:
        return line
    line["latency_ms"], line["latency_min_ms"], line["latency_max_ms"] = record["latency_ms"]
    line["dense_ms"] = record["dense_ms"][0]
    if scene := record.get("scene_eval"):
        pair = scene["paired"]
        line |= {"scene_eval": round(scene["accuracy"], 4), "scene_low": round(scene["low"], 4)}
        line |= {"scene_high": round(scene["high"], 4), "scene_points": round(100 * pair["difference"], 2)}
        line |= {f"scene_points_{end}": round(100 * pair[end], 2) for end in ("low", "high")}
    return line


def _table(lines: Sequence[dict[str, Any]]) -> str:
    shown = [name for name in SHOWN if any(line.get(name) is not None for line in lines)]
    rows = ["<tr>" + "".join(f"<th>{SHOWN[name]}</th>" for name in shown) + "</tr>"]
    for line in lines:
        cells = "".join(f'<td class="n">{_cell(name, line.get(name))}</td>' for name in shown[1:])
        if "error" in line:
            cells = f'<td colspan="{len(shown) - 1}">not measured: {html.escape(line["error"])}</td>'
        rows.append(f"<tr><td>{html.escape(line['policy'])}</td>{cells}</tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _cell(name: str, entry: Any) -> str:
    if entry is None:
        return "–"
    if name.endswith("_ms"):
        return three_digits(entry)
    return html.escape(f"{entry:g}" if isinstance(entry, float) else str(entry))


def _margins(compared: dict[str, list[Record]]) -> str:
    lines = []
    for name, entries in compared.items():
        told = ", ".join(f"{e['margin']:+.1f} dB at {e['speedup']:.2f}×" for e in entries)
        lines.append(
            f"<p>auto over the best of all others at equal speed-up in {SPEEDS[name]}: {told or 'nothing to compare'}.</p>"
        )
    return "\n".join(lines)


def _pictures(out: Path, record: Record) -> str:
    """Dense, the policy, and their difference, for the first prompts."""
    name = str(record["policy"])
    strips = [strip for i in range(PICTURES) if (strip := _strip(out / "policies", name, i))]
    fidelity = "same as dense" if record["psnr_db"] is None else f"{record['psnr_db']:.1f} dB, SSIM {record['ssim']:.3f}"
    head = f"{name}: {record['flops_speedup']:.2f}× FLOPs, {record['speedup']:.2f}× latency, {fidelity}"
    return f'<h3>{html.escape(head)}</h3>\n<div class="strips">{"".join(strips)}</div>'


def _strip(folder: Path, name: str, index: int) -> str:
    from PIL import Image

    paths = [folder / folder_name(policy) / f"picture_{index}.png" for policy in ("dense", name)]
    if not all(path.exists() for path in paths):
        return ""
    images = [Image.open(path) for path in paths]
    prompt = getattr(images[1], "text", {}).get("prompt", "")
    base, own = (np.asarray(image.convert("RGB")).astype(np.float64) for image in images)
    difference = np.clip(128 + DIFFERENCE_GAIN * (own - base), 0, 255)
    buffer = io.BytesIO()
    joined = np.concatenate([base, own, difference], axis=1).astype(np.uint8)
    Image.fromarray(joined).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(prompt)
    return f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
