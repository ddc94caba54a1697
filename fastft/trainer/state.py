"""What a run has counted; kept in checkpoints so that a resumed run goes on counting."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Meter:
    """Sums over some optimizer steps. `loss` is sum w nll, `weight` is sum w, `seconds` are of the steps alone."""

    steps: int = 0
    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0

    def add(self, other: "Meter") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def mean_loss(self) -> float:
        """Token-weighted mean over the steps."""
        return self.loss / self.weight if self.weight else 0.0

    def per_second(self, count: int) -> float:
        return count / self.seconds if self.seconds else 0.0


@dataclass
class State:
    """total: since the run began. recent: since the last log record."""

    total: Meter = field(default_factory=Meter)
    recent: Meter = field(default_factory=Meter)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.total.steps

    def add(self, step: Meter) -> None:
        self.total.add(step)
        self.recent.add(step)

    def to_json(self) -> dict[str, Any]:
        return {"total": asdict(self.total), "recent": asdict(self.recent)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "State":
        return cls(Meter(**saved["total"]), Meter(**saved["recent"]))
