"""The training loop: `Trainer(config).train()`."""

import hashlib
import math
import time
from dataclasses import asdict

import torch
from rich.console import Console

from fastft.memory import peak_memory, reset_peak_memory
from fastft.trainer.checkpoint import checkpoints, remove, save, step_of
from fastft.trainer.config import TrainConfig
from fastft.trainer.evaluate import evaluate
from fastft.trainer.generate import complete, openings
from fastft.trainer.gradient import supervision, window_gradient
from fastft.trainer.interrupt import StopRequest
from fastft.trainer.nonfinite import refuse_non_finite
from fastft.trainer.plot import plot_losses
from fastft.trainer.progress import Progress
from fastft.trainer.rendering import write_text
from fastft.trainer.report import Report, summarize
from fastft.trainer.resume import fingerprint
from fastft.trainer.schedule import factor
from fastft.trainer.setup import Setup
from fastft.trainer.state import Meter


class Trainer(Setup):
    """Fine-tunes a causal language model.

    One optimizer step takes `gradient_accumulation_steps` batches and the gradient of `sum w nll / sum w` over all of
    their tokens. Weights, gradients and AdamW's state are fp32; with bf16 the matmuls of forward and backward run in
    bf16 under `torch.autocast`. Every step first seeds torch's generators from (seed, step), so a resumed run is the
    run that was not interrupted, bit for bit on a CPU, and an evaluation leaves the training as it is.

    What it trains with (`model`, `tokenizer`, `train_data`, `optimizer`, ...) is described in `Setup`.

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
        with self.stop, self.progress:
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
        indices = self.windows[step]
        window = [[self.train_data.samples[i] for i in batch] for batch in indices]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

        self.model.train()
        shares = window_gradient(self.model, window, self.pad_token_id, self.device, self.autocast)
        limit = self.config.max_grad_norm or math.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        refuse_non_finite(shares, self.grad_norm, indices, step + 1, self.learning_rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad()

        loss, samples = shares.sum().item(), [sample for batch in window for sample in batch]
        weight = supervision(samples)
        done = Meter(
            steps=1,
            loss=loss * weight,
            weight=weight,
            tokens=sum(len(sample.input_ids) for sample in samples),
            supervised_tokens=sum(len(sample.weights) - 1 - sample.weights[1:].count(0.0) for sample in samples),
            seconds=time.perf_counter() - started,
        )
        self.state.add(done)
        self.peak_memory = max(self.peak_memory, peak_memory(self.device))
        self.progress.step(loss, done.seconds)

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` others."""
        config = self.config
        return config.learning_rate * factor(config.lr_scheduler_type, step, config.warmup_steps, self.max_steps)

    def log_losses(self) -> None:
        """One record and one line for the steps since the last one."""
        recent, step = self.state.recent, self.state.step
        rate, speed = self.learning_rate(step - 1), recent.per_second(recent.tokens)
        self.log.add(
            {
                "step": step,
                "epoch": self.windows.epoch_at(step),
                "loss": recent.mean_loss,
                "learning_rate": rate,
                "grad_norm": self.grad_norm,
                "tokens_per_second": speed,
                "supervised_tokens_per_second": recent.per_second(recent.supervised_tokens),
            }
        )
        self.progress.say(
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}  loss {recent.mean_loss:.4f}  lr {rate:.2e}  "
            f"grad norm {self.grad_norm:.2f}  {speed:,.0f} tokens/s  {self.progress.left()} left"
        )
        self.state.recent = Meter()

    def assess(self) -> None:
        """Loss and perplexity on the held-out samples, and what the model now writes for some of them."""
        if self.eval_data is None:
            return
        config, step, device, autocast = self.config, self.state.step, self.device, self.autocast
        with self.progress.subtask("evaluate") as subtask:
            found = evaluate(
                self.model, self.eval_data.samples, config.per_device_eval_batch_size, self.pad_token_id, device,
                autocast, on_batch=subtask.update, should_stop=lambda: bool(self.stop),
            )  # fmt: skip
        if found is None:
            return
        self.log.add({"step": step, "eval_loss": found.eval_loss, "perplexity": found.perplexity})
        self.progress.say(
            f"step {step}: evaluation loss {found.eval_loss:.4f}, perplexity {found.perplexity:.2f} "
            f"({len(self.eval_data.samples):,} samples, {subtask.seconds:.1f} s)"
        )
        if examples := openings(self.eval_data, self.tokenizer, config.num_generations):
            with self.progress.subtask("generate"):
                texts = complete(
                    self.model, self.tokenizer, examples, config.generation_max_new_tokens, device, autocast
                )
            self.log.add({"step": step, "generations": texts})

    def save(self) -> None:
        """Write checkpoint-<step>, then drop the oldest beyond `save_total_limit`."""
        config = self.config
        facts = {**self.state.to_json(), "config": asdict(config), "data": fingerprint(self.train_data.samples)}
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
            self.plot, self.log.having("loss"), self.log.having("eval_loss"), f"{config.model} on {config.train_data}"
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
