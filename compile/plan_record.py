"""What a plan is built for, and what was built."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..profiles.plan import TEXT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What was built.

    Attributes:
        key: SHA-256 of all that decides the plan.
        bytes: Size of the file.
        seconds: Parsing and building; of a plan that was kept, what it took then.
        layers: Of the parsed network.
        plugins: Plugin layers among them.
        inputs: Type and shape of the state's tensors that go in; -1 is free.
        outputs: Of those that come out.
        weights: Weight inputs and the tensors of `weights.safetensors` that feed them.
    """

    key: str
    bytes: int
    seconds: float
    layers: int
    plugins: int
    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    weights: dict[str, str] = field(default_factory=dict)

    def manifest_entry(self) -> dict[str, Any]:
        """As it stands in `EngineManifest.engine`."""
        return {name: value for name, value in asdict(self).items() if name not in ("key", "weights")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ranges of a graph's free dimensions; all begin at 1.

    Attributes:
        images: Most images a request.
        text: Most text tokens.
        rows: What one image adds to the dimension `batch`: 2 where that counts rows with guidance.
    """

    images: int
    text: int
    rows: int = 1

    def most(self) -> dict[str, int]:
        return {"batch": self.images * self.rows, "text": self.text}

    def usual(self) -> dict[str, int]:
        """What a plan is tuned for: one image, a prompt of common length."""
        return {"batch": self.rows, "text": min(self.text, TEXT_TOKENS)}
