"""Everything a run needs before its first step: model, data, optimizer, and the place to start from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastft.data.attention import experts
from fastft.data.isolation import check_isolation
from fastft.hf.patch import patch
from fastft.hf.pretrained import be_quiet, load_model
from fastft.trainer.adapt import adapt, load_trained, outlined
from fastft.trainer.ahead import Ahead
from fastft.trainer.config import TrainConfig
from fastft.trainer.device import training_device, use_bf16
from fastft.trainer.distributed import World, replicated, reshard, shard
from fastft.trainer.evaluation.best import Best
from fastft.trainer.evaluation.watched import watched_ids
from fastft.trainer.given import TWO_HEADS, GivenTask, data_of, given_tasks, model_class
from fastft.trainer.interrupt import StopRequest
from fastft.trainer.learning import Learning
from fastft.trainer.nonfinite import LossWatch
from fastft.trainer.optimizer import make_optimizers, use_row_updates
from fastft.trainer.plan import Plan
from fastft.trainer.regularize import Neftune, dropout_settings
from fastft.trainer.reporting.flops import Flops
from fastft.trainer.reporting.log import RunLog
from fastft.trainer.reporting.progress import Progress, say
from fastft.trainer.reporting.trackers import Trackers, libraries
from fastft.trainer.saving.checkpoint import check_space, load_optimizers
from fastft.trainer.saving.resume import check_data, choose_start
from fastft.trainer.state import Meter, State
from fastft.trainer.tasks import Share, check_fits, fingerprint, make_plan, make_tasks

CONFIG, PLOT = "config.yaml", "loss.png"


class Setup:
    """What `Trainer` trains with; all of it can be read, and replaced before `train()`.

    model, tokenizer:      from `config.model`, or from the checkpoint to go on from. The model is fp32, on `device`,
                           with the adapters, rows and hooks that the config asks for.
    engine:                the model as gradients are made with it: it, or what several processes wrap it in.
    tasks:                 objectives with their samples; most runs have one.
    learning, optimizers:  what learns when, and the optimizers of that: of rows and of the rest.
    plan:                  which tasks each step learns from. `max_steps` is the length of the run.
    shares:                what each step learns from, made one step ahead.
    state, log, saved:     what has been counted, log.jsonl, and the newest checkpoint of this run.
    best:                  the best evaluation so far.
    watches:               who tells bad steps, by the tasks that take part in one: their losses are not alike.
    config_file:           the config as written to `output_dir`, for `fastft train`.
    device, autocast:      where, and the context in which every forward pass runs.
    world:                 the processes of the run.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        self.config, self.world = config, World()
        if config.distributed == "fsdp" and not self.world.started:
            raise ValueError(
                "distributed is fsdp, but this is one process: torchrun --nproc-per-node=K -m fastft train ..."
            )
        self.console = console or Console()
        if not self.world.leads:
            self.console.quiet = True
            be_quiet()
        followed_by = config.report_to if self.world.leads else ()
        libraries(followed_by)
        given = given_tasks(config)
        make_plan(config, given)
        self.output_dir = Path(config.output_dir)
        self.plot = self.output_dir / PLOT
        self.device = training_device()
        self.bf16 = use_bf16(config.bf16, self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        self.start = choose_start(config, self.world.size)
        self.world.wait()  # nobody takes what another one writes for what was there

        self._load(given)
        self._spread_out(make_plan(config, given, self.tasks[0].windows.steps_per_epoch))
        self.shares = Ahead(self.shares_of, self.max_steps)
        self.state, self.saved = State(), self.start.checkpoint
        if self.start.checkpoint is not None:
            load_optimizers(self.start.checkpoint, self.model, self.optimizers)
            self.state = State.from_json(self.start.state)
        before = self.start.checkpoint.parent if self.start.checkpoint else None
        self.log = RunLog(self.output_dir, self.state.step, before, writes=self.world.leads)
        self.best = Best(config.metric_for_best_model, config.early_stopping_patience, self.log.records)
        self.watches = {
            tasks: LossWatch(config.spike_factor, seen) for tasks, seen in self.start.state.get("losses", {}).items()
        }
        self.config_file = self.output_dir / CONFIG
        if self.world.leads:
            self.config_file.write_text(config.to_yaml(), encoding="utf-8")
        self.stop = StopRequest()
        self.progress = Progress(self.console, self.max_steps, self.state.step)
        self.trackers = Trackers(followed_by, self.output_dir, dataclasses.asdict(config), self.state.step)

    def _load(self, given: list[GivenTask]) -> None:
        """Tokenizer, data, and the model with what is put onto it. Weights come last: the data may be refused."""
        config, start, kind = self.config, self.start, model_class(given)
        resumed = start.checkpoint is not None and config.lora is None  # adapters are put onto the base model anew
        source = str(start.checkpoint) if resumed else config.model
        say(self.console, f"loading {source} and {data_of(config)}")
        outline, plain, self.tokenizer = outlined(config, source, kind, resumed)
        if not self.world.leads:
            self.world.wait()  # the others find the data in the cache
        self.tasks = make_tasks(given, self.tokenizer, self.world.size)
        if self.world.leads:
            self.world.wait()
        for task in self.tasks:
            check_fits(outline, task)
            task.objective.outline(outline)
        check_data(start, config, fingerprint(self.tasks))

        torch.manual_seed(config.seed)  # of heads that the model comes without
        rates = {} if config.dropout is None else dropout_settings(outline.config, config.dropout)
        model: Any = load_model(
            source, torch.float32, kind, overrides=rates, trust_remote_code=config.trust_remote_code
        )
        self.model, _ = adapt(model, plain, config, resumed)
        watched = list(config.new_tokens or ()) if config.watch_tokens is None else config.watch_tokens
        self.watched = watched_ids(watched, self.tokenizer)
        if start.checkpoint is not None and not resumed:
            load_trained(self.model, start.checkpoint)

    def _spread_out(self, plan: Plan) -> None:
        """The model onto its device or devices, what learns of it, and the optimizers."""
        config, model = self.config, self.model
        self.plan, self.max_steps = plan, plan.max_steps
        self.sharded = config.distributed == "fsdp"
        if not self.sharded:
            model.to(self.device)
        use_row_updates(model, config)
        if config.neftune_noise_alpha is not None:
            Neftune(model, config.neftune_noise_alpha)
        _fit_out(model, config)
        for task in self.tasks:
            task.objective.prepare(model)
            if task.config.packing:
                check_isolation(model, task.objective)
        if self.sharded:
            shard(model, self.device, bf16=self.bf16)
        self.learning = Learning(model, config.freeze, config.unfreeze, self.max_steps)
        self.optimizers = make_optimizers(model, config, self.learning.ever())
        if self.world.leads:
            check_space(self.output_dir, model, self.learning.ever(), optimizer=not config.save_only_model)
        self.flops = Flops(model, torch.bfloat16 if self.bf16 else torch.float32)
        self.learn(self.start.step)

    def learn(self, step: int) -> None:
        """Freeze and thaw what is due at a step. DDP counts on what learns staying the same, so it is made anew."""
        if self.sharded:
            reshard(self.model)
        if self.learning.apply(step) or not hasattr(self, "engine"):
            self.engine: Any = self.model
            if self.world.size > 1 and not self.sharded:
                several = len(self.tasks) > 1 or self.tasks[0].objective.auto_class == TWO_HEADS
                pooler = self.model.config.model_type == "encoder-decoder"  # of its encoder, which nothing reads
                unused = bool(several or pooler or experts(self.model.config.get_text_config()))
                self.engine = replicated(self.model, self.device, unused=unused)
            self.flops.refresh()

    def mfu(self, meter: Meter) -> float:
        """The share of the rate of a measured matrix product that each process's model came to, see `Flops`."""
        return self.flops.utilization(meter.flops / self.world.size, meter.seconds)

    def note(self, record: dict[str, Any]) -> None:
        """A record for the log and the trackers."""
        self.log.add(record)
        self.trackers.log(record)

    def shares_of(self, step: int) -> list[Share]:
        """Each taking task's part in a step. On a GPU rows are a multiple of 8, as its matrix units like."""
        multiple = 8 if self.device.type == "cuda" else 1
        rank, size = self.world.rank, self.world.size
        return [Share(self.tasks[turn.task], turn, multiple, rank, size) for turn in self.plan[step]]

    def epoch_at(self, step: int) -> float:
        """Passes over the data of the first task that are behind after `step` steps."""
        return self.tasks[0].windows.epoch_at(self.plan.visits_before(step)[0])

    def describe(self) -> list[str]:
        """What is going to happen, a line each."""
        config = self.config
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * self.world.size
        lines = [*self.start.notes]
        if self.world.size > 1:
            lines.append(f"{self.world.size} processes, {config.distributed}")
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


def _fit_out(model: Any, config: TrainConfig) -> None:
    if config.activation_checkpointing:
        # transformers renamed the method in 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.patch:
        try:
            patch(model)
        except ValueError as error:
            raise ValueError(f"{error}. To train it with its own head: --patch false") from error
