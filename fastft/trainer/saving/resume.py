"""Where a run starts: afresh or from a checkpoint. Everything that forbids it is said before anything is loaded."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastft.trainer.config import FIELDS, TrainConfig
from fastft.trainer.given import GivenTask, given_tasks
from fastft.trainer.plan import Plan
from fastft.trainer.saving.checkpoint import DamagedCheckpoint, checkpoints, read_state, step_of

# The weights come from the checkpoint and the place in the data from these: a resumed run must keep them.
FIXED = (
    "model", "objective", "per_device_train_batch_size", "group_by_length", "packing",
    "seed", "tasks", "task_schedule", "mlm_probability", "mask_replace_prob", "random_replace_prob",
    "mlm_masking", "mlm_span_length", "mlm_weight", "nsp_probability", "noise_density", "mean_noise_span_length",
    "sentinel", "ul2_weights", "ul2_mode_tokens", "new_tokens", "train_rows", "lora", "freeze", "unfreeze", "optimizer",
    "optimizer_args", "sparse_embeddings", "dropout",
)  # fmt: skip
# Length of a row: fixed only where samples share rows.
OF_ROWS = ("max_length",)
# Fields that change what is learned from here on, or how it is evaluated: allowed, and said aloud. Of the stages only
# those behind the checkpoint's step may change.
OF_LEARNING = (
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "mlm_eval_probability", "stages", "param_groups",
    "neftune_noise_alpha", "label_smoothing_factor", "on_bad_step", "spike_factor", "metric_for_best_model",
    "early_stopping_patience",
)  # fmt: skip
# Fields that decide which samples there are: named when the data turns out to be other data.
OF_DATA = tuple(name for name, field in FIELDS.items() if field.metadata["own"] and name not in (*FIXED, *OF_LEARNING))


@dataclass(frozen=True)
class Start:
    """checkpoint: None to start afresh. state: its trainer_state.json. notes: what the user should know."""

    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        return int(self.state.get("step", 0))


def choose_start(config: TrainConfig, processes: int = 1) -> Start:
    """The checkpoint to go on from, by `resume_from_checkpoint`; `output_dir` is made if it is not there.

    Raises:
        FileExistsError: `output_dir` holds something and the run is not to be resumed.
        FileNotFoundError: the named checkpoint.
        PermissionError: `output_dir` cannot be made or written.
        ValueError: the named checkpoint is damaged, or fits this config or `output_dir` no longer.
    """
    output_dir = Path(config.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"output_dir {output_dir} is a file; choose another --output_dir")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"output_dir {output_dir} cannot be made ({error.strerror}); choose another --output_dir"
        ) from error
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise PermissionError(f"output_dir {output_dir} cannot be written; choose another --output_dir")
    if config.resume_from_checkpoint is False:
        if any(output_dir.iterdir()):
            raise FileExistsError(
                f"output_dir {output_dir} is not empty: go on from its newest checkpoint with "
                "--resume_from_checkpoint true, or choose another --output_dir"
            )
        return Start()
    start = _newest(output_dir) if config.resume_from_checkpoint is True else _named(config, output_dir)
    if start.checkpoint is not None:
        _compare(start, config, processes)
    return start


def _newest(output_dir: Path) -> Start:
    notes: list[str] = []
    for checkpoint in reversed(checkpoints(output_dir)):
        try:
            return Start(checkpoint, read_state(checkpoint), notes)
        except DamagedCheckpoint as error:
            notes.append(f"passed over: {error}")
    return Start(notes=[*notes, f"no checkpoint in {output_dir} to go on from: starting at step 0"])


def _named(config: TrainConfig, output_dir: Path) -> Start:
    checkpoint = Path(str(config.resume_from_checkpoint))
    state = read_state(checkpoint)
    later = [path.name for path in checkpoints(output_dir) if step_of(path) > state["step"]]
    if later:
        raise ValueError(
            f"resume_from_checkpoint is {checkpoint}, but output_dir {output_dir} already holds {', '.join(later)}: "
            "choose another --output_dir"
        )
    return Start(checkpoint, state)


def _compare(start: Start, config: TrainConfig, processes: int) -> None:
    changed, tasks = _changes(start, config), given_tasks(config)
    then, was = start.state.get("processes", 1), start.state["config"]["gradient_accumulation_steps"]
    rows = OF_ROWS if any(task.config.packing for task in tasks) else ()
    refused = [changed[name] for name in (*FIXED, *rows) if name in changed]
    if not refused and "stages" in changed and not _same_turns(start, config, tasks):
        refused = [f"{changed['stages']}, and only what follows step {start.step} may change"]
    if was * then != config.gradient_accumulation_steps * processes:
        refused.append(
            f"a step had {was} x {then} batches (gradient_accumulation_steps x processes), has "
            f"{config.gradient_accumulation_steps} x {processes}"
        )
    elif then != processes:
        start.notes.append(f"{then} processes before, {processes} now: the same batches, sums in another order")
    if refused:
        raise ValueError(
            f"{start.checkpoint} belongs to a run of another model or course through the data: {'; '.join(refused)}. "
            f"Set it back, or start a new run from these weights with --model {start.checkpoint}"
        )
    start.notes.extend(f"changed since {start.checkpoint}: {changed[name]}" for name in OF_LEARNING if name in changed)


def _same_turns(start: Start, config: TrainConfig, tasks: list[GivenTask]) -> bool:
    """Whether the steps up to the checkpoint take the same tasks, with the same weights, under both lists of stages."""
    names, weights, behind = [task.name for task in tasks], [task.weight for task in tasks], range(start.step)
    before, now = (
        Plan(names, weights, config.task_schedule, stages or (), config.seed, -1 if stages else start.step)
        for stages in (start.state["config"].get("stages"), config.stages)
    )
    return now.max_steps >= start.step and [before[step] for step in behind] == [now[step] for step in behind]


def check_data(start: Start, config: TrainConfig, fingerprint: str) -> None:
    """Refuse to resume on other training samples than the checkpoint's.

    Raises:
        ValueError: they differ; the message names the settings that changed, if any did.
    """
    if start.checkpoint is None or start.state["data"] == fingerprint:
        return
    changed = [change for name, change in _changes(start, config).items() if name in OF_DATA]
    raise ValueError(
        f"{start.checkpoint} was trained on other samples than those of {config.train_data}: "
        f"{'; '.join(changed) or 'the data itself has changed'}. Set it back, or start a new run from these weights "
        f"with --model {start.checkpoint}"
    )


def _changes(start: Start, config: TrainConfig) -> dict[str, str]:
    """The fields that are not what the checkpoint's run had, in words."""
    before, now = start.state["config"], json.loads(json.dumps(asdict(config)))
    return {name: f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in now if before.get(name) != now[name]}
