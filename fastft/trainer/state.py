"""What a run has counted; kept in checkpoints so that a resumed run goes on counting."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Meter:
    """Sums over some optimizer steps. `loss` is sum w nll, `weight` is sum w, `seconds` are of the steps alone.

    Where there are several outputs, w is of the first, and nll the sum of their means. Weights of tasks are left out:
    they would bend the curve of a loss whose parts stand still.

    skipped: of the steps, those that were left out. flops: see `fastft.trainer.reporting.flops`.
    waited: those of the seconds that went by until data was there. parts: `[sum w nll, sum w]` by task or output, where
    there are several.
    """

    steps: int = 0
    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, other: "Meter") -> None:
        for name, value in asdict(other).items():
            if name != "parts":
                setattr(self, name, getattr(self, name) + value)
        for name, sums in other.parts.items():
            self.parts[name] = [a + b for a, b in zip(self.parts.get(name, (0.0, 0.0)), sums, strict=True)]

    def count(self, tokens: int, supervised_tokens: int, mean_loss: float, weight: float) -> None:
        """A window: its tokens and, of its batches' first target, labels and weight; and its mean loss."""
        self.tokens += tokens
        self.supervised_tokens += supervised_tokens
        self.weight += weight
        self.loss += mean_loss * weight

    @property
    def mean_loss(self) -> float:
        """Token-weighted mean over the steps."""
        return self.loss / self.weight if self.weight else 0.0

    @property
    def mean_parts(self) -> dict[str, float]:
        return {name: loss / weight if weight else 0.0 for name, (loss, weight) in self.parts.items()}

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
