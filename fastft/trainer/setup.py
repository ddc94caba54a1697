"""Everything a run needs before its first step: model, data, optimizer, and the place to start from."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastft.data.isolation import check_isolation
from fastft.hf.patch import patch
from fastft.hf.pretrained import load_model, load_outline
from fastft.trainer.ahead import Ahead
from fastft.trainer.checkpoint import load_optimizer
from fastft.trainer.config import TrainConfig
from fastft.trainer.device import training_device, use_bf16
from fastft.trainer.given import data_of, given_tasks, model_class
from fastft.trainer.log import RunLog
from fastft.trainer.optimizer import adamw
from fastft.trainer.progress import say
from fastft.trainer.resume import check_data, choose_start
from fastft.trainer.state import State
from fastft.trainer.tasks import Share, check_fits, fingerprint, make_plan, make_tasks

CONFIG, PLOT = "config.yaml", "loss.png"


class Setup:
    """What `Trainer` trains with; all of it can be read, and replaced before `train()`.

    model, tokenizer:      from `config.model`, or from the checkpoint to go on from. The model is fp32, on `device`.
    tasks:                 objectives with their samples; most runs have one.
    optimizer, plan:       AdamW, and which tasks each step learns from. `max_steps` is the length of the run.
    shares:                what each step learns from, made one step ahead.
    state, log, saved:     what has been counted, log.jsonl, and the newest checkpoint of this run.
    config_file:           the config as written to `output_dir`, for `fastft train`.
    device, autocast:      where, and the context in which every forward pass runs.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        self.config, self.console = config, console or Console()
        given = given_tasks(config)
        make_plan(config, given)
        self.output_dir = Path(config.output_dir)
        self.plot = self.output_dir / PLOT
        self.device = training_device()
        self.bf16 = use_bf16(config.bf16, self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        self.start = choose_start(config)

        source, kind = str(self.start.checkpoint or config.model), model_class(given)
        say(self.console, f"loading {source} and {data_of(config)}")
        outline, self.tokenizer = load_outline(source, kind)  # weights come behind the data, which may be refused
        self.tasks = make_tasks(given, self.tokenizer)
        for task in self.tasks:
            check_fits(outline, task)
            task.objective.outline(outline)
        check_data(self.start, config, fingerprint(self.tasks))
        self.model = load_model(source, torch.float32, kind)
        _fit_out(self.model, config, self.device)
        for task in self.tasks:
            task.objective.prepare(self.model)
            if task.config.packing:
                check_isolation(self.model, task.objective)

        self.optimizer = adamw(self.model, config)
        self.plan = make_plan(config, given, self.tasks[0].windows.steps_per_epoch)
        self.max_steps = self.plan.max_steps
        self.shares = Ahead(self.shares_of, self.max_steps)
        self.state = State()
        if self.start.checkpoint is not None:
            load_optimizer(self.start.checkpoint, self.model, self.optimizer)
            self.state = State.from_json(self.start.state)
        self.saved: Path | None = self.start.checkpoint
        before = self.start.checkpoint.parent if self.start.checkpoint else None
        self.log = RunLog(self.output_dir, self.state.step, before)
        self.config_file = self.output_dir / CONFIG
        self.config_file.write_text(config.to_yaml(), encoding="utf-8")

    def shares_of(self, step: int) -> list[Share]:
        """Each taking task's part in a step. On a GPU rows are a multiple of 8, as its matrix units like."""
        multiple = 8 if self.device.type == "cuda" else 1
        return [Share(self.tasks[turn.task], turn, multiple) for turn in self.plan[step]]

    def epoch_at(self, step: int) -> float:
        """Passes over the data of the first task that are behind after `step` steps."""
        return self.tasks[0].windows.epoch_at(self.plan.visits_before(step)[0])

    def describe(self) -> list[str]:
        """What is going to happen, a line each."""
        config = self.config
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        lines = [*self.start.notes]
        if self.start.checkpoint is not None:
            lines.append(f"going on from {self.start.checkpoint}, step {self.state.step}")
        for task in self.tasks:
            prefix = f"{task.name}: " if len(self.tasks) > 1 else ""
            lines += [f"{prefix}{line}" for line in (f"objective {task.config.objective}", *task.describe())]
        done = "; ".join(
            f"{task.windows.epoch_at(visits):.2f} epochs{f' of {task.name}' if len(self.tasks) > 1 else ''}"
            for task, visits in zip(self.tasks, self.plan.visits_before(self.max_steps), strict=True)
        )
        return [*lines, f"{self.max_steps:,} steps of {per_step} {self._unit()}, {done}"]

    def _unit(self) -> str:
        """What a step is counted in."""
        kinds = {"rows" if task.config.packing else "samples" for task in self.tasks}
        each = " of each task" if self.plan.schedule == "joint" and len(self.tasks) > 1 else ""
        return " or ".join(sorted(kinds)) + each


def _fit_out(model: Any, config: TrainConfig, device: torch.device) -> None:
    model.to(device)
    if config.activation_checkpointing:
        # transformers renamed the method in 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.patch:
        try:
            patch(model)
        except ValueError as error:
            raise ValueError(f"{error}. To train it with its own head: --patch false") from error
