"""An optimizer whose steps cost what the touched rows cost, and leave what dense steps would."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from fastft import dispatch
from fastft.optim.clipping import at_least_fp32, factor_of
from fastft.optim.gradient import Groups, coalesced
from fastft.optim.replay import Verdict
from fastft.optim.table import Table

FLUSHED = 1 << 24  # numbers of a table that a flush catches up with at once


class RowOptimizer(torch.optim.Optimizer):
    """Base of the optimizers for tables whose gradients are sparse by rows: `SparseEmbedding`'s.

    With semantics "dense" a row is, whenever `SparseEmbedding` reads it and after `flush()`, what it would be had
    torch's dense optimizer stepped the whole table. A row that no batch touches lags behind in memory, and is caught
    up with when it is read (in the copy) or stepped (in place). With "lazy" a row takes only its own steps.

    As torch's fused optimizers, `step` takes what `torch.amp.GradScaler.step` sets: the gradient is divided by the
    scalar `grad_scale` as it is read, and where the scalar `found_inf` is not 0 the step is skipped: it does not count,
    and tables and state are as before. On a GPU the host learns that when it next uses the table, not in the step; rows
    that would have been new keep a place in the state, as rows that have had no gradient.
    """

    _step_supports_amp_scaling = True
    names: tuple[str, ...]  # of the buffers, as torch's own optimizer has them in its state
    constants: tuple[str, ...]  # options that may not change while rows lag behind

    def __init__(
        self, params: Any, defaults: dict[str, Any], *, semantics: str, engine: str, rounding: str, backend: str
    ) -> None:
        one_of("semantics", semantics, ("dense", "lazy"))
        one_of("engine", engine, ("fast", "bitwise"))
        one_of("rounding", rounding, ("master", "stochastic", "nearest"))
        self.semantics, self.engine, self.rounding, self.backend = semantics, engine, rounding, backend
        self.tables: dict[Tensor, Table] = {}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(f"a {type(self).__name__} is not copied or pickled: make one and load the state_dict() of this")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dim() != 2 or not p.is_floating_point():
                raise ValueError(f"a parameter is {p.dtype} {tuple(p.shape)}; expected a table (rows, width) of floats")
        self.rule(self.param_groups[-1])

    def numbers(self, group: dict[str, Any], step: int) -> tuple[float, ...]:
        """What belongs to step `step`, counted from 1."""
        raise NotImplementedError

    def rule(self, group: dict[str, Any]) -> Any:
        """One step on rows; see `kernels/reference/row_update.py`."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the rows that have a gradient. A table without one takes no step, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        verdict = None if found_inf is None else Verdict(found_inf)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if verdict is None or self.runs_ahead(p):
                    self._step(p, p.grad, group, verdict)
                elif not verdict.skips():
                    self._step(p, p.grad, group, None)
        return loss

    def runs_ahead(self, p: Tensor) -> bool:
        """Whether a step of `p` is launched before the host knows that it is not skipped."""
        return p.is_cuda

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any], verdict: Verdict | None) -> None:
        if not grad.is_sparse:
            raise ValueError(
                f"a table {tuple(p.shape)} has a dense gradient: something other than a SparseEmbedding reads it (a "
                "tied head?), so that every row learns; give it to torch's own optimizer"
            )
        if grad.sparse_dim() != 1:
            raise ValueError(f"a table's gradient is sparse in {grad.sparse_dim()} dimensions; expected whole rows")
        t, scale, grad = self._table(p, group), self._scale(grad), coalesced(grad)
        found_inf = None if verdict is None else verdict.found_inf.to(p.device, non_blocking=True)
        ids = grad._indices()[0]
        t.admit(ids)
        if not self._lags(t):
            t.last[ids] = len(t.steps)
        leap = t.leap  # which does not reach to the end of this step
        t.advance(self.numbers(group, t.offset + len(t.steps) + 1), verdict)
        try:
            t.kernel.step_rows(t, ids, grad._values(), t.rule, t.steps, leap, scale, found_inf)
        except BaseException:  # no memory: it was no step
            t.take_back()
            raise

    def _scale(self, grad: Tensor) -> Tensor | None:
        """What `grad` is still to be multiplied by, a scalar: the factor of its clipping, 1 over GradScaler's scale."""
        scale, divisor = factor_of(grad), getattr(self, "grad_scale", None)
        if divisor is not None:
            inverse = divisor.double().reciprocal().float().to(grad.device)  # as GradScaler.unscale_ has it
            scale = inverse if scale is None else scale * inverse
        return None if scale is None else scale.to(at_least_fp32(grad))

    def _table(self, p: Tensor, group: dict[str, Any]) -> Table:
        """What is held of `p`, for a step under the options of `group`."""
        constants = {name: copy(group[name]) for name in self.constants}
        before, t = getattr(p, "row_optimizer", None), self.tables.get(p)
        if before is not self:
            if before is not None:
                before.flush()
            if t is not None:
                t.follow_table()
            p.row_optimizer = self  # type: ignore[attr-defined]
        if t is None:
            t = Table(p.detach(), self.rule(group), constants, self.rounding, fast=self.engine == "fast")
        else:
            t.settle()
            if t.constants == constants:
                return t
            self._check_changes(p, t, constants)
            t.constants, t.rule = constants, self.rule(group)
        t.kernel = dispatch.pick("row_update", dispatch.BACKENDS, self.backend, t, t.rule)
        self.tables[p] = t
        return t

    def _check_changes(self, p: Tensor, t: Table, constants: dict[str, Any]) -> None:
        for name, value in constants.items():
            if value != t.constants[name]:
                changed = f"{name} changed from {t.constants[name]} to {value}"
                if self.rule(constants).buffers(p) != t.layout:
                    raise ValueError(f"{changed}, and with it what is kept of a row: make a new optimizer")
                if len(t.steps):
                    raise ValueError(f"{changed} while rows lag behind: flush() first")

    def _lags(self, t: Table) -> bool:
        """Whether steps without a gradient change a row."""
        return self.semantics == "dense" and bool(t.rule.moves_idle_rows(t.steps))

    def current_rows(self, p: Tensor, groups: Groups) -> Tensor:
        """(N, D): what a table's rows are now, at the positions that read them; nothing is written."""
        t = self.tables.get(p)
        if t is not None:
            t.settle()
        if t is None or not len(t.steps) or not self._lags(t):
            return groups.spread(p.detach().index_select(0, groups.touched))
        t.fill()
        rows: Tensor = t.kernel.read_rows(t, groups.touched, t.rule, t.steps, t.leap, groups)
        return rows

    @torch.no_grad()
    def flush(self) -> None:
        """Catch up with every row, in place: afterwards the tables are what dense training would have left.

        One pass over each table. `state_dict` and `load_state_dict`, of this optimizer and of a `SparseEmbedding`, do
        it; so must whoever else reads a table other than by a `SparseEmbedding`'s forward (a norm, a copy).
        """
        for p, t in self.tables.items():
            t.settle()
            if len(t.steps) and self._lags(t):
                if t.rule.idle_rows_gain_state(t.steps):
                    t.admit(torch.arange(len(p), device=p.device))
                for ids in torch.arange(len(p), device=p.device).split(max(1, FLUSHED // max(1, p.shape[1]))):  # type: ignore[no-untyped-call]
                    t.kernel.step_rows(t, ids, None, t.rule, t.steps, t.leap)
            t.start_over()

    def state_dict(self) -> dict[str, Any]:
        """After a `flush`: for each table the step, and state of the rows ever touched: their numbers, buffers."""
        self.flush()
        packed = super().state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        packed["state"] = {i: self.tables[p].saved(self.names) for i, p in enumerate(params) if p in self.tables}
        return packed

    def dense_state_dict(self) -> dict[str, Any]:
        """The same as torch's own optimizer has it, state for every row, for going on with that one."""
        packed = self.state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        packed["state"] = {i: self.tables[params[i]].dense(self.names) for i in packed["state"]}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict()`, `dense_state_dict()`, or the state of torch's own optimizer.

        Raises ValueError where the state is that of another table; this optimizer's is then as it was.
        """
        self.flush()
        before = self.param_groups, self.tables
        super().load_state_dict({**state_dict, "state": {}})
        self.tables = {}
        owned = [(p, group) for group in self.param_groups for p in group["params"]]
        try:
            for i, saved in state_dict["state"].items():
                self._table(*owned[int(i)]).load(saved, self.names)
        except Exception:
            self.param_groups, self.tables = before
            raise

    def written(self, p: Tensor) -> None:
        """Go on from what something else, after a `flush()`, wrote into the table `p`."""
        if p in self.tables:
            self.tables[p].follow_table()


def non_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")
