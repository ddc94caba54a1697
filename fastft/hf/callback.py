"""A callback of `transformers.Trainer` that patches the model for the time of training."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from fastft.hf.patch import HOOKS, owner_of, patch, unpatch
from fastft.hf.versions import need

transformers = need("transformers", __name__)


class PatchCallback(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
    """`transformers.Trainer(..., callbacks=[PatchCallback()])`: `patch` when training begins, `unpatch` when it ends.

    A model that was patched already stays so. Evaluation within training is fused too: with `prediction_loss_only`
    (Trainer's own choice without `compute_metrics`) it makes no logits.

    Trainer does not tell callbacks of an exception. The model is then still patched, which changes no result; to have
    it undone whatever happens, train in the callback's own context:

        with PatchCallback() as callback:
            Trainer(model, ..., callbacks=[callback]).train()

    Raises:
        TypeError, ValueError: as `patch`, when training begins.
    """

    def __init__(self) -> None:
        self._patched: weakref.ref[nn.Module] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if HOOKS not in vars(owner_of(model)):
            self._patched = weakref.ref(patch(model))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._undo()

    def __enter__(self) -> PatchCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()

    def _undo(self) -> None:
        model = None if self._patched is None else self._patched()
        self._patched = None
        if model is not None:
            unpatch(model)
