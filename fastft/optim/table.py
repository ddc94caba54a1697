"""What an optimizer holds of one table: state of rows ever touched, and the steps that rows have yet to take."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastft import dispatch
from fastft.optim.gradient import check_in_range
from fastft.optim.leap import Leaps
from fastft.optim.replay import Steps, Verdict

GROWTH = 1.5  # of the room for state, so that admitting rows costs little in the long run
FUSED = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of tables that kernels step


class Table:
    """`table` (V, D), and for each row: `last` (V,), how many of `steps` it has taken; `slot` (V,), its place in the
    state, or -1.

    `buffers` are (S, width), width D or 1, of which `used` slots are taken; `fills` is what a row has in them before
    its first gradient, and is there in the first `filled` slots: a step writes the rest. With `master`, (S, D) in fp32,
    a touched row of the table is its rounding. `offset` steps were taken by all rows before the first of `steps`; all
    of `steps` are steps of the `rule` that `constants` make, taken by `kernel`. After a step `settle()` comes before
    all else: the step may be in doubt, for want of a `verdict`, and `leaps` do not reach to its end.
    """

    def __init__(self, table: Tensor, rule: Any, constants: dict[str, Any], rounding: str, *, fast: bool) -> None:
        self.table, self.rule, self.constants, self.rounding, self.fast = table, rule, constants, rounding, fast
        self.kernel: Any = None
        self.dtype = torch.promote_types(table.dtype, torch.float32)
        self.last = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        self.slot = torch.full((len(table),), -1, dtype=torch.int32, device=table.device)
        self.layout = widths, self.fills = rule.buffers(table)
        self.buffers = [table.new_empty(0, width, dtype=self.dtype) for width in widths]
        keeps = rounding == "master" and table.dtype != self.dtype
        self.master = table.new_empty(0, table.shape[1], dtype=self.dtype) if keeps else None
        self.used = self.filled = self.offset = 0
        self.steps = Steps(rule.width)
        self.verdict: Verdict | None = None
        self.start_over()

    def start_over(self) -> None:
        """All rows have taken all steps."""
        self.offset += len(self.steps)
        self.steps = Steps(self.rule.width)
        self.leaps: Leaps | None = None
        self.last.zero_()
        self.fill()

    def advance(self, numbers: tuple[float, ...], verdict: Verdict | None = None) -> None:
        """One step more, of which a `verdict` has yet to say whether it is skipped."""
        self.settle()
        if self.fast and not len(self.steps):
            self.leaps = self.rule.leaps(self.offset)
        self.steps.append(numbers)
        self.verdict = verdict

    def take_back(self) -> None:
        """The last step was none."""
        self.steps.take_back()
        self.verdict = None

    def settle(self) -> None:
        """Take the last step back if it was skipped, which is waited for; else leaps are to reach to its end."""
        verdict, self.verdict = self.verdict, None
        if verdict is not None and verdict.skips():
            self.take_back()
        elif self.leaps is not None and self.leaps.count < len(self.steps):
            self.leaps.append(self.steps[len(self.steps) - 1])

    @property
    def leap(self) -> Leaps | None:
        """The rule's short way from where each row is to the last step so far, if it has one."""
        self.settle()
        return self.leaps if self.leaps is not None and self.leaps.possible and self.leaps.count else None

    def why_not_fused(self, rule: Any) -> str | None:
        """Why steps are left to torch's operations, on any device, or None."""
        if rule.name != "adamw" or rule.amsgrad or rule.rowwise:
            return "only AdamW has kernels, without amsgrad and rowwise"
        if not self.fast:
            return "torch's bits come from torch's own operations"  # its square root is MKL's, for instance
        if self.table.dtype not in FUSED:
            return f"dtype is {self.table.dtype}"
        strides = self.table.stride()
        return None if strides[1] == 1 else f"the table has strides {strides}; expected 1 in the last dimension"

    def follow_table(self) -> None:
        """Elements of the table that are no longer their master's rounding were written by another: masters follow."""
        if self.master is not None:
            rows, master = self.table[self.owners()], self.master[: self.used]
            master.copy_(torch.where(master.to(rows.dtype) == rows, master, rows.to(master.dtype)))

    def admit(self, ids: Tensor) -> None:
        """Give slots to those of `ids`, each once, that have none; what is in them is left to the step that follows."""
        check_in_range(ids, len(self.slot))
        self.fill()
        start = self.used
        used = dispatch.pick("slots", dispatch.BACKENDS, "auto", self.slot).assigned(self.slot, ids, start)
        if used == start:
            return
        try:
            self.buffers = [grown(b, start, used, len(self.slot)) for b in self.buffers]
            if self.master is not None:
                self.master = grown(self.master, start, used, len(self.slot))
                self.master[start:used] = self.table[ids[self.slot[ids] >= start]].to(self.dtype)
        except BaseException:  # no memory: as it was
            self.slot[ids[self.slot[ids] >= start]] = -1
            raise
        self.used = used

    def fill(self) -> None:
        """What rows admitted have before their first gradient, where no step has written it."""
        if self.filled < self.used:
            for buffer, fill in zip(self.buffers, self.fills, strict=True):
                buffer[self.filled : self.used] = fill
            self.filled = self.used

    def gather(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Copies of rows and buffers, as they stand, in at least fp32."""
        self.fill()
        slot = self.slot[ids].long()
        there, p = slot >= 0, self.table[ids].to(self.dtype)
        if self.master is not None:
            p[there] = self.master[slot[there]]
        copies = []
        for buffer, fill in zip(self.buffers, self.fills, strict=True):
            copies.append(buffer.new_full((len(ids), buffer.shape[1]), fill))
            copies[-1][there] = buffer[slot[there]]
        return p, copies

    def store(self, ids: Tensor, p: Tensor, buffers: Sequence[Tensor], taken: int) -> None:
        """Rows, and buffers of those that have slots, after `taken` steps."""
        slot = self.slot[ids].long()
        there = slot >= 0
        self.last[ids] = taken
        self.table[ids] = rounded(p, self.table.dtype, self.rounding)
        for buffer, values in zip(self.buffers, buffers, strict=True):
            buffer[slot[there]] = values[there]
        if self.master is not None:
            self.master[slot[there]] = p[there]

    def owners(self) -> Tensor:
        """(used,): the row of each slot."""
        rows = (self.slot >= 0).nonzero()[:, 0]
        return torch.empty_like(rows).index_copy_(0, self.slot[rows].long(), rows)

    def saved(self, names: Sequence[str]) -> dict[str, Any]:
        """What `load` takes; nothing lags behind."""
        held = {name: buffer[: self.used].clone() for name, buffer in zip(names, self.buffers, strict=False)}
        held |= {} if self.master is None else {"master": self.master[: self.used].clone()}
        return {
            "step": torch.tensor(float(self.offset)),
            "size": tuple(self.table.shape),
            "rows": self.owners(),
            **held,
        }

    def dense(self, names: Sequence[str]) -> dict[str, Any]:
        """State of every row, in the form of torch's optimizers."""
        held: dict[str, Any] = {"step": torch.tensor(float(self.offset))}
        for name, buffer, fill in zip(names, self.buffers, self.fills, strict=False):
            held[name] = buffer.new_full((len(self.table), buffer.shape[1]), fill)
            held[name][self.owners()] = buffer[: self.used]
        return held

    def load(self, saved: dict[str, Any], names: Sequence[str]) -> None:
        """`saved()` or `dense()`, of this table or of torch's optimizer."""
        held = {name: saved[name] for name in names[: len(self.buffers)] if name in saved}
        if len(held) < len(self.buffers):
            raise ValueError(f"the state has {sorted(saved)}; expected {', '.join(names[: len(self.buffers)])} too")
        shape = tuple(self.table.shape)
        size = tuple(saved.get("size", next(((len(values), shape[1]) for values in held.values()), shape)))
        if size != shape:
            raise ValueError(f"the state is that of a table {size}; this one is {shape}")
        rows = saved.get("rows")
        if rows is None:  # those that ever had a gradient
            moved = torch.zeros(shape[0], dtype=torch.bool)
            for values, fill in zip(held.values(), self.fills, strict=True):
                moved |= (values != fill).any(1).cpu()
            rows = moved.nonzero()[:, 0]
            held = {name: values[rows.to(values.device)] for name, values in held.items()}
        self.admit(rows.to(self.slot.device).long())
        for buffer, values in zip(self.buffers, held.values(), strict=True):
            buffer[: self.used] = values
        self.filled = self.used
        if self.master is not None and "master" in saved:
            self.master[: self.used] = saved["master"]
        self.offset = int(saved.get("step", 1))
        self.start_over()


def grown(buffer: Tensor, used: int, wanted: int, most: int) -> Tensor:
    """Room for `wanted` rows, the first `used` kept. On the CPU for `most`: what is not touched takes no memory."""
    if wanted <= len(buffer):
        return buffer
    larger = room_for_all(buffer, most)
    if larger is None:
        larger = buffer.new_empty(min(most, max(wanted, int(GROWTH * len(buffer)))), buffer.shape[1])
    larger[:used] = buffer[:used]
    return larger


def room_for_all(buffer: Tensor, rows: int) -> Tensor | None:
    if buffer.device.type != "cpu":
        return None
    try:
        room = buffer.new_empty(rows, buffer.shape[1])
    except RuntimeError:  # more than the system promises
        return None
    memory, _ = dispatch.load("memory", "cpu")
    if memory is not None:
        memory.advise(room)
    return room


def rounded(p: Tensor, dtype: torch.dtype, rounding: str) -> Tensor:
    """fp32 as `dtype`: to nearest, or ("stochastic", bf16) up or down at random so that the mean is p."""
    if rounding != "stochastic" or dtype != torch.bfloat16:
        return p.to(dtype)
    bits = p.view(torch.int32) + torch.randint(1 << 16, p.shape, dtype=torch.int32, device=p.device)
    return torch.where(p.isfinite(), (bits & -(1 << 16)).view(torch.float32), p).to(dtype)
