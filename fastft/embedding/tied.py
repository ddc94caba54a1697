"""An embedding tied to a head: its row sums are added into the head's gradient, and no second one is made."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fastft.embedding.model import output_embedding, own_weight, owner_of
from fastft.embedding.tied_gradient import TiedLookup, densified


class TiedEmbedding(nn.Embedding):
    r"""`torch.nn.Embedding` for a weight that a head reads too, which gives that weight a dense gradient.

        dW[v] = head's dW[v] + sum_{n: ids[n] = v} dy[n]

    torch makes a zeroed (V, D) gradient of the lookup and adds it to the head's. Here the sums of the touched rows, in
    fp32 and in order of position, the same bits each time, are added into the head's, rounded once. What follows sees
    the whole gradient: `weight.grad`, hooks, DDP, FSDP, `torch.autograd.grad`, GradScaler. Several lookups of one table
    (encoder and decoder), gradient accumulation and checkpointing are as ever; where no head takes part the gradient
    is made dense.

    Arguments are `torch.nn.Embedding`'s, but no max_norm, scale_grad_by_freq or sparse. Row `padding_idx` learns from
    the head alone.

    `forward(ids)`: ids (...) -> (..., D), `torch.nn.Embedding`'s values. Its gradient too, dense as torch's is, under
    `torch.compile`, with `create_graph=True` and of a weight that is a tensor subclass (DTensor).

    The head's gradient is written to only if nothing else holds it; else torch would not write to it either, and it
    is copied.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        check_options(self)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> nn.Embedding:
        """Make `embedding` one, in place: module, parameter, hooks and state_dict stay, and are all that there is.

        Its class becomes a subclass of what it was: one that scales its rows (Gemma 3, BART) goes on doing so, as its
        forward calls `torch.nn.Embedding`'s.

        Raises:
            TypeError: no `torch.nn.Embedding`, or one whose forward was replaced or does not call that of
                `torch.nn.Embedding` with the ids.
            ValueError: max_norm, scale_grad_by_freq or sparse; a frozen weight.
        """
        kind = type(embedding)
        if isinstance(embedding, TiedEmbedding):
            return embedding
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding is a {kind.__qualname__}; expected a torch.nn.Embedding")
        if "forward" in embedding.__dict__:
            raise TypeError(f"the forward of this {kind.__qualname__} was replaced (by accelerate?): switch before")
        check_options(embedding)
        if not embedding.weight.requires_grad:
            raise ValueError("the embedding's weight is frozen, so there is no gradient to add: leave it as it is")
        embedding.__class__ = tied_kind(kind)  # type: ignore[arg-type]
        if not reaches_lookup(embedding):
            embedding.__class__ = kind
            raise TypeError(f"{kind.__qualname__}.forward(ids) does not call torch.nn.Embedding.forward: not supported")
        return embedding

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight
        learns = weight.requires_grad and torch.is_grad_enabled()
        if not learns or torch.compiler.is_compiling() or type(weight) not in (Tensor, nn.Parameter):
            return super().forward(input)
        if densified not in (weight._backward_hooks or {}).values():  # FSDP makes new parameters
            weight.register_hook(densified)  # type: ignore[no-untyped-call]
        rows: Tensor = TiedLookup.apply(weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A class made by `tied_kind` is made anew where it is unpickled."""
        reduced: Any = super().__reduce_ex__(2)
        kind = type(self)
        return remade, (kind if kind.__bases__[0] is nn.Embedding else kind.__bases__[0],), *reduced[2:]


def tie_lookups(model: Any) -> list[str]:
    """Make every `torch.nn.Embedding` that a transformers model's head is tied to a `TiedEmbedding`, in place.

    Returns their paths: none where the head has a table of its own, there is no head, or the table is frozen. Call it
    when it is known which parameters learn; before or after an optimizer, `fastft.patch`, DDP or FSDP.

    Raises:
        TypeError, ValueError: no transformers model; or as in `TiedEmbedding.from_embedding`, with nothing changed.
    """
    owner = owner_of(model)
    head = output_embedding(owner)
    weight = None if head is None else own_weight(head)
    if weight is None or not weight.requires_grad:
        return []
    lookups = {path: m for path, m in owner.named_modules() if own_weight(m) is weight and isinstance(m, nn.Embedding)}
    before = {module: type(module) for module in lookups.values()}
    try:
        for module in lookups.values():
            TiedEmbedding.from_embedding(module)
    except (TypeError, ValueError):
        for module, kind in before.items():
            module.__class__ = kind
        raise
    return list(lookups)


def check_options(embedding: nn.Embedding) -> None:
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(embedding, name):
            raise ValueError(f"{name} is {getattr(embedding, name)!r}; TiedEmbedding has none: use torch.nn.Embedding")


@functools.cache
def tied_kind(kind: Any) -> Any:
    """`kind`, with TiedEmbedding in the place of `torch.nn.Embedding`."""
    if kind is nn.Embedding or issubclass(kind, TiedEmbedding):
        return TiedEmbedding if kind is nn.Embedding else kind
    return type(f"Tied{kind.__name__}", (kind, TiedEmbedding), {"__module__": __name__, "__doc__": kind.__doc__})


def remade(kind: type[nn.Embedding]) -> nn.Embedding:
    tied = tied_kind(kind)  # type: ignore[arg-type]
    made: nn.Embedding = tied.__new__(tied)
    return made


def reaches_lookup(embedding: nn.Embedding) -> bool:
    with torch.enable_grad():
        try:
            found = embedding.forward(torch.zeros(1, 1, dtype=torch.int64, device=embedding.weight.device))
        except TypeError:  # it wants more than ids
            return False
    nodes = [getattr(found, "grad_fn", None)]
    while nodes:
        node = nodes.pop()
        if node is not None and node.name() == "TiedLookupBackward":
            return True
        nodes += [following for following, _ in node.next_functions] if node is not None else []
    return False
