"""What values of the configuration may be, in code and in words, and what other trainers call its keys."""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from fastft.trainer.reporting.trackers import KINDS

TYPE_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    Any: "anything",
}

RANGES: tuple[tuple[str, str, Any], ...] = (
    (
        "model train_data eval_data output_dir keep_field optimizer metric_for_best_model",
        "a name that is not empty",
        bool,
    ),
    (
        "max_length per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps logging_steps "
        "max_train_samples max_eval_samples max_target_length save_total_limit generation_max_new_tokens "
        "early_stopping_patience",
        "a whole number >= 1",
        lambda value: value >= 1,
    ),
    (
        "eval_steps save_steps num_generations eval_generations num_proc seed",
        "a whole number >= 0",
        lambda value: value >= 0,
    ),
    (
        "eval_fraction adam_beta1 adam_beta2 dropout label_smoothing_factor",
        "a number in [0, 1)",
        lambda value: 0 <= value < 1,
    ),
    (
        "mlm_probability mlm_eval_probability noise_density",
        "a number between 0 and 1",
        lambda value: 0 < value < 1,
    ),
    ("mask_replace_prob random_replace_prob nsp_probability", "a number in [0, 1]", lambda value: 0 <= value <= 1),
    ("mlm_span_length mean_noise_span_length", "a number >= 1", lambda value: 1 <= value < math.inf),
    (
        "mlm_weight learning_rate adam_epsilon num_train_epochs neftune_noise_alpha",
        "a finite number > 0",
        lambda value: 0 < value < math.inf,
    ),
    (
        "warmup_steps weight_decay max_grad_norm",
        "a finite number >= 0",
        lambda value: 0 <= value < math.inf,
    ),
    ("spike_factor", "a finite number > 1", lambda value: 1 < value < math.inf),
    ("report_to", f"a list of {', '.join(KINDS)}", lambda value: set(value) <= set(KINDS)),
)

OTHER_NAMES: Mapping[str, str] = {
    "batch_size": "per_device_train_batch_size",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "warmup_ratio": "warmup_steps",
    "gradient_checkpointing": "activation_checkpointing",
    "roles_to_train": "train_roles",
    "train_on_eos": "train_on_eot",
    "preprocessing_num_workers": "num_proc",
    "dataset_num_proc": "num_proc",
    "neat_packing": "packing",
    "stage": "objective",
    "model_name_or_path": "model",
    "dataset": "train_data",
    "train_file": "train_data",
    "max_new_tokens": "generation_max_new_tokens",
    "optim": "optimizer",
    "label_smoothing": "label_smoothing_factor",
    "freeze_trainable_layers": "freeze",
    "freeze_parameters": "freeze",
    "unfrozen_parameters": "unfreeze",
    "early_stopping_steps": "early_stopping_patience",
    "add_special_tokens": "new_tokens",
    "new_special_tokens_config": "new_tokens",
    "trainable_token_indices": "train_rows",
    "fsdp": "distributed",
    "ddp": "distributed",
}

# Keys of other trainers that are true or false: what they are here then.
SWITCHES: Mapping[str, tuple[str, str]] = {
    "mask_prompt": ("mask: prompt", "mask: none"),
    "train_on_prompt": ("mask: none", "mask: prompt"),
    "train_on_inputs": ("mask: none", "mask: prompt"),
    "train_on_input": ("mask: none", "mask: prompt"),
    "completion_only_loss": ("mask: prompt", "mask: none"),
    "assistant_only_loss": ("mask: prompt", "mask: none"),
    "mask_history": ("train_turns: last", "train_turns: all"),
    "whole_word_mask": ("mlm_masking: whole_word", "mlm_masking: token"),
    "overwrite_cache": ("cache: false", "cache: true"),
}

# Fields whose types say too little.
LISTS: Mapping[str, str] = {
    "tasks": "a list of tasks with keys and values, such as [{objective: mlm, data: texts.jsonl, weight: 0.5}]",
    "new_tokens": "tokens with what each starts as, such as {<think>: 'text:let me think'}",
    "lora": "arguments of peft.LoraConfig, such as {r: 16, target_modules: all-linear}, or null",
    "unfreeze": "steps with names, such as {100: [model.layers.29], 200: ['*']}",
    "param_groups": "a list such as [{params: ['*embed*'], learning_rate: 1e-5, weight_decay: 0.0}]",
    "stages": "a list of stages with keys and values, such as [{steps: 1000, tasks: [mlm], restart: true}]",
}


def type_name(hint: Any) -> str:
    """`int | None` as 'a whole number or null', `Literal["a", "b"]` as 'a or b'."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list, each {type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return f"names, each with {type_name(typing.get_args(hint)[1])}"
    return TYPE_WORDS[hint]


def is_a(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(is_a(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(is_a(part, typing.get_args(hint)[0]) for part in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            is_a(part, kind) for pair in value.items() for part, kind in zip(pair, typing.get_args(hint), strict=True)
        )
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
