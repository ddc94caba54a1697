"""What a run is: one flat, frozen, validated dataclass. Names as in `transformers.TrainingArguments` and TRL."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from fastft.trainer.fields import LISTS, OTHER_NAMES, RANGES, SWITCHES, is_a, type_name


def option(default: Any, text: str, *, own: bool = False) -> Any:
    """A field whose help text is also what the command line and the error messages say about it.

    own: each of several `tasks` may have its own.
    """
    return dataclasses.field(default=default, metadata={"help": text, "own": own})


def of_data(default: Any, text: str) -> Any:
    return option(default, text, own=True)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Raises ValueError or TypeError, by field name, for a value that cannot be meant."""

    model: str = option(dataclasses.MISSING, "hub id, folder, or builtin:smollm2 | minilm | byt5-tiny")
    objective: Literal["clm", "prefix_lm", "mlm", "nsp", "sop", "seq2seq", "span_corruption", "ul2"] = of_data(
        "clm", "what is learned of the data"
    )
    train_data: str | None = of_data(
        None, "file, folder, hf:name or builtin:stdlib-docstrings | stdlib-docs | cmudict to learn from"
    )
    eval_data: str | None = of_data(None, "held-out file; without it eval_fraction of train_data is held out")
    eval_fraction: float = of_data(0.0, "share of train_data held out for evaluation, in [0, 1)")
    format: str = of_data("auto", "record format of the data files; auto: seen from the first record")
    max_length: int = of_data(1024, "tokens of a sample; longer ones are cut")
    on_empty: Literal["error", "drop"] = of_data("error", "a sample with nothing to learn: error, or drop and count")
    max_train_samples: int | None = of_data(None, "samples; at most this many are trained on")
    max_eval_samples: int | None = of_data(None, "samples; at most this many are evaluated on")
    group_by_length: bool = of_data(False, "batch samples of like length, which saves padding")
    packing: bool = of_data(False, "several samples share a row of max_length; none sees another")
    num_proc: int = option(0, "processes that prepare data; 0: this one, where the tokenizer has threads of its own")
    cache: bool = option(True, "keep prepared data in $FASTFT_CACHE, so that the next run starts at once")

    mask: Literal["prompt", "none", "completion"] = of_data("prompt", "what carries no loss; none: every token learns")
    train_roles: list[str] = of_data(("assistant",), "roles whose messages are the completions")
    train_turns: Literal["all", "last"] = of_data("all", "completions of a conversation that are learned")
    train_on_eot: bool = of_data(True, "learn the token that ends a completion")
    keep_spans: str | None = of_data(
        None, "regular expression; what of the masked text matches is learned all the same"
    )
    keep_field: str | None = of_data(None, "column with texts that are learned though they stand in the prompt")
    span_weights: dict[str, float] | None = of_data(None, "regular expression: weight of the learned text that matches")

    chat_template_kwargs: dict[str, Any] | None = of_data(None, "what the chat template is told, as enable_thinking")

    mlm_probability: float = of_data(0.15, "mlm, nsp, sop: share of tokens that are predicted, in (0, 1)")
    mlm_eval_probability: float | None = of_data(None, "the same in an evaluation; null: as in training")
    mask_replace_prob: float = of_data(0.8, "share of the predicted tokens that become the mask token")
    random_replace_prob: float = of_data(0.1, "share of them that become a random token; the rest stays")
    mlm_masking: Literal["token", "whole_word", "span"] = of_data("token", "what is masked together")
    mlm_span_length: float = of_data(3.0, "tokens of a masked span on average, with mlm_masking span, in [1, 5.5)")
    mlm_weight: float = of_data(1.0, "nsp, sop: what the loss of masked tokens is multiplied by, beside that of pairs")
    nsp_probability: float = of_data(0.5, "nsp: share of pairs whose second half is from another document")
    max_target_length: int | None = of_data(None, "seq2seq: tokens of a target; null: max_length")
    noise_density: float = of_data(0.15, "span_corruption: share of tokens that are cut out, in (0, 1)")
    mean_noise_span_length: float = of_data(3.0, "span_corruption: tokens of a cut-out span on average")
    sentinel: str = of_data("<extra_id_{}>", "span_corruption, ul2: name of the sentinels, {} for the number")
    ul2_weights: list[float] = of_data((1.0, 1.0, 1.0), "ul2: how often span corruption, the rest of a text, extremes")
    ul2_mode_tokens: list[str] | None = of_data(None, "ul2: what tells these three; null: the tokenizer's, if any")

    tasks: list[dict[str, Any]] | None = option(
        None, "several objectives: [{objective, data, weight, name, ...}]; what a task leaves out is the run's"
    )
    task_schedule: Literal["alternate", "proportional", "joint"] = option(
        "alternate", "tasks take turns, are drawn by weight, or all take part in each step"
    )
    stages: list[dict[str, Any]] | None = option(
        None, "parts of the run: [{steps, tasks, restart}], restart: the learning rate begins anew"
    )

    new_tokens: dict[str, str] | None = option(
        None, "tokens to add, each with what its row starts as: mean, copy:-, text:some words, noise, zeros"
    )
    train_rows: list[str] | None = option(
        None, "of the embedding tables train only the rows of these tokens; new stands for all of new_tokens"
    )
    lora: dict[str, Any] | None = option(None, "train low-rank adapters: arguments of peft.LoraConfig, as {r: 16}")
    freeze: list[str] = option((), "parameters that do not learn: names of modules or parameters, * for anything")
    unfreeze: dict[int, list[str]] | None = option(
        None, "{step: names}: of the frozen ones, those that learn from then"
    )
    dropout: float | None = option(None, "dropout rate of the whole model, in [0, 1); null: the model's own")
    neftune_noise_alpha: float | None = option(None, "NEFTune: noise on the input embeddings in training; null: none")
    label_smoothing_factor: float = option(0.0, "share of a label that is spread over all tokens, in [0, 1)")

    output_dir: str = option("output", "folder of checkpoints, log, plot and report")
    resume_from_checkpoint: bool | str = option(
        False, "true: go on from the newest whole checkpoint of output_dir, if there is one; or the checkpoint's folder"
    )

    per_device_train_batch_size: int = option(8, "samples per forward pass")
    per_device_eval_batch_size: int = option(8, "samples per forward pass of the evaluation")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    num_train_epochs: float = option(3.0, "passes over train_data; max_steps wins")
    max_steps: int = option(-1, "optimizer steps; -1: by num_train_epochs")

    optimizer: str = option(
        "adamw", "adamw, a class of torch.optim, or one by its full name, as torchao.optim.AdamW8bit"
    )
    optimizer_args: dict[str, Any] | None = option(None, "further arguments of that class")
    sparse_embeddings: bool | None = option(
        None,
        "step only the touched rows of an untied input embedding, exactly as AdamW would; add those of a tied one into "
        "the head's gradient; null: where it applies",
    )
    param_groups: list[dict[str, Any]] | None = option(
        None, "rates of their own: [{params: [names], learning_rate, weight_decay}]; the first that matches counts"
    )
    learning_rate: float = option(5e-5, "peak step size of the optimizer")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = option("linear", "course after the warm-up")
    warmup_steps: float = option(0.0, "optimizer steps of rising rate before the peak; below 1: share of all steps")
    weight_decay: float = option(0.0, "AdamW's decay per step and learning rate; never on norms and biases")
    adam_beta1: float = option(0.9, "decay of the gradient's mean, in [0, 1)")
    adam_beta2: float = option(0.999, "decay of the gradient's second moment, in [0, 1)")
    adam_epsilon: float = option(1e-8, "added to the root of the second moment")
    max_grad_norm: float = option(1.0, "global gradient norm is clipped to this; 0: not clipped")

    on_bad_step: Literal["stop", "skip"] = option(
        "stop", "a loss or gradient that is no number, or a spike: stop, or leave this step out and go on"
    )
    spike_factor: float | None = option(
        None, "a loss above this times the median of the last 64 steps is a spike; null: none is"
    )

    distributed: Literal["ddp", "fsdp"] = option(
        "ddp", "under torchrun: replicas, or parameters sharded over processes"
    )
    bf16: bool | None = option(None, "matmuls in bf16, weights and optimizer in fp32; null: on a GPU that can")
    activation_checkpointing: bool = option(False, "recompute activations in backward: less memory, more time")
    patch: bool = option(True, "fused head: the output layer runs on supervised tokens only")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    seed: int = option(0, "of shuffling, dropout and the draw of max_train_samples")

    logging_steps: int = option(10, "optimizer steps between log lines")
    eval_on_start: bool = option(True, "evaluate before the first step too, if there is held-out data")
    eval_steps: int = option(0, "optimizer steps between evaluations; 0: only at the end")
    save_steps: int = option(0, "optimizer steps between checkpoints; 0: only at the end")
    save_total_limit: int | None = option(None, "checkpoints kept, the newest; null: all")
    metric_for_best_model: str = option("eval_loss", "number of an evaluation by which the best checkpoint is known")
    load_best_model_at_end: bool = option(False, "keep the checkpoint of the best evaluation, and end with its weights")
    early_stopping_patience: int | None = option(None, "evaluations without a new best after which the run ends")
    save_only_model: bool = option(False, "leave out the optimizer: a third of the size, but no resume")
    num_generations: int = option(2, "held-out prompts completed and shown at each evaluation")
    eval_generations: int = option(0, "held-out samples completed and compared with their references, word by word")
    generation_max_new_tokens: int = option(128, "tokens of a completion at most")
    watch_tokens: list[str] | None = option(
        None, "tokens whose loss, rank and probability each evaluation tells; null: those of new_tokens"
    )
    report_to: list[str] = option((), "trackers beside log.jsonl: tensorboard, trackio, wandb")

    def __post_init__(self) -> None:
        for field in FIELDS:
            if isinstance(getattr(self, field), tuple):
                object.__setattr__(self, field, list(getattr(self, field)))
        for field, hint in FIELD_TYPES.items():
            if not is_a(getattr(self, field), hint):
                raise TypeError(_refusal(self, field, wanted(field)))
        for names, words, accepts in RANGES:
            for field in names.split():
                value = getattr(self, field)
                if value is not None and not accepts(value):
                    raise ValueError(_refusal(self, field, words))
        for field in ("tasks", "stages", "param_groups", "new_tokens", "train_rows", "unfreeze"):
            if getattr(self, field) == []:
                raise ValueError(_refusal(self, field, f"null, or {wanted(field)}"))
        if not self.tasks and self.train_data is None:
            raise ValueError(f"train_data is not given ({FIELDS['train_data'].metadata['help']})")
        if self.tasks and self.max_steps < 0 and not self.stages:
            raise ValueError("tasks have no common number of epochs: give max_steps, or stages")
        if self.stages and self.max_steps > 0:
            raise ValueError("max_steps and stages both say how long the run is: give one of them")
        if self.eval_data and self.eval_fraction:
            raise ValueError("eval_data and eval_fraction both name held-out data: give one of them")
        if self.eval_steps and not (self.eval_data or self.eval_fraction or self.tasks):
            raise ValueError(
                f"eval_steps is {self.eval_steps}, but nothing is held out: give eval_data or eval_fraction"
            )
        ends = [name for name in ("load_best_model_at_end", "early_stopping_patience") if getattr(self, name)]
        if ends and not self.eval_steps:
            raise ValueError(
                f"{ends[0]} is {getattr(self, ends[0])!r}, but nothing is evaluated on the way: give eval_steps"
            )
        if self.train_rows and self.distributed == "fsdp":
            raise ValueError("train_rows: rows of a table that fsdp shards cannot be trained; set distributed to ddp")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(_refusal(self, "max_steps", "a number of steps > 0, or -1"))

    def to_yaml(self) -> str:
        """The run as a file that `fastft train` reads back to an equal config; each line says what it is."""
        values = dataclasses.asdict(self)
        lines = {
            name: yaml.safe_dump({name: value}, width=math.inf, default_flow_style=True).strip()[1:-1]
            for name, value in values.items()
        }
        return "".join(f"{line:<48}  # {FIELDS[name].metadata['help']}\n" for name, line in lines.items())


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = {field.name: field for field in dataclasses.fields(TrainConfig)}
FIELD_TYPES: Mapping[str, Any] = typing.get_type_hints(TrainConfig)


