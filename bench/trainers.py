"""Two trainers on the same job, one step at a time: what runs in the process that each of them has to itself.

`serve` makes the trainer and runs its own `train()`. Behind every step a gate reports and waits for the next word, so
that a lap is all that a user waits for: data, forward, backward, clipping, optimizer, and what a trainer does between
two steps. Who has the word runs, everybody else stands still.

Both start from the same weights and take the same samples in the same order, with the same labels and masks: they are
fastft's, made before the first step for transformers, which therefore pays nothing for data. Dropout is off in the two
steps that are checked, as its draws depend on the layout of a batch, and as the model has it in the timed ones.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bench.cases import IGNORE_INDEX
from bench.timing import Lap, busy_others
from fastft.data import Batch, Draw
from fastft.data.attention import forward
from fastft.memory import memory_now, peak_memory, reset_peak_memory
from fastft.trainer import TrainConfig, Trainer

CPU = torch.device("cpu")
CHECKED = 2  # steps without dropout, whose losses are compared
STEP, END = "step", "end"  # words; a number is that of the step whose batches the floor is to run


@dataclass(frozen=True)
class Job:
    """What is trained; all of it is one trainer's business as much as the other's.

    model, data: a folder of `save_pretrained`, and a file.
    rows, length: of a batch; with packing several samples share a row of `length`.
    steps: how many there may be.
    """

    model: str
    data: str
    objective: str
    rows: int
    length: int
    packing: bool
    bf16: bool
    steps: int
    threads: int

    def config(self, folder: Path, patch: bool) -> TrainConfig:
        return TrainConfig(
            model=self.model, train_data=self.data, objective=self.objective,  # type: ignore[arg-type]
            output_dir=str(folder), cache=False,
            per_device_train_batch_size=self.rows, max_length=self.length, packing=self.packing, bf16=self.bf16,
            max_steps=self.steps, lr_scheduler_type="constant", num_generations=0, on_empty="drop", patch=patch,
        )  # fmt: skip


@dataclass(frozen=True)
class Stride:
    """One step as its own process saw it.

    loss, inside: None for the floor. `inside` are the seconds from a forward pass to the end of its backward pass, and
    those of the optimizer's step.
    peak, fresh: bytes resident at most, and how many of them were not before the step.
    """

    lap: Lap
    loss: float | None
    inside: float | None
    peak: int
    fresh: int


@dataclass(frozen=True)
class Count:
    """Of one step's batches: tokens without padding, those that are learned, and positions that a model computes."""

    tokens: int
    learned: int
    positions: int


class Over(BaseException):
    """Ends a run from within a step."""


class Spans:
    """Seconds from a forward pass of `model` to the end of a backward pass, and within steps of optimizers, whoever
    calls them; and those optimizers."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds, self._begun = 0.0, 0.0
        self.optimizers = dict[torch.optim.Optimizer, None]()
        model.register_forward_pre_hook(self._begin)
        backward = torch.autograd.backward

        def timed(*args: Any, **kwargs: Any) -> None:
            backward(*args, **kwargs)
            self._end()

        torch.autograd.backward = timed
        register_optimizer_step_pre_hook(self._step)
        register_optimizer_step_post_hook(self._end)

    def _step(self, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        self.optimizers[optimizer] = None
        self._begin()

    def _begin(self, *args: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._begun


class Gate:
    """Between two steps of a run: `passed` says that one is over and returns when the next is to begin."""

    def __init__(
        self, connection: Connection, model: nn.Module, bare: Callable[[int, Spans], Callable[[], None]] | None = None
    ) -> None:
        self.connection, self.steps = connection, 0
        self.bare = bare or (lambda step, spans: lambda: None)
        self.spans = Spans(model)
        self.dropout = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
        for module, _ in self.dropout:
            module.p = 0.0

    def open(self, counts: list[Count]) -> None:
        """The trainer stands before its first step."""
        memory_now(CPU)  # frees what setting up has left
        self.connection.send(counts)
        self._wait()

    def passed(self, loss: float) -> None:
        self._report(loss)
        self.steps += 1
        if self.steps == CHECKED:
            for module, p in self.dropout:
                module.p = p
        self._wait()

    def _wait(self) -> None:
        while isinstance(word := self.connection.recv(), int):
            run = self.bare(word, self.spans)
            self._start()
            run()
            self._report(None)
        if word == END:
            raise Over
        self._start()

    def _start(self) -> None:
        reset_peak_memory(CPU)
        self.spans.seconds = 0.0
        self.resting = peak_memory(CPU)
        self.others, self.started = busy_others(), time.perf_counter()

    def _report(self, loss: float | None) -> None:
        seconds = time.perf_counter() - self.started
        others = None if self.others is None else max(0.0, (busy_others() or 0.0) - self.others)
        peak = peak_memory(CPU)
        inside = None if loss is None else self.spans.seconds
        self.connection.send(Stride(Lap(seconds, others), loss, inside, peak, peak - self.resting))


def serve(connection: Connection, provider: str, job: Job, folder: Path) -> None:
    """Train until told to end; what goes wrong is sent in place of a report."""
    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        TRAINERS[provider](connection, job, folder)
    except Over:
        pass
    except Exception as error:  # whatever a trainer raises
        connection.send(error_of(error))


def error_of(error: Exception) -> RuntimeError:
    """One that can be sent: its first line."""
    return RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0])


# fastft


class Stepped(Trainer):
    """fastft's trainer with a gate behind each step."""

    gate: Gate

    def train_step(self) -> None:
        loss, weight = self.state.total.loss, self.state.total.weight
        super().train_step()
        total = self.state.total
        self.gate.passed((total.loss - loss) / (total.weight - weight))


