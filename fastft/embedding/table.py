"""An embedding whose backward and optimizer step cost what the touched rows cost."""

from typing import Any

import torch
from torch import Tensor, nn

from fastft.embedding.compiled import enter, lookup, read, sum_rows
from fastft.optim.gradient import Groups, grouped, row_gradient


class SparseEmbedding(nn.Embedding):
    """`torch.nn.Embedding` whose weight has a compact row gradient, for `fastft.optim.SparseAdamW` and its kin.

        y[n] = weight[ids[n]]
        weight.grad[r] = sum over n with ids[n] = r of y.grad[n], for touched rows r

    The gradient is a coalesced sparse COO tensor (V, D), summed in fp32 in order of position: the same bits each time.
    No (V, D) gradient exists, and gradients of several backward passes add up by rows (not in fp16 on the CPU, where
    torch has no such sum). Under the semantics "dense" of those optimizers forward reads each row as dense training
    would have left it, whether or not it has been written.

    Args:
        num_embeddings, embedding_dim, padding_idx, device, dtype: as in `torch.nn.Embedding`; row `padding_idx` gets
            no gradient.

    `forward(ids)`: integer ids (...) -> (..., D), of the weight's dtype. `state_dict` is `torch.nn.Embedding`'s, after
    a `flush()` of the optimizer; what else reads the weight, beside forward, needs `flush()` first.

    Raises:
        IndexError: an id outside [0, V), on the CPU.
        ValueError: max_norm or scale_grad_by_freq, which need more than the touched rows' gradient.

    Under `torch.compile`, also with fullgraph=True, values and gradient are the same, bit by bit. The gradient is then
    in `weight.grad` once backward has run, but `torch.autograd.grad` has none for the weight, and hooks of the weight
    are refused (RuntimeError, in backward).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, **options: Any) -> None:
        for name in ("max_norm", "scale_grad_by_freq"):
            if options.get(name):
                raise ValueError(f"{name} is {options[name]!r}; SparseEmbedding has none: use torch.nn.Embedding")
        super().__init__(num_embeddings, embedding_dim, padding_idx, **{**options, "sparse": True})
        self.mark = torch.zeros((), device="cpu", requires_grad=True)
        self.number = enter(self)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> "SparseEmbedding":
        """One that shares the weight of `embedding`, to take its place in a model.

        Where a head is tied to the weight, its gradient is dense, every row learns and there is nothing to spare: the
        row sums are then added into that gradient.
        """
        if type(embedding) is not nn.Embedding:  # one that scales its rows, for instance, would lose that
            raise TypeError(f"embedding is a {type(embedding).__name__}; expected a plain torch.nn.Embedding")
        rows, width = embedding.weight.shape
        made = cls(
            rows, width, embedding.padding_idx, _weight=embedding.weight,
            max_norm=embedding.max_norm, scale_grad_by_freq=embedding.scale_grad_by_freq,
        )  # fmt: skip
        made.weight = embedding.weight
        return made.train(embedding.training)

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"ids are {input.dtype}; expected int64 or int32")
        if torch.compiler.is_compiling():
            compiled: Tensor = lookup(self.weight, input, self.mark if self.weight.requires_grad else None, self.number)
            return compiled
        weight = self.weight
        if not hasattr(weight, "sums_rows") and weight.requires_grad:
            weight.sums_rows = weight.register_post_accumulate_grad_hook(sum_rows)  # type: ignore[attr-defined, no-untyped-call]
        rows: Tensor = Lookup.apply(weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is a table of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.number = enter(self)

    def _load_from_state_dict(self, *args: Any) -> None:
        weight, optimizer = self.weight, getattr(self.weight, "row_optimizer", None)
        if optimizer is not None:
            optimizer.flush()  # else rows would go on from what is loaded, by steps before it
        super()._load_from_state_dict(*args)
        if optimizer is not None:
            optimizer.written(weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if hasattr(self.weight, "row_optimizer"):
            self.weight.row_optimizer.flush()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return super().extra_repr().replace(", sparse=True", "")


class Lookup(torch.autograd.Function):
    """weight (V, D), ids (...) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.weight, ctx.padding_idx = weight, padding_idx
        flat = ids.reshape(-1).long()
        rows, groups = read(weight, flat)
        ctx.save_for_backward(*(groups or (flat,)))
        return rows.view(*ids.shape, weight.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        saved, weight = ctx.saved_tensors, ctx.weight
        groups = Groups(*saved) if len(saved) > 1 else grouped(saved[0], len(weight))
        grad = grad.reshape(len(groups.order), weight.shape[1])
        groups = groups.without(ctx.padding_idx)
        weight.summed = len(groups.touched)
        return row_gradient(groups, grad, weight.shape, weight.dtype), None, None
