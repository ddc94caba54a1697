"""The training loop: `Trainer(config).train()`."""

import signal
import time
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import Tensor

from fastft.memory import peak_memory, reset_peak_memory
from fastft.optim import clip_grad_norm_
from fastft.trainer.distributed import sum_rows
from fastft.trainer.evaluation.assess import assess
from fastft.trainer.gradient import totals, window_gradient
from fastft.trainer.nonfinite import BadStep, LossWatch
from fastft.trainer.optimizer import set_rates
from fastft.trainer.reporting.finish import finish
from fastft.trainer.reporting.report import Report
from fastft.trainer.saving.checkpoint import step_of
from fastft.trainer.saving.keep import keep, prune, restore_best
from fastft.trainer.schedule import factor
from fastft.trainer.setup import Setup
from fastft.trainer.state import Meter
from fastft.trainer.tasks import Share


class Trainer(Setup):
    """Fine-tunes a language model by one objective or several, on one process or, under torchrun, many.

    One optimizer step takes `gradient_accumulation_steps` batches of each process and the gradient of
    `sum w nll / sum w` over all of their labels, of one task or, with weights, of several. Weights, gradients and the
    optimizer's state are fp32; with bf16 the matmuls of forward and backward run in bf16 under `torch.autocast`. Every
    batch first seeds torch's generators from (seed, step, batch), and every other random choice is a function of
    (seed, epoch, sample), so a resumed run is the run that was not interrupted, bit for bit on a CPU, more processes
    draw what one would, and an evaluation leaves the training as it is.

    What it trains with (`model`, `tokenizer`, `tasks`, `optimizers`, ...) is described in `Setup`.

    Args:
        config: the run.
        console: where progress goes; a terminal gets a bar too. Default: stdout.

    Raises:
        ValueError, OSError: settings, data, checkpoint or output folder that cannot be used, and what to do.
    """

    grad_norm = 0.0
    peak_memory = 0

    def train(self) -> Report:
        """Train up to the last step, to the end of patience, or to SIGINT or SIGTERM; save, evaluate, write the rest.

        Raises:
            BadStep: names the step and its samples. Nothing of that step was applied.
            OSError: a checkpoint cannot be written; those before it are whole.
        """
        config, state = self.config, self.state
        for line in self.describe():
            self.progress.say(line)
        with ExitStack() as around:
            for resource in (self.stop, self.progress, closing(self.shares), closing(self.trackers)):
                around.enter_context(resource)
            due = config.eval_on_start if state.step == 0 else config.eval_steps and state.step % config.eval_steps == 0
            if due and not self.evaluated():  # a run that was stopped may have saved without
                self.assess()
            while state.step < self.max_steps and not self.best.exhausted and not self.stopped():
                self.train_step()
                if state.step % config.logging_steps == 0:
                    self.log_losses()
                if config.eval_steps and state.step % config.eval_steps == 0:
                    self.assess()
                if config.save_steps and state.step % config.save_steps == 0:
                    self.save()
            if state.recent.steps:
                self.log_losses()
            if state.step:
                self.save()
            if not (stopped := self.stopped()) and not self.evaluated():
                self.assess()
                prune(self)
            if config.load_best_model_at_end and not stopped:
                restore_best(self)
        return finish(self, self.peak_memory)

    def train_step(self) -> None:
        """One optimizer step over one accumulation window of each task that takes part."""
        config, step, started = self.config, self.state.step, time.perf_counter()
        reset_peak_memory(self.device)
        self.learn(step)
        shares = self.shares[step]
        done = Meter(steps=1, waited=time.perf_counter() - started)
        set_rates(self.optimizers, self.rate(step))

        self.model.train()
        losses = torch.cat([self.learn_from(share, done, share is shares[-1]) for share in shares])
        if self.world.size > 1:
            sum_rows(self.model)
        self.grad_norm = self.clip()
        rows = [batch for share in shares for batch in share.indices]
        watch = self.watches.setdefault(" + ".join(s.task.name for s in shares), LossWatch(config.spike_factor))
        problem = watch.judge(losses, self.grad_norm, rows, step + 1, self.learning_rate(step))
        if problem and config.on_bad_step == "stop":
            raise BadStep(f"{problem}; {self.saved} can be resumed" if self.saved else problem)
        if problem:
            self.progress.say(problem)
            done = Meter(steps=1, skipped=1, tokens=done.tokens, waited=done.waited)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()

        done.seconds = time.perf_counter() - started
        self.state.add(done)
        self.peak_memory = max(self.peak_memory, peak_memory(self.device))
        self.progress.step(done.mean_loss, done.seconds)

    def learn_from(self, share: Share, done: Meter, last: bool) -> Tensor:
        """Add a share's gradient to `.grad`, and what it was to `done`, over all processes.

        Returns:
            Loss of each micro-batch of the window, (micro-batches,), fp64.
        """
        config, world = self.config, self.world
        own = totals(share.batches)
        items = dict(zip(own, world.sum(torch.tensor(list(own.values()), dtype=torch.float64)).tolist(), strict=True))
        found, parts = window_gradient(
            self.engine, share.batches, self.device, self.autocast, share.turn.weight, items=items, last=last,
            seeds=share.seeds(config.seed, self.state.step), label_smoothing=config.label_smoothing_factor,
        )  # fmt: skip
        own_losses = torch.cat([torch.stack([*parts.values()]), found]).double().cpu()
        losses = torch.zeros(len(share.rows), dtype=torch.float64)
        losses[share.places] = own_losses[len(parts) :][: len(share.places)]
        counts = [
            float(sum(batch.tokens for batch in share.batches)),
            float(sum(batch.targets[0].count for batch in share.batches)),
            self.flops.of(share.batches),
        ]
        told = torch.cat([torch.tensor(counts, dtype=torch.float64), own_losses[: len(parts)], losses])
        tokens, supervised, flops, *means = world.sum(told).tolist()
        means, losses = means[: len(parts)], torch.tensor(means[len(parts) :], dtype=torch.float64)
        done.count(int(tokens), int(supervised), losses.sum().item(), next(iter(items.values())))
        done.flops += flops
        for (output, weight), mean in zip(items.items(), means, strict=True):
            if name := ".".join([share.task.name] * (len(self.tasks) > 1) + [output] * (len(parts) > 1)):
                done.parts[name] = [mean * weight, weight]
        return losses

    def clip(self) -> float:
        """The norm of the whole gradient before it is clipped to `max_grad_norm`."""
        parameters, limit = self.learning.ever(), self.config.max_grad_norm or float("inf")
        norm: Any = clip_grad_norm_(parameters, limit, defer=True)  # row gradients are SparseAdamW's to step
        return float(norm.full_tensor() if self.sharded else norm)

    def stopped(self) -> bool:
        """Whether any process of the run was asked to stop; then all of them are."""
        stopped = self.world.any(bool(self.stop))  # a signal that comes after this is for the next time
        if stopped and not self.stop:
            self.stop.signal = signal.SIGTERM
        return stopped

    def evaluated(self) -> bool:
        """Whether the model as it is has been evaluated."""
        return [record["step"] for record in self.log.having("eval_loss")[-1:]] == [self.state.step]

    def rate(self, step: int) -> float:
        """What peak learning rates are multiplied by in the step that follows `step` others."""
        start, end = self.plan.course(step)
        return factor(self.config.lr_scheduler_type, step - start, self.config.warmup_steps, end - start)

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` others, where `param_groups` does not say otherwise."""
        return self.config.learning_rate * self.rate(step)

    def log_losses(self) -> None:
        """One record and one line for the steps since the last one."""
        recent, step = self.state.recent, self.state.step
        speed, rate = recent.per_second(recent.tokens), self.learning_rate(step - 1)
        self.note(
            {
                "step": step,
                "epoch": self.epoch_at(step),
                **({"loss": recent.mean_loss} if recent.steps > recent.skipped else {}),
                **({"skipped": recent.skipped} if recent.skipped else {}),
                **({"losses": recent.mean_parts} if recent.parts else {}),
                "learning_rate": rate,
                "grad_norm": self.grad_norm,
                "tokens_per_second": speed,
                "supervised_tokens_per_second": recent.per_second(recent.supervised_tokens),
                **({"mfu": self.mfu(recent)} if self.flops.known else {}),
                "peak_memory_bytes": self.peak_memory,
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
        """Evaluate; keep the model if it is the best so far and that is asked for."""
        evaluation = assess(self)
        if evaluation is None:
            return
        if self.best.judge(self.state.step, evaluation) and self.state.step and self.config.load_best_model_at_end:
            self.save()

    def save(self) -> None:
        """Write checkpoint-<step> if it is not there yet, then drop the oldest beyond `save_total_limit`."""
        if self.saved is None or step_of(self.saved) != self.state.step:
            keep(self)
