"""One table whose chosen rows learn: hooks that keep them in the table, and bring their gradient out of it.

R rows of V, width D. The table is frozen and holds, at all times, what the rows are (in its own dtype): lookups, the
head, generation and saving read it as ever. Only gradients go another way, and none of them is V x D.
"""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fastft.embedding.model import ROWS, Table
from fastft.losses.head_rows import head_rows


class ChosenRows:
    """`rows` (R, D), a parameter in at least fp32, are what row `ids[r]` of the table is to be."""

    def __init__(self, table: Table, ids: list[int]) -> None:
        weight, first = table.weight, table.first
        self.table, self.was_trained, self.head_ran = table, weight.requires_grad, False
        self.ids = torch.tensor(ids, device=weight.device)
        self.before = weight.detach()[self.ids]
        master = torch.promote_types(weight.dtype, torch.float32)  # a step of lr times a unit is lost in bf16
        self.rows = nn.Parameter(self.before.to(master, copy=True))
        self.slots = torch.full((len(weight),), len(ids), dtype=torch.int32, device=weight.device)
        self.slots[self.ids] = torch.arange(len(ids), dtype=torch.int32, device=weight.device)
        scales = {path: self.scale_of(m) for path, m in table.modules.items() if isinstance(m, nn.Embedding)}
        self.hooks: list[Any] = []
        for path, module in table.modules.items():
            after = self.after_head if path not in scales else functools.partial(self.after_lookup, scales[path])
            self.hooks += [
                module.register_forward_pre_hook(self.before_forward),
                module.register_forward_hook(after, with_kwargs=True),
                module.register_state_dict_pre_hook(self.before_saving),  # type: ignore[no-untyped-call]
            ]
        after_saving = functools.partial(self.after_saving)  # torch sets an attribute, which a method has no room for
        self.hooks.append(first.register_state_dict_post_hook(after_saving))
        self.hooks.append(first.register_load_state_dict_pre_hook(self.before_loading))
        weight.requires_grad_(False)
        first.register_parameter(ROWS, self.rows)
        self.stamp = self.stamp_of_rows()
        LIVE.add(self)
        prepare()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies, which come with copies of the model, are kept up to date as well."""
        self.__dict__ = state
        LIVE.add(self)

    def scale_of(self, module: nn.Embedding) -> float:
        """What a lookup multiplies rows by: 1, or `embed_scale` (Gemma 3, BART)."""
        scale = getattr(module, "embed_scale", 1.0)
        if isinstance(scale, Tensor):
            scale = float(scale.to(module.weight.dtype))
        with torch.no_grad():
            looked_up, wanted = module(self.ids), self.before * scale
        if looked_up.shape != wanted.shape or not torch.allclose(looked_up, wanted, rtol=1e-2):
            raise TypeError(f"{type(module).__qualname__} is more than a lookup times its embed_scale: not supported")
        return float(scale)

    def write(self, changed: bool = False) -> None:
        """Put the rows into the table; counts as a change of it only where they did change."""
        weight, stamp = self.table.weight, self.stamp_of_rows()
        self.follow(weight.device)
        weight.data.index_copy_(0, self.ids, self.rows.detach().to(weight))
        if changed or stamp != self.stamp:
            increment_version(weight)
        self.stamp = stamp

    def is_in_place(self) -> bool:
        """Whether table and parameter are those that were found and made."""
        return len(self.slots) == len(self.table.weight) and self.table.first._parameters.get(ROWS) is self.rows

    def stamp_of_rows(self) -> tuple[int, int]:
        return self.rows._version, self.rows.data_ptr()

    def follow(self, device: torch.device) -> None:
        if self.ids.device != device:
            self.ids, self.slots = self.ids.to(device), self.slots.to(device)

    def detach(self, *, restore: bool) -> None:
        """Make it a plain table again, with the rows as they are or, to `restore`, as they were."""
        LIVE.discard(self)
        for hook in self.hooks:
            hook.remove()
        self.write()
        weight = self.table.weight
        if restore:
            with torch.no_grad():
                weight[self.ids] = self.before.to(weight.device)
        del self.table.first._parameters[ROWS]
        weight.requires_grad_(self.was_trained)

    # Hooks of the modules that read the table

    def before_forward(self, *_: Any) -> None:
        if torch.compiler.is_compiling():  # the optimizer's hook and loading have written
            self.follow(self.table.weight.device)
        else:
            self.write()

    def learns(self) -> bool:
        return torch.is_grad_enabled() and self.rows.requires_grad

    def after_lookup(self, scale: float, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        ids = args[0] if args else kwargs["input"]
        if not self.learns():
            return None
        slots = self.slots[ids]
        if module.padding_idx is not None:
            slots = torch.where(ids == module.padding_idx, len(self.ids), slots)
        found: Tensor = _Lookup.apply(output, self.rows, slots, scale, module.scale_grad_by_freq)  # type: ignore[no-untyped-call]
        return found

    def after_head(self, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        self.head_ran = True
        hidden = args[0] if args else kwargs["input"]
        return head_rows(output, hidden, self.rows, self.ids) if self.learns() else None

    # Hooks of saving and loading: the model's state is that of a plain model

    def before_saving(self, *_: Any) -> None:
        self.write()

    def after_saving(self, module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        state.pop(prefix + ROWS, None)

    def before_loading(self, module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        loaded = state.get(prefix + "weight")
        if loaded is not None and loaded.shape == self.table.weight.shape:
            with torch.no_grad():
                self.rows.copy_(loaded[self.ids.to(loaded.device)])
        state[prefix + ROWS] = self.rows


class _Lookup(torch.autograd.Function):
    """A frozen lookup's output (..., D), as a function of the rows (R, D) at `slots` (...) too; slot R is no row."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rows: Tensor, slots: Tensor, scale: float, by_freq: bool) -> Tensor:
        ctx.save_for_backward(rows, slots)
        ctx.scale, ctx.by_freq = scale, by_freq
        return output.detach()  # not a view of it for autograd: what follows may write into it

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, slots = ctx.saved_tensors
        none = len(rows)
        sums = torch.ops.aten.embedding_dense_backward(grad.to(rows.dtype), slots, none + 1, none, ctx.by_freq)
        return grad, sums[:none] * ctx.scale, None, None, None


LIVE: weakref.WeakSet[ChosenRows] = weakref.WeakSet()


@functools.cache
def prepare() -> None:
    """What the process needs once, at the first chosen rows."""
    register_optimizer_step_post_hook(write_stepped)


def write_stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """The table is right when `step` returns, for whoever reads it; fused optimizers count no version."""
    if LIVE:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for chosen in LIVE:
            if id(chosen.rows) in stepped:
                chosen.write(changed=True)
