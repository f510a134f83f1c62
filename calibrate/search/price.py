"""What a schedule costs, as a search sees it: FLOPs, or milliseconds on a target whose times were measured."""

from __future__ import annotations

from dataclasses import dataclass

from ...profiles.costs import CostTable
from ...profiles.geometry import tokens_through
from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan, plan_scales, scale_flops
from ...profiles.schedule import Schedule


@dataclass(frozen=True)
class Price:
    """Prices schedules of one model.

    Attributes:
        profile: The model.
        costs: Measured times of the target; None counts FLOPs of the transformer.
    """

    profile: ModelProfile
    costs: CostTable | None = None

    @property
    def unit(self) -> str:
        return "FLOPs" if self.costs is None else "ms"

    @property
    def fixed(self) -> float:
        """What every schedule pays."""
        return 0.0 if self.costs is None else self.costs.fixed_ms

    def scale(self, plan: ScalePlan) -> float:
        """Of one scale.

        Raises:
            CostError: The table holds no point that covers it.
        """
        return float(scale_flops(plan, self.profile)) if self.costs is None else self.costs.scale_ms(plan)

    def schedule(self, schedule: Schedule) -> float:
        """Of all scales that run, and what every schedule pays.

        Raises:
            CostError: The table is of another model, or holds no point that covers it.
        """
        if self.costs is not None:
            return self.costs.predict(schedule)
        return self.fixed + sum(self.scale(plan) for plan in plan_scales(schedule))

    def picking(self, scale: int) -> float:
        """What an image pays for picking a rung by its entropy after a scale; FLOPs of it are none worth counting.

        Raises:
            CostError: The table does not hold it.
        """
        if self.costs is None:
            return 0.0
        return self.costs.decision_ms("entropy", tokens_through(self.profile.sizes, scale))
