"""What a run learns: one objective on its data, or several tasks that take turns."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fastft.data import Batch, Corpus, Draw, Objective, load_corpus, make_objective
from fastft.data.batch import blank
from fastft.data.packing import pack
from fastft.data.positions import first_position
from fastft.trainer.config import FIELDS, TrainConfig
from fastft.trainer.given import GivenTask, mask_of
from fastft.trainer.plan import Plan, Turn
from fastft.trainer.windows import Rows, Windows


class Task:
    """One objective, its samples, and which of them each of its windows holds.

    name, config:  the task's, with the run's settings where it has none of its own.
    objective:     makes batches of `train` and `eval`; eval is None where nothing is held out.
    windows:       which samples its steps see, on all processes; a row holds several with `packing`.
    """

    def __init__(self, name: str, config: TrainConfig, tokenizer: Any, processes: int = 1) -> None:
        self.name, self.config = name, config
        options = {field: getattr(config, field) for field in FIELDS}
        self.objective: Objective = make_objective(config.objective, tokenizer, options)
        self.train, self.eval = load_corpora(config, tokenizer, self.objective)
        lengths = self.train.lengths
        rows = pack(lengths, config.max_length) if config.packing else None
        self.filled = sum(lengths) / (len(rows) * config.max_length) if rows else None
        self.windows = Windows(
            lengths, config.per_device_train_batch_size, config.gradient_accumulation_steps * processes, config.seed,
            config.group_by_length, rows,
        )  # fmt: skip

    def batches(self, visit: int, multiple: int, places: Iterable[int] | None = None) -> list[Batch]:
        """The micro-batches of one of its windows, or those at some places."""
        draw, window = Draw(self.config.seed, self.windows.epoch_of(visit)), self.windows[visit]
        chosen = window if places is None else [window[place] for place in places]
        return [self.objective.batch(self.train.samples, rows, draw, multiple) for rows in chosen]

    def describe(self) -> list[str]:
        lines = []
        for name, corpus in (("training", self.train), ("held-out", self.eval)):
            if corpus is not None:
                lines.append(f"{name} data: {'; '.join(corpus.stats.summary().splitlines())}")
        if self.filled is not None:
            lines.append(f"packed: {self.filled:.1%} of each row of {self.config.max_length} is no padding")
        return lines


class Share:
    """One task's part in a step, as one of `size` processes takes it.

    turn, rows:  the task's turn, and the indices of all of its window's samples, by micro-batch.
    places:      numbers of those micro-batches that are this process's: every `size`-th.
    batches:     of them; as many in each process, the last may be one without anything to learn.
    """

    def __init__(self, task: Task, turn: Turn, multiple: int, rank: int = 0, size: int = 1) -> None:
        self.task, self.turn = task, turn
        self.rows: list[Rows] = task.windows[turn.visit]
        self.places = list(range(rank, len(self.rows), size))
        self.batches = task.batches(turn.visit, multiple, self.places)
        if len(self.batches) < -(-len(self.rows) // size):
            self.batches.append(blank(*task.batches(turn.visit, multiple, [0])))

    @property
    def indices(self) -> list[list[int]]:
        """Sample indices of each micro-batch of the window."""
        return [[index for row in rows for index in row] for rows in self.rows]

    def seeds(self, seed: int, step: int) -> list[int]:
        """Of torch's generators during each of `batches`: 32 bits, all that a CPU generator takes; the same for the
        same micro-batch on any process."""
        names = [f"{seed}/{step}/{self.turn.task}/{place}" for place in [*self.places, -1]][: len(self.batches)]
        return [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") for name in names]


def make_tasks(given: Sequence[GivenTask], tokenizer: Any, processes: int = 1) -> list[Task]:
    """The tasks of a run, with their data.

    Raises:
        ValueError, OSError: settings or data of a task that cannot be used.
    """
    return [Task(task.name, task.config, tokenizer, processes) for task in given]


def make_plan(config: TrainConfig, given: Sequence[GivenTask], steps_per_epoch: int = 1) -> Plan:
    """Raises ValueError for weights, stages or a schedule that cannot be meant.

    steps_per_epoch: of the first task; where the run's length is a number of epochs. Before data are read, any number
    does to judge the settings.
    """
    names, weights = [task.name for task in given], [task.weight for task in given]
    by_epochs = math.ceil(config.num_train_epochs * steps_per_epoch)
    steps = config.max_steps if config.max_steps > 0 or config.stages else by_epochs
    return Plan(names, weights, config.task_schedule, config.stages or (), config.seed, steps)


def load_corpora(config: TrainConfig, tokenizer: Any, objective: Objective) -> tuple[Corpus, Corpus | None]:
    """Training and held-out samples; the latter from `eval_data`, or by `eval_fraction`, or None.

    Raises:
        ValueError, OSError: data that cannot be read or learned from, with file and line; see `load_corpus`.
    """
    mask = mask_of(config)

    def load(source: str, split: str, eval_fraction: float, limit: int | None, seed: int = 0) -> Corpus:
        return load_corpus(
            source, tokenizer, objective=objective, mask=mask, format=config.format, on_empty=config.on_empty,
            split=split, eval_fraction=eval_fraction, limit=limit, seed=seed, num_proc=config.num_proc,
            cache=config.cache, chat_template_kwargs=config.chat_template_kwargs,
        )  # fmt: skip

    assert config.train_data is not None
    train = load(config.train_data, "train", config.eval_fraction, config.max_train_samples, config.seed)
    if config.eval_data is not None:
        return train, load(config.eval_data, "train", 0.0, config.max_eval_samples)
    if config.eval_fraction:
        return train, load(config.train_data, "eval", config.eval_fraction, config.max_eval_samples)
    return train, None


def check_fits(model: Any, task: Task) -> None:
    """Refuse samples, also held-out ones, with more tokens than the model has positions.

    Raises:
        ValueError: naming both numbers.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return
    positions -= first_position(model)
    for kind, corpus in (("a", task.train), ("a held-out", task.eval)):
        longest = 0 if corpus is None else _longest(task, corpus)
        if longest > positions:
            raise ValueError(
                f"{kind} sample has {longest} tokens, but {task.config.model} takes {positions}: "
                f"lower max_length (now {task.config.max_length})"
            )


def _longest(task: Task, corpus: Corpus) -> int:
    limit = max(task.objective.max_length, task.config.max_target_length or 0)
    return min(task.objective.longest(corpus.samples), limit)


def fingerprint(tasks: list[Task]) -> str:
    """A hash of every token and weight that trains, in order."""
    if len(tasks) == 1:
        return tasks[0].train.samples.fingerprint
    return hashlib.sha256("".join(task.train.samples.fingerprint for task in tasks).encode()).hexdigest()
