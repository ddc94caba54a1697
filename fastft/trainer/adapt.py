"""What is put onto a model before it learns: rows of new tokens, low-rank adapters, trainable rows; and its keeping."""

import copy
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastft.dispatch import optional
from fastft.embedding import TrainableRows, add_tokens
from fastft.embedding.model import ROWS
from fastft.embedding.tokens import enroll, recipes_of, token_id
from fastft.hf.pretrained import load_outline
from fastft.trainer.config import TrainConfig, unknown_key

TRAINED = "trained.safetensors"  # in a checkpoint with LoRA: every parameter that may have learned, by name
NEW = "new"  # in train_rows: all of new_tokens
OF_ADAPTER = re.compile(rf"\.(lora_\w+|modules_to_save|token_adapter|{ROWS})(\.|$)")  # in a parameter's name
LORA_NAMES = {  # what others call the arguments of LoraConfig
    "rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "lora_target": "target_modules", "lora_target_modules": "target_modules", "additional_target": "modules_to_save",
}  # fmt: skip


def extended(tokenizer: Any, new_tokens: Mapping[str, str] | None) -> Any:
    """A copy of a tokenizer that has the new tokens too, with the ids that `add_tokens` will give them.

    Data is tokenised with it before weights are loaded; the tokenizer itself is left as it is, for `adapt`. Without
    new tokens the tokenizer itself is returned.

    Raises:
        ValueError: a token that is there already, has no visible character or a source that cannot be meant.
    """
    if not new_tokens:
        return tokenizer
    made = copy.deepcopy(tokenizer)
    try:
        recipes_of(new_tokens, tokenizer, tokenizer.get_vocab())
        enroll(new_tokens, made)
    except ValueError as error:
        raise ValueError(f"new_tokens: {error}") from error
    return made


def make_room(outline: Any, tokenizer: Any) -> None:
    """Give a model without weights (`load_outline`) the rows that its tokenizer's new tokens will have."""
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > len(outline.get_input_embeddings().weight):
        outline.resize_token_embeddings(needed, mean_resizing=False)


def outlined(config: TrainConfig, source: str, kind: str, resumed: bool = False) -> tuple[Any, Any, Any]:
    """What can be said of a run's model before its weights are loaded.

    Args:
        source, kind: of `load_outline`. resumed: as for `adapt`.

    Returns:
        The model without weights and with room for new tokens, the tokenizer as it came, and the one with new tokens.

    Raises:
        ValueError: new_tokens, train_rows or lora cannot be meant.
        FileNotFoundError, ImportError: as `load_outline`.
    """
    outline, plain = load_outline(source, kind, trust_remote_code=config.trust_remote_code)
    tokenizer = plain if resumed else extended(plain, config.new_tokens)
    make_room(outline, tokenizer)
    row_ids(tokenizer, config)
    check_lora(config.lora)
    return outline, plain, tokenizer


def row_ids(tokenizer: Any, config: TrainConfig) -> list[int]:
    """The ids of `config.train_rows`, in order, each once; [] where it is null.

    tokenizer: with the new tokens.

    Raises:
        ValueError: "new" without new_tokens, or something that is not one token.
    """
    known = tokenizer.get_vocab()
    ids: dict[int, None] = {}
    for name in config.train_rows or ():
        if name == NEW and config.new_tokens:
            ids |= dict.fromkeys(known[token] for token in config.new_tokens)
        elif name == NEW:
            raise ValueError(f"train_rows has {NEW!r}, which stands for all of new_tokens, and new_tokens is not given")
        else:
            try:
                ids[token_id(name, tokenizer, known, "new_tokens makes it one")] = None
            except ValueError as error:
                raise ValueError(f"train_rows: {error}") from error
    return list(ids)


def adapt(model: Any, tokenizer: Any, config: TrainConfig, resumed: bool) -> tuple[Any, TrainableRows | None]:
    """Put onto a model what the run trains beside, or in place of, its own parameters.

        new_tokens   rows by `add_tokens`, drawn from config.seed; the tokenizer gets the tokens
        lora         `peft.get_peft_model`: everything else is frozen; drawn from config.seed
        train_rows   `TrainableRows`: of the embedding tables these rows alone learn; the rest of the model is left

    Before `fastft.patch`, activation checkpointing, DDP and whatever freezes or wraps parameters. The same model and
    config give the same parameters, bit by bit.

    Args:
        model, tokenizer: as `fastft.hf.pretrained` loads them.
        resumed: both come from a checkpoint of this run that holds the whole model, new rows included (`is_whole`).
            For one with LoRA they are those of `config.model`, adapted anew, and `load_trained` follows.

    Returns:
        The model (a `peft.PeftModel` with lora) and its trainable rows, None without train_rows.

    Raises:
        ValueError: a setting that cannot be meant for this model and tokenizer; names it.
        TypeError: a table that cannot be trained by row.
        ImportError: lora without PEFT.
    """
    if config.new_tokens and not resumed:
        add_tokens(model, tokenizer, config.new_tokens, seed=config.seed)
    ids = row_ids(tokenizer, config)
    if config.lora is not None:
        model = _low_rank(model, config.lora, config.seed)
    return model, TrainableRows(model, ids) if ids else None


