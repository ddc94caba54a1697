"""An optimizer whose steps cost what the touched rows cost, and leave what dense steps would."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastft import dispatch
from fastft.optim.gradient import Groups, coalesced
from fastft.optim.table import Table

FLUSHED = 1 << 24  # numbers of a table that a flush catches up with at once


class RowOptimizer(torch.optim.Optimizer):
    """Base of the optimizers for tables whose gradients are sparse by rows: `SparseEmbedding`'s.

    With semantics "dense" a row is, whenever `SparseEmbedding` reads it and after `flush()`, what it would be had
    torch's dense optimizer stepped the whole table. A row that no batch touches lags behind in memory, and is caught
    up with when it is read (in the copy) or stepped (in place). With "lazy" a row takes only its own steps.
    """

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
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if not grad.is_sparse:
            raise ValueError(
                f"a table {tuple(p.shape)} has a dense gradient: something other than a SparseEmbedding reads it (a "
                "tied head?), so that every row learns; give it to torch's own optimizer"
            )
        t, rule = self._table(p, group), self.rule(group)
        kernel, grad = self._kernel(t, rule), coalesced(grad)
        ids = grad._indices()[0]
        t.admit(ids)
        if not self._lags(t, rule):
            t.last[ids] = len(t.steps)
        leap = t.leap_of_read(ids)
        t.advance(self.numbers(group, t.offset + len(t.steps) + 1), rule)
        kernel.step_rows(t, ids, grad._values(), rule, t.steps, leap)

    def _table(self, p: Tensor, group: dict[str, Any]) -> Table:
        """What is held of `p`, for a step under the options of `group`."""
        constants, rule = {name: group[name] for name in self.constants}, self.rule(group)
        if p not in self.tables:
            before = getattr(p, "row_optimizer", self)
            if before is not self:
                before.flush()
            self.tables[p] = Table(p.detach(), rule, constants, self.rounding, fast=self.engine == "fast")
            p.row_optimizer = self  # type: ignore[attr-defined]
        t = self.tables[p]
        for name, value in constants.items():
            if value != t.constants[name]:
                changed = f"{name} changed from {t.constants[name]} to {value}"
                if rule.buffers(p) != t.layout:
                    raise ValueError(f"{changed}, and with it what is kept of a row: make a new optimizer")
                if len(t.steps):
                    raise ValueError(f"{changed} while rows lag behind: flush() first")
        t.constants = constants
        return t

    def _lags(self, t: Table, rule: Any) -> bool:
        """Whether steps without a gradient change a row."""
        return self.semantics == "dense" and bool(rule.moves_idle_rows(t.steps))

    def _kernel(self, t: Table, rule: Any) -> Any:
        return dispatch.pick("row_update", dispatch.BACKENDS, self.backend, t, rule)

    @torch.no_grad()
    def current_rows(self, p: Tensor, groups: Groups) -> Tensor:
        """(N, D): what a table's rows are now, at the positions that read them; nothing is written."""
        t = self.tables.get(p)
        if t is None or not len(t.steps) or not self._lags(t, rule := self.rule(t.constants)):
            return groups.spread(p.detach().index_select(0, groups.touched))
        t.fill()
        t.read = ids, leap = groups.touched, t.leap(groups.touched)
        rows: Tensor = self._kernel(t, rule).read_rows(t, ids, rule, t.steps, leap, groups)
        return rows

    @torch.no_grad()
    def flush(self) -> None:
        """Catch up with every row, in place: afterwards the tables are what dense training would have left.

        One pass over each table. `state_dict` and `load_state_dict`, of this optimizer and of a `SparseEmbedding`, do
        it; so must whoever else reads a table other than by a `SparseEmbedding`'s forward (a norm, a copy).
        """
        for p, t in self.tables.items():
            rule = self.rule(t.constants)
            if len(t.steps) and self._lags(t, rule):
                if rule.idle_rows_gain_state(t.steps):
                    t.admit(torch.arange(len(p), device=p.device))
                for ids in torch.arange(len(p), device=p.device).split(max(1, FLUSHED // p.shape[1])):  # type: ignore[no-untyped-call]
                    self._kernel(t, rule).step_rows(t, ids, None, rule, t.steps, t.leap(ids))
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
