"""The loss of `transformers.Trainer`, by fastft: for its argument `compute_loss_func`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastft.hf.lazy_logits import LazyLogits, transforming
from fastft.hf.patch import ADVICE, HOOKS, owner_of, patch, warn_once
from fastft.losses.cross_entropy import cross_entropy

IGNORED = -100  # transformers': what its Trainer counts


def trainer_loss(
    model: nn.Module, *, shift_labels: bool | None = None, **options: Any
) -> Callable[[Any, Tensor | None, Any], Tensor]:
    """For `transformers.Trainer(model, compute_loss_func=trainer_loss(model))`: a fused loss, exact in accumulation.

        loss = sum_i w_i nll_i / num_items,   w_i = 1, or `weight[target_i]`

    `num_items` is the number of labels in the whole accumulation window and on all ranks, which Trainer counts: any
    split of a window into micro-batches gives the same gradient. Without it (outside Trainer) the loss is the mean.
    No supervised token gives 0. transformers itself has this for models whose forward takes `num_items_in_batch`;
    of BERT, RoBERTa, DistilBERT, T5, BART and others it adds up the means of the micro-batches, so that accumulation
    multiplies loss and gradient by their number.

    Args:
        model: as for `patch`, which it gets here if it has not yet.
        shift_labels: whether logits at a position are for the label at the next one. None: a forward of ten tokens,
            without gradients, tells what the model's own loss does.
        options: `label_smoothing`, `weight`, `z_loss` and others of `fastft.losses.cross_entropy`. (What Trainer's
            `label_smoothing_factor` says, Trainer does not pass on.)

    Returns:
        `function(outputs, labels, num_items_in_batch=None) -> loss`, a scalar.

    Raises:
        TypeError, ValueError: as `patch`.
        ValueError: the model's own loss is no cross-entropy of its logits and labels alone (router losses, two sets
            of labels), which the message says; or the model cannot be asked: give `shift_labels`. When it trains:
            an encoder-decoder without `decoder_input_ids`, since Trainer takes the labels, from which the model
            makes them, out of the batch; logits and labels of different lengths; `nn.DataParallel`.
    """
    patch(model)
    owner = owner_of(model)
    if shift_labels is None:
        shift_labels = shifts_labels(owner)
    watch = DecoderInputs(owner) if is_encoder_decoder(owner) else None

    def loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        if labels is None:
            raise ValueError("the batch has no 'labels': have the data collator or the data set give them")
        if watch is not None:
            watch.check()
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if not transforming() and (not isinstance(logits, LazyLogits) or logits.is_materialized):
            warn_once(
                f"the loss of {type(owner).__name__} is not fused: something read or replaced its logits; {ADVICE}"
            )
        total: Tensor = token_loss(logits, labels, shift_labels, num_items=one_number(num_items_in_batch), **options)
        return total

    return loss


def token_loss(logits: Tensor, labels: Tensor, shift: bool, **options: Any) -> Any:
    """`cross_entropy` of logits (B, T, V) and labels (B, T); of position t and label t + 1, to `shift`."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}: a label is wanted for each position "
            "(virtual tokens of PEFT's prompt learning? decoder inputs of another length?)"
        )
    labels = labels.to(logits.device)
    if shift:
        labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    return cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, **options)


def one_number(num_items: Any) -> Any:
    """Trainer's count, a number or a tensor of one element."""
    if isinstance(num_items, Tensor) and num_items.numel() != 1:
        raise ValueError(
            f"num_items_in_batch has {num_items.numel()} values, as for nn.DataParallel, which Trainer uses where one "
            "process sees several GPUs: start one process per GPU (torchrun), or show it one (CUDA_VISIBLE_DEVICES)"
        )
    return num_items.reshape(()) if isinstance(num_items, Tensor) else num_items


def is_encoder_decoder(owner: Any) -> bool:
    return bool(getattr(owner.config, "is_encoder_decoder", False))


class DecoderInputs:
    """Whether the last forward of an encoder-decoder was given its decoder's inputs; `unpatch` ends the watch."""

    def __init__(self, owner: Any) -> None:
        self.name, self.given = type(owner).__name__, True
        setattr(owner, HOOKS, (*vars(owner)[HOOKS], owner.register_forward_pre_hook(self.see, with_kwargs=True)))

    def see(self, owner: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if transforming():
            return
        names = ("labels", "decoder_input_ids", "decoder_inputs_embeds")
        self.given = len(args) > 2 or any(kwargs.get(name) is not None for name in names)
        if owner.training:
            self.check()  # before the model refuses in words of its own (T5), or does not (BART)

    def check(self) -> None:
        if not self.given:
            raise ValueError(
                f"{self.name} got no decoder_input_ids: given compute_loss_func, Trainer takes the labels out of the "
                "batch, and the model does not make decoder inputs of them; as data_collator, use "
                "DataCollatorForSeq2Seq(tokenizer, model=model), which adds them, or another that does "
                "(model.prepare_decoder_input_ids_from_labels)"
            )


@torch.no_grad()
def shifts_labels(owner: Any) -> bool:
    """Ask a transformers model whether its own loss shifts the labels, and whether it is a cross-entropy of them.

    With one label, at position 0, a loss that shifts has nothing to learn: it is 0 (or NaN where it is not patched).
    """
    name, vocab = type(owner).__name__, owner.get_output_embeddings().weight.shape[0]
    device = owner.get_input_embeddings().weight.device
    ids = (torch.arange(10, device=device).reshape(2, 5) + 5) % vocab
    first = torch.full_like(ids, IGNORED)
    first[:, 0] = ids[:, 0]
    try:
        with evaluating(owner):
            alone, whole = (owner(input_ids=ids, labels=labels) for labels in (first, ids))
            shift = alone.loss is not None and (math.isnan(float(alone.loss)) or float(alone.loss) == 0)
            own = None if whole.loss is None else float(whole.loss)
            ours = math.nan if own is None else float(token_loss(whole.logits.float(), ids, shift))
    except Exception as error:
        raise ValueError(
            f"{name} cannot be asked whether its loss shifts labels ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}): give "
            "trainer_loss(model, shift_labels=True) where logits at a position are for the label at the next one, "
            "else False"
        ) from error
    if own is None or not math.isclose(own, ours, rel_tol=1e-2):
        raise ValueError(
            f"the loss of {name} is {'None' if own is None else f'{own:.6g}'} where cross-entropy of its logits and "
            f"labels is {ours:.6g}: it is made of more (router losses? a second set of labels?). Leave "
            "compute_loss_func out: after patch(model), the model's own loss is fused"
        )
    return shift


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
