"""The facts of a run, and report.json, which holds them."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastft.data import Corpus
from fastft.trainer.device import describe
from fastft.trainer.given import data_of
from fastft.trainer.reporting.measure import HeadCost
from fastft.trainer.saving.checkpoint import step_of, write_json
from fastft.trainer.setup import Setup

REPORT = "report.json"


@dataclass(frozen=True)
class Generation:
    """One held-out prompt, what the data says, and what the model wrote before and after training."""

    origin: str
    prompt: str
    reference: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Report:
    """Facts of a run. Losses are nats per supervised token, `seconds` are of training steps alone.

    tokens counts real tokens seen (no padding), supervised_tokens those that had a loss. eval_loss_before is that
    of step 0; eval_losses are by task or output, where there are several, and perplexity is None then. What is "after"
    is of the last evaluation, or of the best one where its weights were kept. dropped counts records that were left
    out, by reason; truncated, samples that were cut. error_rate compares completions with their references, word by
    word. data_share is the share of the seconds in which a step waited for data; mfu is the share of the rate of a
    measured matrix product that the model's FLOPs make, padding not counted. interrupted_by names the signal that ended
    the run early.
    """

    model: str
    objective: str
    data: str
    device: str
    precision: str
    patch: bool
    train_samples: int
    eval_samples: int
    train_dropped: dict[str, int]
    eval_dropped: dict[str, int]
    train_truncated: int
    eval_truncated: int
    parameters: int
    step: int
    max_steps: int
    skipped_steps: int
    epoch: float
    tokens: int
    supervised_tokens: int
    seconds: float
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss_after: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    error_rate_before: float | None
    error_rate_after: float | None
    eval_losses_before: dict[str, float]
    eval_losses_after: dict[str, float]
    data_share: float
    mfu: float | None
    peak_memory_bytes: int
    checkpoint: str | None
    plot: str
    log: str
    interrupted_by: str | None
    generations: list[Generation]
    head: HeadCost | None = None

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / max(1, self.tokens)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def supervised_tokens_per_second(self) -> float:
        return self.supervised_tokens / self.seconds if self.seconds else 0.0

    def write(self, output_dir: Path) -> None:
        """report.json, with every field and rate."""
        rates = ("supervised_share", "tokens_per_second", "supervised_tokens_per_second")
        write_json(output_dir / REPORT, {**dataclasses.asdict(self), **{name: getattr(self, name) for name in rates}})


def summarize(run: Setup, peak_memory_bytes: int, interrupted_by: str | None) -> Report:
    """The report of a run as it stands, from its counters and its log."""
    config, total, losses = run.config, run.state.total, run.log.having("loss")
    end = None if run.saved is None or interrupted_by else step_of(run.saved)  # that of the best, if it was restored
    first, last = _first_and_last(run.log.having("eval_loss"), end)
    train, held_out = [task.train for task in run.tasks], [task.eval for task in run.tasks if task.eval]
    worse, better = _first_and_last(run.log.having("error_rate"), end)
    return Report(
        model=config.model,
        objective=" + ".join(task.config.objective for task in run.tasks),
        data=data_of(config),
        device=describe(run.device),
        precision="bf16 autocast, fp32 weights and optimizer" if run.bf16 else "fp32",
        patch=config.patch,
        train_samples=sum(len(corpus.samples) for corpus in train),
        eval_samples=sum(len(corpus.samples) for corpus in held_out),
        train_dropped=_dropped(train),
        eval_dropped=_dropped(held_out),
        train_truncated=sum(corpus.stats.truncated for corpus in train),
        eval_truncated=sum(corpus.stats.truncated for corpus in held_out),
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        step=run.state.step,
        max_steps=run.max_steps,
        skipped_steps=total.skipped,
        epoch=run.epoch_at(run.state.step),
        tokens=total.tokens,
        supervised_tokens=total.supervised_tokens,
        seconds=total.seconds,
        train_loss=losses[-1]["loss"] if losses else None,
        eval_loss_before=first.get("eval_loss"),
        eval_loss_after=last.get("eval_loss"),
        perplexity_before=first.get("perplexity"),
        perplexity_after=last.get("perplexity"),
        error_rate_before=worse.get("error_rate"),
        error_rate_after=better.get("error_rate"),
        eval_losses_before=first.get("eval_losses", {}),
        eval_losses_after=last.get("eval_losses", {}),
        data_share=total.waited / total.seconds if total.seconds else 0.0,
        mfu=run.mfu(total) if run.flops.known else None,
        peak_memory_bytes=peak_memory_bytes,
        checkpoint=str(run.saved) if run.saved else None,
        plot=str(run.plot),
        log=str(run.log.path),
        interrupted_by=interrupted_by,
        generations=_generations(run.log.having("generations"), end),
    )


def _dropped(corpora: list[Corpus]) -> dict[str, int]:
    """Records that were left out of some corpora, by reason."""
    counts: Counter[str] = Counter()
    for corpus in corpora:
        counts.update(corpus.stats.drop_reasons)
    return dict(counts)


def _first_and_last(records: list[dict[str, Any]], end: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of step 0, and that of step `end` or else the newest later one; {} for one that is not there."""
    first = [record for record in records if record["step"] == 0]
    later = [record for record in records if record["step"] == end or (end is None and record["step"] > 0)]
    return first[0] if first else {}, later[-1] if later else {}


def _generations(records: list[dict[str, Any]], end: int | None) -> list[Generation]:
    """Each prompt once, with what was written at step 0 and what was written last."""
    shown: dict[str, Generation] = {}
    for name, record in zip(("before", "after"), _first_and_last(records, end), strict=True):
        for text in record.get("generations", []):
            known = shown.get(text["origin"]) or Generation(text["origin"], text["prompt"], text["reference"])
            shown[text["origin"]] = dataclasses.replace(known, **{name: text["completion"]})
    return list(shown.values())
