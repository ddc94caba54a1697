"""The embedding tables of a Hugging Face model, and the modules that read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS = "trainable_rows"  # the attribute by which a table's first module holds its trainable rows


@dataclass(frozen=True)
class Table:
    """One parameter (V, D); a tied head and its input embedding are one table."""

    name: str  # "input" | "output"
    modules: dict[str, nn.Module]  # by path in the transformers model; the first is the one it is known by

    @property
    def first(self) -> Any:
        return next(iter(self.modules.values()))

    @property
    def weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.first.weight
        return weight

    @property
    def linears(self) -> Iterator[nn.Linear]:
        return (module for module in self.modules.values() if isinstance(module, nn.Linear))


def owner_of(model: Any) -> Any:
    """The outermost module that itself defines `get_input_embeddings`: the model inside PEFT's or DDP's wrapper."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    owner = next((m for m in modules if hasattr(type(m), "get_input_embeddings")), None)
    if owner is None:
        raise TypeError(f"model is a {type(model).__name__}; expected a transformers.PreTrainedModel, or one wrapped")
    return owner


def tables_of(model: Any) -> list[Table]:
    """The input table, and the head's where it has its own.

    Raises:
        TypeError: no transformers model, or a table that is not a plain matrix; the message names its module.
        ValueError: no input embedding, or rows of it are being trained already.
    """
    owner = owner_of(model)
    kind = type(owner).__name__
    embedding, head = owner.get_input_embeddings(), output_embedding(owner)
    if embedding is None:
        raise ValueError(f"{kind} has no input embedding (get_input_embeddings() is None)")
    firsts = {"input": embedding}
    if head is not None and own_weight(head) is not own_weight(embedding):
        firsts["output"] = head
    tables = []
    for name, first in firsts.items():
        reason = why_not(first, nn.Embedding if name == "input" else nn.Linear)
        if reason is not None:
            raise TypeError(f"the {name} embedding of {kind} {reason}")
        weight = own_weight(first)
        modules = {path: m for path, m in owner.named_modules() if own_weight(m) is weight}
        others = {path: m for path, m in modules.items() if not isinstance(m, (nn.Embedding, nn.Linear))}
        for path, module in others.items():
            raise TypeError(f"the {name} embedding of {kind} is also the weight of {path!r}, a {type(module).__name__}")
        modules = dict(sorted(modules.items(), key=lambda item: item[1] is not first))
        if ROWS in first._parameters:
            raise ValueError(f"{kind} has TrainableRows already: call their merge() (or remove()) first")
        tables.append(Table(name, modules))
    return tables


def output_embedding(owner: Any) -> Any:
    """The head's module, or None."""
    return owner.get_output_embeddings() if hasattr(type(owner), "get_output_embeddings") else None


def own_weight(module: nn.Module) -> Tensor | None:
    return module._parameters.get("weight")


def why_not(module: nn.Module, wanted: type[nn.Module]) -> str | None:
    """Why this module's weight cannot be written row by row, or None."""
    name = type(module).__qualname__
    if hasattr(module, "base_layer") or hasattr(module, "token_adapter") or hasattr(module, "modules_to_save"):
        return f"carries a PEFT adapter ({name}): leave it out of the adapter's target modules"
    if not isinstance(module, wanted):
        return f"is a {name}; expected a torch.nn.{wanted.__name__}"
    weight = own_weight(module)
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
        return f"({name}) has no plain Parameter but a {type(weight).__qualname__}: gather or dequantise it first"
    if weight.is_meta:
        return f"({name}) is on the meta device (offloaded?): load it first"
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"({name}) holds {weight.dtype} (quantised?): rows of floating tables only; load it unquantised"
    if getattr(module, "max_norm", None) is not None:
        return f"({name}) has max_norm, which rewrites rows in forward: set it to None"
    return None
