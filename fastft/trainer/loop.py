"""The training loop: `Trainer(config).train()`."""

import hashlib
import math
import time
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fastft.data import Corpus, Objective
from fastft.memory import peak_memory, reset_peak_memory
from fastft.trainer.checkpoint import checkpoints, remove, save, step_of
from fastft.trainer.config import TrainConfig
from fastft.trainer.error_rate import error_rate
from fastft.trainer.evaluate import evaluate
from fastft.trainer.generate import complete, drawn, openings
from fastft.trainer.given import data_of
from fastft.trainer.gradient import totals, window_gradient
from fastft.trainer.interrupt import StopRequest
from fastft.trainer.nonfinite import refuse_non_finite
from fastft.trainer.plot import plot_losses
from fastft.trainer.progress import Progress
from fastft.trainer.rendering import write_text
from fastft.trainer.report import Report, summarize
from fastft.trainer.schedule import factor
from fastft.trainer.setup import Setup
from fastft.trainer.state import Meter
from fastft.trainer.tasks import Task, fingerprint


class Trainer(Setup):
    """Fine-tunes a language model by one objective or several.

    One optimizer step takes `gradient_accumulation_steps` batches and the gradient of `sum w nll / sum w` over all of
    their labels, of one task or, with weights, of several. Weights, gradients and AdamW's state are fp32; with bf16 the
    matmuls of forward and backward run in bf16 under `torch.autocast`. Every step first seeds torch's generators from
    (seed, step), and every other random choice is a function of (seed, epoch, sample), so a resumed run is the run that
    was not interrupted, bit for bit on a CPU, and an evaluation leaves the training as it is.

    What it trains with (`model`, `tokenizer`, `tasks`, `optimizer`, ...) is described in `Setup`.

    Args:
        config: the run.
        console: where progress goes; a terminal gets a bar too. Default: stdout.

    Raises:
        ValueError, OSError: settings, data, checkpoint or output folder that cannot be used, and what to do.
    """

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        super().__init__(config, console)
        self.stop = StopRequest()
        self.progress = Progress(self.console, self.max_steps, self.state.step)
        self.grad_norm, self.peak_memory = 0.0, 0

    def train(self) -> Report:
        """Train up to the last step, or to SIGINT or SIGTERM; save, evaluate, write log, plot and report.

        Raises:
            NonFiniteLoss: names the step and its samples. Nothing of that step was applied.
            OSError: a checkpoint cannot be written; those before it are whole.
        """
        config, state = self.config, self.state
        for line in self.describe():
            self.progress.say(line)
        with self.stop, self.progress, closing(self.shares):
            if state.step == 0 and config.eval_on_start:
                self.assess()
            while state.step < self.max_steps and not self.stop:
                self.train_step()
                if state.step % config.logging_steps == 0:
                    self.log_losses()
                if config.save_steps and state.step % config.save_steps == 0:
                    self.save()
                if config.eval_steps and state.step % config.eval_steps == 0:
                    self.assess()
            if state.recent.steps:
                self.log_losses()
            if state.step and (self.saved is None or step_of(self.saved) != state.step):
                self.save()
            if not self.stop and not any(record["step"] == state.step for record in self.log.having("eval_loss")):
                self.assess()
        return self._finish()

    def train_step(self) -> None:
        """One optimizer step over one accumulation window."""
        started, step = time.perf_counter(), self.state.step
        reset_peak_memory(self.device)
        torch.manual_seed(step_seed(self.config.seed, step))
        shares = self.shares[step]
        waited = time.perf_counter() - started
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

        self.model.train()
        done, losses = Meter(steps=1, waited=waited), []
        for share in shares:
            found, parts = window_gradient(self.model, share.batches, self.device, self.autocast, share.turn.weight)
            losses.append(found)
            done.count(share.batches, found.sum().item())
            self.count_parts(done, share.task, parts, totals(share.batches))
        limit = self.config.max_grad_norm or math.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        refuse_non_finite(
            torch.cat(losses), self.grad_norm, [batch for share in shares for batch in share.indices], step + 1,
            self.learning_rate(step),
        )  # fmt: skip
        self.optimizer.step()
        self.optimizer.zero_grad()

        done.seconds = time.perf_counter() - started
        self.state.add(done)
        self.peak_memory = max(self.peak_memory, peak_memory(self.device))
        self.progress.step(done.mean_loss, done.seconds)

    def count_parts(self, done: Meter, task: Task, losses: dict[str, Tensor], weights: dict[str, float]) -> None:
        """The loss of each task, and of each output where a task has several; of one alone there are no parts."""
        for output, loss in losses.items():
            names = [task.name] * (len(self.tasks) > 1) + [output] * (len(losses) > 1)
            if names:
                done.parts[".".join(names)] = [loss.item() * weights[output], weights[output]]

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` others."""
        config = self.config
        start, end = self.plan.course(step)
        return config.learning_rate * factor(config.lr_scheduler_type, step - start, config.warmup_steps, end - start)

    def log_losses(self) -> None:
        """One record and one line for the steps since the last one."""
        recent, step = self.state.recent, self.state.step
        rate, speed = self.learning_rate(step - 1), recent.per_second(recent.tokens)
        self.log.add(
            {
                "step": step,
                "epoch": self.epoch_at(step),
                "loss": recent.mean_loss,
                **({"losses": recent.mean_parts} if recent.parts else {}),
                "learning_rate": rate,
                "grad_norm": self.grad_norm,
                "tokens_per_second": speed,
                "supervised_tokens_per_second": recent.per_second(recent.supervised_tokens),
                "data_share": recent.waited / recent.seconds if recent.seconds else 0.0,
            }
        )
        parts = "".join(f"  {name} {value:.4f}" for name, value in recent.mean_parts.items())
        self.progress.say(
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}  loss {recent.mean_loss:.4f}{parts}  "
            f"lr {rate:.2e}  grad norm {self.grad_norm:.2f}  {speed:,.0f} tokens/s  {self.progress.left()} left"
        )
        self.state.recent = Meter()

    def assess(self) -> None:
        """The loss on the held-out samples of each task, their mean, and what the model now writes for some of them.
        A perplexity is that of one task with one output."""
        record: dict[str, Any] = {"step": self.state.step}
        parts: dict[str, float] = {}
        held_out = [(task, task.eval) for task in self.tasks if task.eval is not None]
        for task, corpus in held_out:
            with self.progress.subtask("evaluate") as subtask:
                found = evaluate(
                    self.model, task.objective, corpus, self.config.per_device_eval_batch_size, self.device,
                    self.autocast, on_batch=subtask.update, should_stop=lambda: bool(self.stop),
                )  # fmt: skip
            if found is None:
                return
            name = f"{task.name}: " if len(self.tasks) > 1 else ""
            named = {f"{task.name}.{output}" if name else output: loss for output, loss in found.parts.items()}
            outputs = "".join(f", {output} {loss:.4f}" for output, loss in named.items() if len(named) > 1)
            perplexity = None if name else found.perplexity
            if perplexity is not None:
                record["perplexity"] = perplexity
                outputs = f", perplexity {perplexity:.2f}"
            self.progress.say(
                f"step {self.state.step}: {name}evaluation loss {found.eval_loss:.4f}{outputs} "
                f"({len(corpus.samples):,} samples, {subtask.seconds:.1f} s)"
            )
            parts |= named if len(named) > 1 else {task.name: found.eval_loss}
            record["eval_loss"] = record.get("eval_loss", 0.0) + found.eval_loss / len(held_out)
        if not held_out:
            return
        self.log.add({**record, **({"eval_losses": parts} if len(parts) > 1 else {})})
        for task, corpus in held_out:
            if task.objective.generates and self.model.can_generate():
                self.write_samples(task.objective, corpus)

    def write_samples(self, objective: Objective, corpus: Corpus) -> None:
        """What the model now writes for held-out prompts, shown for a few, and its error rate over some more."""
        config, step = self.config, self.state.step
        write = partial(
            complete, self.model, objective, max_new_tokens=config.generation_max_new_tokens, device=self.device,
            autocast=self.autocast, batch_size=config.per_device_eval_batch_size,
        )  # fmt: skip
        if examples := openings(objective, corpus, config.num_generations):
            with self.progress.subtask("generate"):
                self.log.add({"step": step, "generations": write(examples)})
        if compared := drawn(objective, corpus, config.eval_generations):
            with self.progress.subtask("compare") as subtask:
                texts = write(compared)
            if not texts:
                self.progress.say(
                    f"step {step}: no word error rate, as no prompt leaves the model a position to write at"
                )
                return
            rate = error_rate((text["reference"], text["completion"]) for text in texts)
            self.log.add({"step": step, "error_rate": rate})
            self.progress.say(
                f"step {step}: word error rate {rate:.1%} ({len(texts):,} completions, {subtask.seconds:.1f} s)"
            )

    def save(self) -> None:
        """Write checkpoint-<step>, then drop the oldest beyond `save_total_limit`."""
        config = self.config
        facts = {**self.state.to_json(), "config": asdict(config), "data": fingerprint(self.tasks)}
        optimizer = None if config.save_only_model else self.optimizer
        with self.progress.subtask("save") as subtask:
            self.saved = save(self.output_dir, self.state.step, self.model, self.tokenizer, optimizer, facts)
            for old in checkpoints(self.output_dir)[: -(config.save_total_limit or 10**9)]:
                remove(old)
        self.progress.say(f"step {self.state.step}: saved {self.saved} ({subtask.seconds:.1f} s)")

    def _finish(self) -> Report:
        """Plot and report, also of a run that was stopped."""
        config, stopped_by = self.config, self.stop.signal
        plot_losses(
            self.plot, self.log.having("loss"), self.log.having("eval_loss"), f"{config.model} on {data_of(config)}"
        )
        report = summarize(self, self.peak_memory, stopped_by.name if stopped_by else None)
        report.write(self.output_dir)
        write_text(report, self.output_dir)
        if stopped_by:
            self.progress.say(
                f"stopped by {stopped_by.name} after step {self.state.step}, {self.saved or 'nothing'} saved"
            )
            if self.saved and not config.save_only_model:
                self.progress.say(f"to go on: fastft train {self.config_file} --resume_from_checkpoint true")
        return report


def step_seed(seed: int, step: int) -> int:
    """Of the generators during one step: 32 bits, all that a CPU generator takes."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=4).digest(), "big")
