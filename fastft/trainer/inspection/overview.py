"""A run looked at before it starts: everything that `fastft inspect` shows, on a terminal or a page alike."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fastft.data import formats, sources
from fastft.data.build import NothingToLearn
from fastft.trainer.adapt import outlined
from fastft.trainer.config import TrainConfig
from fastft.trainer.given import GivenTask, given_tasks, model_class
from fastft.trainer.inspection.facts import Counts, Drawn, count, draw_some, end_tokens
from fastft.trainer.inspection.lengths import Lengths, lengths_of, packed_fill, padding_share
from fastft.trainer.inspection.rows import Row, shown_rows
from fastft.trainer.inspection.tokens import TokenTexts
from fastft.trainer.inspection.verdict import Finding, could_end, findings, nothing_to_learn
from fastft.trainer.inspection.words import mask_words, objective_words, percent, untried
from fastft.trainer.tasks import Task, check_fits, make_plan, make_tasks

FIRST_STEPS = 12
BUILTIN_FORMATS = {
    "builtin:stdlib-docstrings": "prompt_completion",
    "builtin:stdlib-docs": "text",
    "builtin:cmudict": "source_target",
}
WRITES_ENDS = ("clm", "prefix_lm", "seq2seq", "span_corruption", "ul2")

Facts = list[tuple[str, str]]  # name and text


@dataclass(frozen=True)
class TaskView:
    """One task. `rows` are what the model is shown of some samples, in the first epoch."""

    name: str
    facts: Facts
    lengths: list[Lengths]
    rows: list[Row]
    findings: list[Finding]


@dataclass(frozen=True)
class Overview:
    """A run: its tasks, which of them its first steps learn from (where there are several), and what is wrong."""

    model: str
    tasks: list[TaskView]
    steps: list[str] = field(default_factory=list)
    others: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """The fatal ones first. With several tasks each names its own."""
        named = [
            replace(found, problem=f"{task.name}: {found.problem}" if len(self.tasks) > 1 else found.problem)
            for task in self.tasks
            for found in task.findings
        ]
        return sorted([*self.others, *named], key=lambda found: not found.fatal)


def overview(config: TrainConfig, samples: int = 3) -> Overview:
    """Look at a run: its tokenizer and data are read, its model only as far as its configuration goes.

    Args:
        config: as `fastft train` takes it; `output_dir` is not touched.
        samples: rows that are shown of each task.

    Raises:
        ValueError, OSError, ImportError: what training would refuse as well, but for records with nothing to learn,
            which are counted.
    """
    given = given_tasks(config)
    make_plan(config, given)
    outline, _, tokenizer = outlined(config, config.model, model_class(given))
    try:
        tasks = _load(given, tokenizer)
    except NothingToLearn as error:
        return Overview(config.model, [], others=[nothing_to_learn("; ".join(str(error).splitlines()))])
    for task in tasks:
        check_fits(outline, task)
        task.objective.outline(outline)
    strict = [task.config.on_empty == "error" for task in given]
    views = [_view(task, tokenizer, samples, refuses) for task, refuses in zip(tasks, strict, strict=True)]
    return Overview(config.model, views, _first_steps(config, given, tasks))


def _load(given: list[GivenTask], tokenizer: Any) -> list[Task]:
    """As for training; and where that would stop at a record with nothing to learn, without such records."""
    try:
        return make_tasks(given, tokenizer)
    except NothingToLearn:
        return make_tasks([t._replace(config=replace(t.config, on_empty="drop")) for t in given], tokenizer)


def _view(task: Task, tokenizer: Any, samples: int, strict: bool) -> TaskView:
    texts, kind = TokenTexts(tokenizer), format_of(task.config)
    ends = " or ".join(texts([end])[0] for end in sorted(end_tokens(tokenizer)))
    counts, drawn, padding = count(task.train.samples, tokenizer), draw_some(task, tokenizer), padding_share(task)
    told = [
        ("objective", objective_words(task.objective)),
        ("data", f"{task.config.train_data}, read as {kind}"),
        ("samples", f"{counts.samples:,} from {counts.records:,} records, {counts.tokens:,} tokens"),
        ("mask", mask_words(task.config, kind)),
        *_learned(counts, drawn),
        ("end token learned", _end(task, kind, counts, drawn, ends)),
        *_left_out(task, counts),
        ("padding", _padding(task, padding)),
    ]
    if task.eval is not None:
        told.append(("held out", "; ".join(task.eval.stats.summary().splitlines())))
    if trials := untried(task.objective, task.config):
        told.append(("not tried here", f"{'; '.join(trials)}: training tries it before its first step"))
    found = findings(task, kind, counts, padding, strict)
    return TaskView(task.name, told, lengths_of(task), shown_rows(task, texts, samples), found)


def format_of(config: TrainConfig) -> str:
    """Of the records, by their first; a built-in corpus, all of which would have to be made, has a known one."""
    assert config.train_data is not None
    if config.train_data in BUILTIN_FORMATS and config.format == "auto":
        return BUILTIN_FORMATS[config.train_data]
    return formats.pick(config.format, next(iter(sources.read(config.train_data)))).name


def _learned(counts: Counts, drawn: Drawn | None) -> Iterator[tuple[str, str]]:
    share = f"{counts.supervised:,} of {counts.tokens:,} tokens ({percent(counts.supervised / counts.tokens)})"
    if drawn is None:
        yield "supervised", share
    else:
        yield (
            "supervised",
            f"{percent(drawn.share)} of the tokens in the first epoch, seen in {drawn.samples:,} samples",
        )
        yield "  drawn from", share
    if set(counts.weights) != {1.0}:
        yield "weights", ", ".join(f"{weight:g} ({number:,} tokens)" for weight, number in counts.weights.items())


def _end(task: Task, kind: str, counts: Counts, drawn: Drawn | None, tokens: str) -> str:
    if task.objective.name not in WRITES_ENDS:
        return "no: this objective writes no text that would have to end"
    if drawn is not None and task.objective.name not in ("clm", "prefix_lm"):
        return f"{_yes(drawn.ended)}, in {drawn.ended:,} of {drawn.samples:,} samples ({tokens})"
    if kind == "text":
        return (
            f"{_yes(counts.ended)}, in the last blocks of {counts.ended:,} of {counts.records:,} documents ({tokens})"
        )
    cut = task.train.stats.truncated
    also = f"; {cut:,} more are cut off" if cut and counts.ended + cut <= counts.records else ""
    whole = could_end(task, counts)
    return f"{_yes(counts.ended)}, in {counts.ended:,} of {whole:,} records that have one ({tokens}){also}"


def _yes(number: int) -> str:
    return "yes" if number else "no"


def _left_out(task: Task, counts: Counts) -> Iterator[tuple[str, str]]:
    stats = task.train.stats
    limit = f"max_length {task.objective.max_length:,}"
    yield "cut off", f"{stats.truncated:,} of {stats.samples:,} samples at {limit}" if stats.truncated else "none"
    reasons = "; ".join(f"{number:,}: {reason}" for reason, number in stats.drop_reasons.items())
    records = counts.records + stats.dropped
    yield "empty, dropped", f"{stats.dropped:,} of {records:,} records ({reasons})" if stats.dropped else "none"
    unused = ", ".join(f"{name} ({number:,})" for name, number in sorted(stats.ignored_columns.items()))
    yield "columns not used", unused or "none"


def _padding(task: Task, share: float) -> str:
    fill = packed_fill(task)
    text = f"{percent(share)} of the batches"
    if fill is None:
        return text
    verb = "are" if task.config.packing else "would be"
    return f"{text}; rows of {task.config.max_length:,} shared by samples (packing) {verb} {percent(fill)} full"


def _first_steps(config: TrainConfig, given: list[GivenTask], tasks: list[Task]) -> list[str]:
    if len(tasks) == 1:
        return []
    plan = make_plan(config, given, tasks[0].windows.steps_per_epoch)
    turns = zip(tasks, plan.visits_before(plan.max_steps), strict=True)
    total = ", ".join(f"{task.name} in {number:,}" for task, number in turns)
    return [
        f"of {plan.max_steps:,} steps: {total}",
        *(
            f"step {step + 1}: " + ", ".join(f"{tasks[turn.task].name} (weight {turn.weight:g})" for turn in plan[step])
            for step in range(min(FIRST_STEPS, plan.max_steps))
        ),
    ]
