"""The optimizers of a run: groups of parameters with rates of their own, and row updates where they apply."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastft.dispatch import optional
from fastft.embedding import SparseEmbedding, tie_lookups
from fastft.embedding.model import output_embedding, own_weight, owner_of
from fastft.optim import SparseAdamW
from fastft.trainer.config import TrainConfig
from fastft.trainer.learning import matching, names_of

UNFIT = (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)  # none, wants several passes, wants sparse gradients
GROUP_KEYS = {"params", "learning_rate", "weight_decay"}


def make_optimizers(model: nn.Module, config: TrainConfig, learning: Sequence[nn.Parameter]) -> list[Optimizer]:
    """One optimizer over every parameter that ever learns; the row updates of a `SparseEmbedding` are a second one.

    A parameter's learning rate and decay are those of the first of `param_groups` that names it, else the run's, and
    then there is no decay for fewer than two dimensions (norms, biases). Each group's `initial_lr` is its peak.

    Raises:
        ValueError: a class that is not there, or does not take the arguments; a group that cannot be meant.
    """
    names = names_of(model)
    rules = [(_checked(number, rule), rule) for number, rule in enumerate(config.param_groups or [])]
    named = [
        (set().union(*(matching(pattern, names, "param_groups") for pattern in patterns)), rule)
        for patterns, rule in rules
    ]
    tables = {m.weight for m in model.modules() if isinstance(m, SparseEmbedding)}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in learning:
        rule = next((rule for found, rule in named if parameter in found), {})
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        key = (
            parameter in tables,
            float(rule.get("learning_rate", config.learning_rate)),
            float(rule.get("weight_decay", decay)),
        )
        groups.setdefault(key, []).append(parameter)
    dense, rows = (
        [{"params": found, "lr": lr, "initial_lr": lr, "weight_decay": decay} for (table, lr, decay), found in
         groups.items() if table is kind]
        for kind in (False, True)
    )  # fmt: skip
    made = [_dense(dense, config)] if dense else []
    if rows:
        made.append(SparseAdamW(rows, engine="bitwise", **_adam(config)))
    return made


def set_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Each group's learning rate, as a share of its peak; some optimizers hold it in a tensor of their own."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def use_row_updates(model: nn.Module, config: TrainConfig) -> None:
    """Put a `SparseEmbedding` in the place of the input embedding where that applies. One that is tied to the head
    stays, and its row sums go into the head's gradient (`tie_lookups`).

    Raises:
        ValueError: `sparse_embeddings` is true, and it does not; the message says why.
    """
    if config.sparse_embeddings is False:
        return
    owner = owner_of(model)
    reason = _why_dense(owner, config)
    if reason is not None:
        if config.sparse_embeddings:
            raise ValueError(f"sparse_embeddings is true, but {reason}")
        with suppress(TypeError, ValueError):  # a kind of embedding that it does not know
            tie_lookups(model)
        return
    table = owner.get_input_embeddings()
    path = next(path for path, module in owner.named_modules() if module is table)
    owner.set_submodule(path, SparseEmbedding.from_embedding(table))


def _why_dense(owner: Any, config: TrainConfig) -> str | None:
    embedding, head = owner.get_input_embeddings(), output_embedding(owner)
    weight = own_weight(embedding)
    readers = [path for path, module in owner.named_modules() if own_weight(module) is weight]
    if config.optimizer != "adamw" or config.optimizer_args:
        return f"optimizer is {config.optimizer}: rows are stepped as torch's AdamW does"
    if config.distributed == "fsdp":
        return "distributed is fsdp, which shards the table"
    if config.train_rows:
        return "train_rows leaves the rest of the table as it is"
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return f"the input embedding is a {type(embedding).__qualname__}; row updates know torch.nn.Embedding"
    if head is not None and own_weight(head) is weight:
        return "the input embedding is tied to the head, whose gradient has every row"
    if len(readers) > 1:
        return f"the table is that of {len(readers)} modules: {', '.join(readers[:3])}"
    return None


def _dense(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    if config.optimizer == "adamw":
        if config.optimizer_args:
            raise ValueError(
                "optimizer_args are of a class that optimizer names, such as AdamW; adamw is torch's fused"
            )
        return torch.optim.AdamW(groups, fused=True, **_adam(config))
    kind = _class(config.optimizer)
    known = inspect.signature(kind).parameters
    given = {  # Adafactor's eps is a pair of something else
        name: value for name, value in _adam(config).items() if name in known and _alike(known[name].default, value)
    }
    try:
        return kind(groups, **{**given, **(config.optimizer_args or {})})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer {config.optimizer} with {config.optimizer_args or 'no optimizer_args'}: {error}"
        ) from None


def _alike(default: Any, value: Any) -> bool:
    return isinstance(default, tuple) == isinstance(value, tuple)


def _adam(config: TrainConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }


def _class(name: str) -> type[Optimizer]:
    """A class of torch.optim, or `module.Class`."""
    module, _, attribute = name.rpartition(".")
    found = getattr(optional(module or "torch.optim", f"optimizer {name}"), attribute, None)
    if isinstance(found, type) and issubclass(found, Optimizer) and found not in UNFIT:
        return found
    known = ["adamw", *(k for k, v in vars(torch.optim).items() if isinstance(v, type) and k[0].isupper())]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are adamw, {', '.join(sorted(known[1:]))}, module.Class"
    raise ValueError(f"optimizer is {name!r}, which is no optimizer that takes one step per dense gradient: {hint}")


def _checked(number: int, rule: Mapping[str, Any]) -> list[str]:
    """The names of a group of `param_groups`."""
    patterns = [rule["params"]] if isinstance(rule.get("params"), str) else rule.get("params")
    rates = [rule[key] for key in ("learning_rate", "weight_decay") if key in rule]
    right = isinstance(patterns, list) and patterns and all(isinstance(pattern, str) for pattern in patterns)
    numbers = all(isinstance(rate, int | float) and not isinstance(rate, bool) and rate >= 0 for rate in rates)
    if not right or not rates or not numbers or set(rule) - GROUP_KEYS:
        raise ValueError(
            f"param_groups: number {number} is {dict(rule)!r}; wanted params (names of parameters or modules) and "
            "learning_rate, weight_decay, or both, as numbers >= 0"
        )
    return [str(pattern) for pattern in patterns or []]
