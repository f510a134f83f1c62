"""A cost table as people read it: what a layer takes, by scale, rows and tokens."""

from __future__ import annotations

from ..profiles.costs import CostTable
from ..profiles.tables import table


def shown_costs(costs: CostTable) -> str:
    """A line a scale and number of rows, with the most cached keys that were measured; below it what is paid beside scales."""
    rows = [["scale", "rows", "cached keys", "beside ms", "layer ms, by tokens"]]
    for entry in sorted(costs.scales, key=lambda e: (e.scale, e.rows)):
        points = [e for e in costs.layers if (e.scale, e.rows) == (entry.scale, entry.rows)]
        past = max(e.past for e in points)
        by_tokens = ", ".join(f"{e.tokens}: {e.ms:.4f}" for e in sorted(points, key=lambda e: e.tokens) if e.past == past)
        rows.append([str(entry.scale), str(entry.rows), str(past), f"{entry.ms:.3f}", by_tokens])
    beside = [f"condition {costs.condition_ms:.2f} ms", f"decoder {costs.decoder_ms:.2f} ms"]
    beside += [f"picking a rung by {e.features} after {e.tokens} tokens {e.ms:.2f} ms" for e in costs.decisions]
    return f"{costs.target}, {costs.device}, batch {costs.batch}\n{table(rows)}\n{', '.join(beside)}"