def unknown_key(key: Any, known: Iterable[str] | None = None) -> str:
    """What to say about a key that is none: the nearest one, by other trainers' names or by spelling.

    known: the keys that there are; by default the fields.
    """
    key, among = str(key), list(FIELDS if known is None else known)
    if key in SWITCHES and named(SWITCHES[key][0]) in among:
        on, off = SWITCHES[key]
        return f"unknown key {key!r}: `{key}: true` is {_switch(on)}, false is {_switch(off)}"
    near = OTHER_NAMES.get(key)
    if near not in among:
        near = next(iter(difflib.get_close_matches(key, among, n=1, cutoff=0.5)), None)
    if near is None:
        return f"unknown key {key!r}" + (f": known keys: {', '.join(among)}" if known is None else "")
    about = f" ({FIELDS[near].metadata['help']})" if near in FIELDS else ""
    return f"unknown key {key!r}: did you mean {near!r}{about}?"


def named(setting: str) -> str:
    """The key of `key: value`."""
    return setting.partition(":")[0]


def _switch(setting: str) -> str:
    name, _, value = setting.partition(": ")
    default = FIELDS[name].default
    return f"{'the default ' if yaml.safe_load(value) == default else ''}`{setting}`"


def wanted(field: str) -> str:
    """What a field may be, in words."""
    return LISTS.get(field) or type_name(FIELD_TYPES[field])


def _refusal(config: TrainConfig, field: str, words: str) -> str:
    return f"{field} is {getattr(config, field)!r}; wanted {words} ({FIELDS[field].metadata['help']})"
