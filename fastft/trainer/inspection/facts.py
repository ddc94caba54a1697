"""What can be counted of a task: over the arrays of its samples, a few million tokens at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastft.data import Draw, Samples
from fastft.data.batch import IGNORE_INDEX
from fastft.data.objectives.special import special_ids
from fastft.trainer.tasks import Task

CHUNK = 1 << 22  # tokens that are looked at together
WEIGHTS = 8  # different weights that are told apart
PROBED = 256  # samples of which it is counted what an epoch draws

WORD = "Zqxjword"  # by which an answer is found again in what a chat template writes


@dataclass
class Counts:
    """Of samples, in tokens unless said otherwise.

    Attributes:
        samples, records: how many there are, and of how many records they were made.
        tokens, supervised: all of them, and those with a weight.
        masked: those without one, less the first of each sample and special ones, which need no mask to go without.
        unmasked_samples: samples in which none is masked.
        weights: how often each weight other than 0 occurs, of up to 8 of them.
        ended: records in which an end token is learned.
    """

    samples: int = 0
    records: int = 0
    tokens: int = 0
    supervised: int = 0
    masked: int = 0
    unmasked_samples: int = 0
    weights: dict[float, int] = field(default_factory=dict)
    ended: int = 0


@dataclass(frozen=True)
class Drawn:
    """What the first epoch learns of some samples, where it draws that: labels among the tokens of their batches, and
    how many of the samples have an end token among the labels."""

    samples: int
    tokens: int
    labels: int
    ended: int

    @property
    def share(self) -> float:
        return self.labels / self.tokens


def count(samples: Samples, tokenizer: Any) -> Counts:
    """Exact, over all samples, without holding more than a few million tokens."""
    special, ends = special_ids(tokenizer), np.asarray(sorted(end_tokens(tokenizer)), np.int64)
    found, records, ended = Counts(samples=len(samples)), _Distinct(), _Distinct()
    for ids, weights, starts, documents in _chunks(samples):
        learned = weights != 0
        masked = ~learned & ~np.isin(ids, special)
        masked[starts] = False
        found.tokens += len(ids)
        found.supervised += int(learned.sum())
        found.masked += int(masked.sum())
        found.unmasked_samples += int((np.add.reduceat(masked, starts, dtype=np.int64) == 0).sum())
        _tally(found.weights, weights[learned])
        ends_learned = np.add.reduceat(learned & np.isin(ids, ends), starts, dtype=np.int64) > 0
        records.add(documents)
        ended.add(documents[ends_learned])
    found.records, found.ended = records.count, ended.count
    found.weights = dict(sorted(found.weights.items()))
    return found


class _Distinct:
    """How many different numbers there are among rising ones."""

    def __init__(self) -> None:
        self.count, self._last = 0, -1

    def add(self, numbers: Any) -> None:
        if len(numbers):
            self.count += int((np.diff(numbers, prepend=self._last) != 0).sum())
            self._last = int(numbers[-1])


def _chunks(samples: Samples) -> Iterator[tuple[Any, Any, Any, Any]]:
    """ids and weights, (T,), of some samples, where each of them starts among those, and the document of each."""
    ends, arrays = samples.arrays["ends"], samples.arrays
    first = 0
    while first < len(samples):
        begin = int(ends[first - 1]) if first else 0
        behind = max(first + 1, int(np.searchsorted(ends, begin + CHUNK, side="right")))
        span = slice(begin, int(ends[behind - 1]))
        starts = np.concatenate([[begin], ends[first : behind - 1]]).astype(np.int64) - begin
        ids, weights = np.asarray(arrays["input_ids"][span]), np.asarray(arrays["weights"][span])
        yield ids, weights, starts, np.asarray(arrays["documents"][first:behind], np.int64)
        first = behind


def _tally(counted: dict[float, int], weights: Any) -> None:
    while len(weights):
        value = float(weights[0])
        if value not in counted and len(counted) == WEIGHTS:
            return
        same = weights == weights[0]
        counted[value] = counted.get(value, 0) + int(same.sum())
        weights = weights[~same]


def end_tokens(tokenizer: Any) -> set[int]:
    """The end-of-sequence token, and the special one that the chat template writes behind an assistant's turn."""
    ends = {tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": WORD}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        behind = tokenizer(text.rpartition(WORD)[2].strip(), add_special_tokens=False)["input_ids"]
        ends |= set(behind[:1]) & set(special_ids(tokenizer).tolist())
    return ends


def draw_some(task: Task, tokenizer: Any) -> Drawn | None:
    """What is learned of up to 256 samples in the first epoch; None where that is no more and no less than what has a
    weight."""
    samples, ends = task.train.samples, end_tokens(tokenizer)
    places = sorted({len(samples) * place // PROBED for place in range(PROBED)})
    tokens = labels = ended = weighted = 0
    for place in places:
        batch = task.objective.batch(samples, [[place]], Draw(task.config.seed, 0))
        learned = batch.targets[0].labels
        tokens, labels = tokens + batch.tokens, labels + int((learned != IGNORE_INDEX).sum())
        ended += bool(ends & set(learned.flatten().tolist()))
        weighted += int(np.count_nonzero(samples[place].weights))
    return None if labels == weighted else Drawn(len(places), tokens, labels, ended)
