"""FastVAR (csguoh/FastVAR) as a schedule: late scales keep the tokens farthest from their mean, the last ones are not run.

The released rule is written for square images of Infinity-2B and goes by widths: it prunes the scales of width 32 and 40 in
layers 3 to 27 of 32, does not run those of width 48 and 64, and restores pruned tokens from the scale of 24 x 24. Elsewhere it
does nothing, fails, or restores from the image before. Two policies come of it:

- `fastvar-official`: these widths and layers to the letter, refused where they do not apply.
- `fastvar`: the same rule by shares. A scale is treated as that official scale is whose share of the last scale's longer side
  is nearest (32 / 64: 40 % pruned, 40 / 64: 50 %, 48 / 64 and 64 / 64: not run), and restored from the last scale before the
  pruned ones; layers 3 / 32 to 28 / 32 of the depth are pruned. At 1024 x 1024 and depth 32 both are one and the same.

Nothing outlives an image, and rows and batch are free: branch outputs are part of the state, as every other tensor.
"""

from __future__ import annotations

from dataclasses import replace

from .errors import ScheduleError
from .schedule import ScaleRule, Schedule, TokenRule

OFFICIAL_LAYERS = (3, 28)
OFFICIAL_DEPTH = 32
OFFICIAL_SIDE = 64
OFFICIAL_DROPPED = {24: 0.0, 32: 0.4, 40: 0.5, 48: 1.0, 64: 1.0}
"""Share of the tokens that are dropped, by width; 1 means that the scale is not run. Smaller scales run whole, as 24 does."""
OFFICIAL_CACHE = (24, 24)


def fastvar(base: Schedule) -> Schedule:
    """The rule by shares, for every aspect ratio, number of scales and depth.

    Args:
        base: The dense schedule of a model.

    Raises:
        ScheduleError: No scale is left to restore pruned tokens from.
    """
    longest = max(base.scales[-1].size)

    def dropped(rule: ScaleRule) -> float:
        share = max(rule.size) / longest
        return OFFICIAL_DROPPED[min(OFFICIAL_DROPPED, key=lambda side: abs(side / OFFICIAL_SIDE - share))]

    first, stop = (round(layer / OFFICIAL_DEPTH * base.layers) for layer in OFFICIAL_LAYERS)
    drops = [dropped(rule) for rule in base.scales]
    cache = next((scale for scale, drop in enumerate(drops) if drop), 0) - 1
    if cache < 0:
        raise ScheduleError(f"policy fastvar: {base.model} has no scale before the pruned ones to restore tokens from")
    return _pruned(base, "fastvar", drops, range(first, stop), cache)


def fastvar_official(base: Schedule) -> Schedule:
    """The released rule: widths and layers as they stand there.

    Args:
        base: The dense schedule of a model.

    Raises:
        ScheduleError: The images are not square; the released rule does nothing or fails there.
    """
    h, w = base.scales[-1].size
    if h != w:
        raise ScheduleError(f"policy fastvar-official is written for square images, got scales up to {h} x {w}; use fastvar")
    drops = [OFFICIAL_DROPPED.get(rule.size[1], 0.0) for rule in base.scales]
    cache = next((rule.scale for rule in base.scales if rule.size == OFFICIAL_CACHE), 0)
    return _pruned(base, "fastvar-official", drops, range(*OFFICIAL_LAYERS), cache)


def _pruned(base: Schedule, policy: str, drops: list[float], layers: range, cache: int) -> Schedule:
    rules = []
    for rule, drop in zip(base.scales, drops, strict=True):
        kept = rule.count - int(rule.count * drop)
        if drop == 1:
            rules.append(replace(rule, run=False))
        elif kept < rule.count:
            counts = tuple(kept if layer in layers else rule.count for layer in range(base.layers))
            tokens = TokenRule(kept=counts, score="distance", fill="branch", cache_scale=cache)
            rules.append(replace(rule, tokens=tokens))
        else:
            rules.append(rule)
    return replace(base, policy=policy, scales=tuple(rules))
