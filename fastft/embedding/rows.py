"""Train chosen rows of a model's embedding table(s), such as those of new tokens, and nothing else of them."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastft.embedding.adapter import save_peft_adapter
from fastft.embedding.chosen import ChosenRows
from fastft.embedding.model import output_embedding, owner_of, tables_of


class TrainableRows(nn.Module):
    r"""Rows `token_ids` of the embedding tables as parameters (R, D) of their own; the tables are frozen.

        W[id_r] = rows_r
        lookup:  e_i = W[t_i]          d rows_r = sum_{i: t_i = id_r} d e_i
        head:    z = h W^T + bias      d rows_r = sum_i dz[i, id_r] h_i

    A tied model has one table, and both sums go to it; else there are two. Every other row keeps its bits, weight
    decay or not, and neither a gradient nor optimizer state is larger than R x D. The rest of the model is left as it
    is: freeze it, train it, or put LoRA on it (`get_peft_model` first: it freezes parameters that are not its own).

        ids = add_tokens(model, tokenizer, {"<think>": "text:let me think"})
        rows = TrainableRows(model, ids)
        optimizer = torch.optim.AdamW(rows.parameters(), lr=1e-3)

    Parameters are `input` and, of an untied head, `output`, in at least fp32: the master copy of half-precision tables.
    The model holds them as well (`model.parameters()`, DDP, `model.to(...)`), but not in its `state_dict`, which is
    that of the plain model with the rows in the tables; loading one sets the rows. The tables are up to date when
    a `torch.optim.Optimizer` steps and before every forward and save; with `fastft.patch`, before or after, the loss
    stays fused, the head's gradient being computed for these rows only.

    Args:
        model: a `transformers.PreTrainedModel`, or a module around one (PEFT, DDP).
        token_ids: R different ids, in any order. Row `padding_idx` learns from the head alone, as in torch.

    Raises:
        TypeError: no transformers model; a table that is no plain `nn.Embedding` or `nn.Linear`, or is quantised,
            sharded, offloaded or under a PEFT adapter; the message names it.
        ValueError: no ids, an id twice or out of range; rows of this model are trained already.
        RuntimeError, in forward: the tables were resized or replaced since.

    The idea is PEFT's `TrainableTokensModel`, which copies the table in every forward and makes a V x D gradient of it.
    """

    def __init__(self, model: nn.Module, token_ids: Sequence[int] | Tensor) -> None:
        super().__init__()
        owner, tables = owner_of(model), tables_of(model)
        self.token_ids = checked(token_ids, min(len(table.weight) for table in tables))
        self.chosen = [ChosenRows(table, self.token_ids) for table in tables]
        for chosen in self.chosen:
            self.register_parameter(chosen.table.name, chosen.rows)
        self.readers = [owner, owner.get_input_embeddings(), output_embedding(owner)]
        lookups = [m for m in tables[0].modules.values() if isinstance(m, nn.Embedding)]
        called = [owner, *lookups]  # PEFT calls the model's forward without its hooks
        self.hooks = [module.register_forward_pre_hook(self._before_forward) for module in called]
        self.hooks.append(owner.register_forward_hook(self._after_forward, with_kwargs=True))

    def write(self) -> None:
        """Put the rows into the tables now; after `rows.input.data` was written to and the tables are read directly."""
        for chosen in self.chosen:
            chosen.write()

    def merge(self) -> None:
        """Leave a plain model: the tables hold the rows as they are now, and are trainable again if they were."""
        self._detach(restore=False)

    def remove(self) -> None:
        """Leave a plain model: the tables' rows are again, bit by bit, those before training."""
        self._detach(restore=True)

    def save_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Write the rows as a PEFT adapter, for `PeftModel.from_pretrained(model, folder)`.

        In a folder to which a LoRA model was saved (`peft_model.save_pretrained`), they become its
        `trainable_token_indices`; elsewhere it is an adapter of type TRAINABLE_TOKENS. The model that it is loaded
        into must have these tokens: `add_tokens` or `resize_token_embeddings` first.

        Raises:
            ValueError: the head has a bias, which PEFT's layer drops; the folder holds an adapter that is not LoRA.
        """
        if any(linear.bias is not None for chosen in self.chosen for linear in chosen.table.linears):
            raise ValueError("PEFT drops the bias of a head with trainable tokens: save the whole model instead")
        rows = {tuple(chosen.table.modules): chosen.rows.detach() for chosen in self.chosen}
        save_peft_adapter(folder, rows, self.token_ids, getattr(self.readers[0], "name_or_path", None))

    def get_extra_state(self) -> list[int]:
        """The ids, so that rows of other tokens are not loaded."""
        return self.token_ids

    def set_extra_state(self, state: list[int]) -> None:
        if state != self.token_ids:
            raise ValueError(f"these are rows of tokens {state}; TrainableRows was made for {self.token_ids}")

    def extra_repr(self) -> str:
        return f"token_ids={self.token_ids}"

    def _detach(self, *, restore: bool) -> None:
        for hook in self.hooks:
            hook.remove()
        for chosen in self.chosen:
            chosen.detach(restore=restore)
        self.hooks, self.chosen = [], []

    def _before_forward(self, module: Any, args: Any) -> None:
        owner, *readers = self.readers
        now = owner.get_input_embeddings(), output_embedding(owner)
        same = all(a is b for a, b in zip(readers, now, strict=True))
        if not same or not all(chosen.is_in_place() for chosen in self.chosen):
            raise RuntimeError(
                "an embedding was resized, replaced or sharded after TrainableRows was made: merge() it before that, "
                "and make it anew"
            )
        if module is owner:
            for chosen in self.chosen:
                chosen.head_ran = False
        elif owner.training and torch.is_grad_enabled() and not any(c.rows.requires_grad for c in self.chosen):
            warnings.warn(
                "the trainable rows are frozen (by get_peft_model, which comes before TrainableRows?): "
                "rows.requires_grad_(True) thaws them", stacklevel=2,
            )  # fmt: skip

    def _after_forward(self, owner: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or kwargs.get("labels") is None:
            return
        if not all(chosen.head_ran for chosen in self.chosen if any(True for _ in chosen.table.linears)):
            warnings.warn(
                f"{type(owner).__name__} did not call its output embedding: if it reads the weight itself, the rows "
                "get no gradient that way", stacklevel=2,
            )  # fmt: skip


def checked(token_ids: Sequence[int] | Tensor, size: int) -> list[int]:
    ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"token_ids is {token_ids!r}; expected at least one token id (int)")
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"token_ids has {twice[0]} twice; give each id once")
    outside = [i for i in ids if not 0 <= i < size]
    if outside:
        raise ValueError(
            f"token id {outside[0]} has no row: the table has {size}; add_tokens(model, tokenizer, ...) makes rows"
        )
    return ids