def train_fastft(connection: Connection, job: Job, folder: Path) -> None:
    trainer = Stepped(job.config(folder, patch=True), Console(quiet=True))
    counts = [count(batch) for batch in batches_of(trainer, job.steps)]
    trainer.gate = Gate(connection, trainer.model, partial(bare, trainer))
    trainer.gate.open(counts)
    trainer.train()


def bare(trainer: Trainer, step: int, spans: Spans) -> Callable[[], None]:
    """The floor, on a step's batches: nothing but forward, loss, backward and the steps of those optimizers that
    stepped before."""
    (batch,) = trainer.shares_of(step)[0].batches
    labels = batch.targets[0].labels.flatten()

    def call() -> None:
        with trainer.autocast:
            logits = forward(trainer.model, batch).logits
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, ignore_index=IGNORE_INDEX)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in spans.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return call


def batches_of(trainer: Trainer, steps: int) -> list[Batch]:
    return [share.batches[0] for step in range(steps) for share in trainer.shares_of(step)]


def count(batch: Batch) -> Count:
    return Count(batch.tokens, batch.targets[0].count, batch.inputs["input_ids"].numel())


# transformers


class Plain(transformers.Trainer):
    """transformers' trainer, which also remembers its last loss."""

    loss: Tensor

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.loss = loss.detach()
        return loss


class Steps(transformers.TrainerCallback):
    """A gate behind each step."""

    def __init__(self, trainer: Plain, gate: Gate, counts: list[Count]) -> None:
        self.trainer, self.gate, self.counts = trainer, gate, counts

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.gate.open(self.counts)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.gate.passed(self.trainer.loss.item())


def train_transformers(
    connection: Connection, job: Job, folder: Path, arrange: Callable[[list[Batch]], dict[str, Tensor]]
) -> None:
    """`arrange` makes one batch of the samples of a step, each of them alone in a batch."""
    source = Trainer(job.config(folder / "data", patch=False), Console(quiet=True))
    model, counts, inputs = source.model, [], []
    for step in range(job.steps):
        inputs.append(arrange(alone(source, step)))
        (batch,) = source.shares_of(step)[0].batches
        counts.append(Count(batch.tokens, batch.targets[0].count, inputs[-1]["input_ids"].numel()))
    del source
    following = itertools.cycle(inputs)
    settings = transformers.TrainingArguments(
        output_dir=str(folder / "run"), use_cpu=True, bf16=job.bf16, max_steps=job.steps,
        per_device_train_batch_size=1, optim="adamw_torch_fused", learning_rate=5e-5, weight_decay=0.0,
        max_grad_norm=1.0, lr_scheduler_type="constant", save_strategy="no", eval_strategy="no", report_to="none",
        logging_steps=10, disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    dataset: Any = [{"step": step} for step in range(job.steps)]  # in whatever order: a batch is the next one
    trainer = Plain(model, settings, train_dataset=dataset, data_collator=lambda rows: dict(next(following)))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(Steps(trainer, Gate(connection, model), counts))
    trainer.train()


def alone(trainer: Trainer, step: int) -> list[Batch]:
    """Every sample of a step in a batch of its own, as in fastft's: same labels, same masks."""
    (share,) = trainer.shares_of(step)
    draw = Draw(trainer.config.seed, share.task.windows.epoch_of(share.turn.visit))
    samples = share.task.train.samples
    return [share.task.objective.batch(samples, [[index]], draw) for indices in share.indices for index in indices]


def learned_of(batch: Batch, causal: bool) -> Tensor:
    """(T,) labels as transformers takes them: a causal model shifts them itself."""
    labels = batch.targets[0].labels[0]
    return torch.cat([labels.new_full((1,), IGNORE_INDEX), labels[:-1]]) if causal else labels


def padded(batches: list[Batch], causal: bool) -> dict[str, Tensor]:
    """A row for each sample."""

    def stack(rows: list[Tensor], fill: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

    ids = [batch.inputs["input_ids"][0] for batch in batches]
    return {
        "input_ids": stack(ids, 0),
        "attention_mask": stack([torch.ones_like(row) for row in ids], 0),
        "labels": stack([learned_of(batch, causal) for batch in batches], IGNORE_INDEX),
    }


def flattened(batches: list[Batch], causal: bool) -> dict[str, Tensor]:
    """All samples in one row without padding, told apart by their positions."""
    collate = transformers.DataCollatorWithFlattening()
    features = [{"input_ids": b.inputs["input_ids"][0], "labels": learned_of(b, causal)} for b in batches]
    return dict(collate(features))


def as_objective(make: Callable[[list[Batch], bool], dict[str, Tensor]]) -> Callable[[Connection, Job, Path], None]:
    def train(connection: Connection, job: Job, folder: Path) -> None:
        train_transformers(connection, job, folder, partial(make, causal=job.objective == "clm"))

    return train


TRAINERS: dict[str, Callable[[Connection, Job, Path], None]] = {
    "transformers": as_objective(padded),
    "fastft": train_fastft,
    "transformers-flat": as_objective(flattened),
}
