"""The best evaluation so far, and whether it is worth going on: read from the log alone, so that a resume knows it."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from fastft.trainer.evaluation.watched import NUMBERS
from fastft.trainer.reporting.log import numbers

GREATER = ("probability", "emitted", "precision")  # of these numbers more is better


class Best:
    """Follows one number of the evaluations: `eval_loss`, `error_rate`, `eval_losses.mlm`, `tokens.<think>.nll`.

    step, value:  of the best evaluation; None before the first.
    waited:       evaluations since then. The one before the first step counts as one to be beaten.
    """

    def __init__(self, metric: str, patience: int | None, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.metric, self.patience = metric, patience
        self.step: int | None = None
        self.value: float | None = None
        self.waited = 0
        evaluations: dict[int, dict[str, Any]] = {}
        for record in records:
            if "eval_loss" in record or "error_rate" in record:
                evaluations.setdefault(record["step"], {}).update(record)
        for step, evaluation in sorted(evaluations.items()):
            with suppress(ValueError):  # of before a resume, with other settings or cut by a crash
                self.judge(step, evaluation)

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def judge(self, step: int, evaluation: Mapping[str, Any]) -> bool:
        """Take note of an evaluation; whether it is the best so far. One in which a watched token lacks the number, as
        it does the precision where it is never emitted, is not.

        Raises:
            ValueError: it does not have the number; the message lists those it has.
        """
        told = numbers(evaluation, ".")
        of_tokens = {f"tokens.{token}.{name}" for token in evaluation.get("tokens", ()) for name in NUMBERS}
        if self.metric not in told.keys() | of_tokens:
            known = ", ".join(name for name in told if name != "step")
            raise ValueError(f"metric_for_best_model is {self.metric!r}; an evaluation of this run tells {known}")
        value = told.get(self.metric, math.nan)
        sign = -1.0 if self.metric.rpartition(".")[2] in GREATER else 1.0
        better = not math.isnan(value) and (self.value is None or sign * value < sign * self.value)
        if better:
            self.step, self.value, self.waited = step, value, 0
        else:
            self.waited += 1
        return better