def check_lora(arguments: Mapping[str, Any] | None) -> None:
    """Refuse arguments that LoraConfig does not have. Costs the import of PEFT, if any are given.

    Raises:
        ValueError: names the nearest one.
        ImportError: PEFT is missing.
    """
    if arguments is None:
        return
    known = inspect.signature(optional("peft", "lora").LoraConfig).parameters
    for key in arguments:
        if key not in known:
            near = LORA_NAMES.get(key)
            hint = f"unknown key {key!r}: did you mean {near!r}?" if near in known else unknown_key(key, known)
            raise ValueError(f"lora: {hint} It takes the arguments of peft.LoraConfig")


def task_type(model: Any) -> str | None:
    """PEFT's word for a kind of model; it has none for masked language models."""
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else None


def _low_rank(model: Any, arguments: Mapping[str, Any], seed: int) -> Any:
    check_lora(arguments)
    peft = optional("peft", "lora")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return peft.get_peft_model(model, peft.LoraConfig(**{"task_type": task_type(model), **arguments}))
    except (TypeError, ValueError, KeyError) as error:
        what = " ".join(str(error).split()).rstrip(".")
        layers = "; target_modules: all-linear takes every linear layer" if "target" in what.lower() else ""
        raise ValueError(f"lora: {what}{layers}") from error


def is_adapted(model: Any) -> bool:
    """Whether PEFT is around this model."""
    return hasattr(type(model), "get_base_model")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the whole model; one with LoRA holds what learned, and the base model the rest."""
    return not (checkpoint / TRAINED).is_file()


def save_model(
    model: Any, folder: Path, also: Iterable[str] = (), *, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write what a run has made of its model, for `load_trained`, or plain transformers where there is no LoRA.

        without LoRA   `save_pretrained`: the whole model, trainable rows in its tables
        with LoRA      PEFT's adapter, for `PeftModel.from_pretrained(base, folder)` (without rows of tokens), and
                       trained.safetensors: every parameter of the adapter, or with requires_grad, or in `also`

    Args:
        model: not wrapped in DDP.
        also: names of parameters that may learn, but are frozen now.
        state_dict: the model's, gathered from several processes; by default what it holds here.

    Raises:
        ValueError: a name that is no parameter's.
        OSError, SafetensorError: it cannot be written; see `failed_writes`.
    """
    if not is_adapted(model):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    parameters, wanted = dict(model.named_parameters()), set(also)
    if unknown := sorted(wanted - parameters.keys()):
        raise ValueError(f"the model has no parameter {unknown[0]!r}, which was to be saved")
    wanted |= {name for name, parameter in parameters.items() if _learns(name, parameter)}
    # Without embeddings, or PEFT asks the hub about the vocabulary. Its state_dict() flushes row optimizers.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)
    values = {**parameters, **(state_dict or {})}
    tensors = {name: values[name].detach().cpu().contiguous() for name in sorted(wanted)}
    save_file(tensors, folder / TRAINED, metadata={"format": "pt"})


def load_trained(model: Any, folder: Path) -> None:
    """Put what `save_model` wrote into a freshly adapted model with LoRA; other parameters stay the base model's.

    Raises:
        FileNotFoundError: the folder has no trained.safetensors.
        ValueError: it lacks a parameter that learns, or has one of another name, shape or type. Nothing is changed.
    """
    path = folder / TRAINED
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; a checkpoint of a run with lora has it")
    saved, parameters = load_file(path), dict(model.named_parameters())
    wrong = [f"it lacks {name}" for name, p in parameters.items() if _learns(name, p) and name not in saved]
    for name, value in saved.items():
        if name not in parameters:
            wrong.append(f"the model has no {name}")
        elif (value.shape, value.dtype) != ((now := parameters[name]).shape, now.dtype):
            was, is_now = (f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (value, now))
            wrong.append(f"{name} is {was} there and {is_now} in the model")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} does not fit the model: {'; '.join(wrong[:3])}{more}. Was it written with other model, lora, "
            "new_tokens or train_rows?"
        )
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(value)


def _learns(name: str, parameter: nn.Parameter) -> bool:
    return parameter.requires_grad or OF_ADAPTER.search(name) is not None
