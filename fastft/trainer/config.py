"""What a run is: one flat, frozen, validated dataclass. Names as in `transformers.TrainingArguments` and TRL."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml


def option(default: Any, text: str) -> Any:
    """A field whose help text is also what the command line and the error messages say about it."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Raises ValueError or TypeError, by field name, for a value that cannot be meant."""

    model: str = option(dataclasses.MISSING, "hub id, folder, or builtin:smollm2")
    train_data: str = option(dataclasses.MISSING, "file, folder or builtin:stdlib-docstrings to learn from")
    eval_data: str | None = option(None, "held-out file; without it eval_fraction of train_data is held out")
    eval_fraction: float = option(0.0, "share of train_data held out for evaluation, in [0, 1)")
    format: str = option("auto", "record format of the data files; auto: seen from the first record")
    mask: str = option("prompt", "what carries no loss: prompt, or none (every token learns)")
    max_length: int = option(1024, "tokens of a sample; longer ones are cut")
    on_empty: Literal["error", "drop"] = option("error", "a sample with nothing to learn: error, or drop and count")
    max_train_samples: int | None = option(None, "samples; at most this many are trained on")
    max_eval_samples: int | None = option(None, "samples; at most this many are evaluated on")
    group_by_length: bool = option(False, "batch samples of like length, which saves padding")

    output_dir: str = option("output", "folder of checkpoints, log, plot and report")
    resume_from_checkpoint: bool | str = option(
        False, "true: go on from the newest whole checkpoint of output_dir, if there is one; or the checkpoint's folder"
    )

    per_device_train_batch_size: int = option(8, "samples per forward pass")
    per_device_eval_batch_size: int = option(8, "samples per forward pass of the evaluation")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    num_train_epochs: float = option(3.0, "passes over train_data; max_steps wins")
    max_steps: int = option(-1, "optimizer steps; -1: by num_train_epochs")

    learning_rate: float = option(5e-5, "peak step size of AdamW")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = option("linear", "course after the warm-up")
    warmup_steps: float = option(0.0, "optimizer steps of rising rate before the peak; below 1: share of all steps")
    weight_decay: float = option(0.0, "AdamW's decay per step and learning rate; never on norms and biases")
    adam_beta1: float = option(0.9, "decay of the gradient's mean, in [0, 1)")
    adam_beta2: float = option(0.999, "decay of the gradient's second moment, in [0, 1)")
    adam_epsilon: float = option(1e-8, "added to the root of the second moment")
    max_grad_norm: float = option(1.0, "global gradient norm is clipped to this; 0: not clipped")

    bf16: bool | None = option(None, "matmuls in bf16, weights and optimizer in fp32; null: on a GPU that can")
    activation_checkpointing: bool = option(False, "recompute activations in backward: less memory, more time")
    patch: bool = option(True, "fused head: the output layer runs on supervised tokens only")
    seed: int = option(0, "of shuffling, dropout and the draw of max_train_samples")

    logging_steps: int = option(10, "optimizer steps between log lines")
    eval_on_start: bool = option(True, "evaluate before the first step too, if there is held-out data")
    eval_steps: int = option(0, "optimizer steps between evaluations; 0: only at the end")
    save_steps: int = option(0, "optimizer steps between checkpoints; 0: only at the end")
    save_total_limit: int | None = option(None, "checkpoints kept, the newest; null: all")
    save_only_model: bool = option(False, "leave out the optimizer: a third of the size, but no resume")
    num_generations: int = option(2, "held-out prompts completed at each evaluation")
    generation_max_new_tokens: int = option(128, "tokens of a completion at most")

    def __post_init__(self) -> None:
        for field, hint in FIELD_TYPES.items():
            if not _is_a(getattr(self, field), hint):
                raise TypeError(_refusal(self, field, type_name(hint)))
        for names, wanted, accepts in RANGES:
            for field in names.split():
                value = getattr(self, field)
                if value is not None and not accepts(value):
                    raise ValueError(_refusal(self, field, wanted))
        if self.eval_data and self.eval_fraction:
            raise ValueError("eval_data and eval_fraction both name held-out data: give one of them")
        if self.eval_steps and not (self.eval_data or self.eval_fraction):
            raise ValueError(
                f"eval_steps is {self.eval_steps}, but nothing is held out: give eval_data or eval_fraction"
            )
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(_refusal(self, "max_steps", "a number of steps > 0, or -1"))

    def to_yaml(self) -> str:
        """The run as a file that `fastft train` reads back to an equal config; each line says what it is."""
        values = dataclasses.asdict(self)
        lines = {name: yaml.safe_dump({name: value}, width=math.inf).strip() for name, value in values.items()}
        return "".join(f"{line:<48}  # {FIELDS[name].metadata['help']}\n" for name, line in lines.items())


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = {field.name: field for field in dataclasses.fields(TrainConfig)}
FIELD_TYPES: Mapping[str, Any] = typing.get_type_hints(TrainConfig)

TYPE_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
}

RANGES: tuple[tuple[str, str, Any], ...] = (
    ("model train_data output_dir", "a name that is not empty", bool),
    (
        "max_length per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps logging_steps "
        "max_train_samples max_eval_samples save_total_limit generation_max_new_tokens",
        "a whole number >= 1",
        lambda value: value >= 1,
    ),
    ("eval_steps save_steps num_generations seed", "a whole number >= 0", lambda value: value >= 0),
    ("eval_fraction adam_beta1 adam_beta2", "a number in [0, 1)", lambda value: 0 <= value < 1),
    ("learning_rate adam_epsilon num_train_epochs", "a finite number > 0", lambda value: 0 < value < math.inf),
    ("warmup_steps weight_decay max_grad_norm", "a finite number >= 0", lambda value: 0 <= value < math.inf),
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
    "mask_prompt": "mask",
    "train_on_prompt": "mask",
    "completion_only_loss": "mask",
    "model_name_or_path": "model",
    "dataset": "train_data",
    "train_file": "train_data",
    "max_new_tokens": "generation_max_new_tokens",
}


def unknown_key(key: str) -> str:
    """What to say about a key that is no field: the nearest one, by other trainers' names or by spelling."""
    near = OTHER_NAMES.get(key) or next(iter(difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.5)), None)
    hint = f"did you mean {near!r} ({FIELDS[near].metadata['help']})?" if near else f"known keys: {', '.join(FIELDS)}"
    return f"unknown key {key!r}: {hint}"


def type_name(hint: Any) -> str:
    """`int | None` as 'a whole number or null', `Literal["a", "b"]` as 'a or b'."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    return TYPE_WORDS[hint]


def _is_a(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, part) for part in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _refusal(config: TrainConfig, field: str, wanted: str) -> str:
    return f"{field} is {getattr(config, field)!r}; wanted {wanted} ({FIELDS[field].metadata['help']})"
