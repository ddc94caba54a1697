"""What a model is shown of a row, and what it learns there: position by position, out of the batch itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from fastft.data import Batch, Draw
from fastft.data.batch import IGNORE_INDEX
from fastft.trainer.inspection.tokens import TokenTexts
from fastft.trainer.tasks import Task

RELATIONS = {
    ("nsp", 0): "label 0: the second segment follows the first",
    ("nsp", 1): "label 1: the second segment is from another document",
    ("sop", 0): "label 0: the segments are in their order",
    ("sop", 1): "label 1: the segments are swapped",
}


@dataclass(frozen=True)
class Cell:
    """One token as it is shown.

    Attributes:
        text: readable.
        weight: of learning it; 0 where it is not learned.
        target: what is learned in its place where the model is shown something else, otherwise None.
        special: it is a special token.
    """

    text: str
    weight: float = 0.0
    target: str | None = None
    special: bool = False


@dataclass(frozen=True)
class Part:
    """Tokens that stand together. The first `prefix` of them see each other, where the model looks back otherwise."""

    title: str
    cells: list[Cell]
    prefix: int = 0


@dataclass(frozen=True)
class Row:
    """A row of a batch. `note` says what is learned of it as a whole."""

    title: str
    parts: list[Part]
    note: str = ""


def shown_rows(task: Task, texts: TokenTexts, count: int) -> list[Row]:
    """Rows from all over the first epoch, as training will see them: with that epoch's masks and corruptions."""
    steps = task.windows.steps_per_epoch
    chosen = sorted({(2 * place + 1) * steps // (2 * count) for place in range(count)}) if count else []
    rows = [row for step in chosen for row in _first_rows(task.windows[step], -(-count // len(chosen)))]
    return [_row(task, row, texts) for row in rows[:count]]


def _first_rows(window: list[list[list[int]]], count: int) -> list[list[int]]:
    return [row for batch in window for row in batch][:count]


def _row(task: Task, indices: list[int], texts: TokenTexts) -> Row:
    batch = task.objective.batch(task.train.samples, [indices], Draw(task.config.seed, 0), 1)
    names = "sample" if len(indices) == 1 else "samples"
    title = f"{names} {', '.join(f'{index:,}' for index in indices)}: {batch.tokens:,} tokens"
    if "decoder_input_ids" in batch.inputs:
        last = task.train.samples[indices[0]].input_ids[-1]
        return Row(title, _source_and_target(batch, texts, last))
    ids, labels, weights = (tensor[0].tolist() for tensor in _token_arrays(batch))
    in_place = task.objective.auto_class != "AutoModelForCausalLM"
    if not in_place:  # position t predicts token t + 1
        labels, weights = [IGNORE_INDEX, *labels[:-1]], [0.0, *weights[:-1]]
    cells = _cells(ids[: batch.tokens], labels, weights, texts)
    parts = [
        Part(name, cells[start:end], 0 if in_place else _prefix(batch, start))
        for name, start, end in _pieces(task, batch, indices)
    ]
    note = ""
    for target in batch.targets[1:]:
        label = int(target.labels[0])
        note = RELATIONS.get((task.objective.name, label), f"{target.output}: label {label}")
    return Row(title, parts, note)


def _token_arrays(batch: Batch) -> tuple[Any, Any, Any]:
    target = batch.targets[0]
    return batch.inputs["input_ids"], target.labels, target.weights


def _pieces(task: Task, batch: Batch, indices: Sequence[int]) -> list[tuple[str, int, int]]:
    """Titles and [start, end) of what shares a row without seeing each other, or of the two segments of a pair."""
    types = batch.inputs.get("token_type_ids")
    if types is not None and types[0].any():
        middle = int(types[0].argmax())
        return [("first segment", 0, middle), ("second segment", middle, batch.tokens)]
    if len(indices) == 1:
        return [("", 0, batch.tokens)]
    lengths = [int(task.train.samples.lengths[index]) for index in indices]
    seams = pairwise(accumulate(lengths, initial=0))
    return [
        (f"piece {number} of {len(indices)}: sample {index:,}, {end - start:,} tokens", start, end)
        for number, (index, (start, end)) in enumerate(zip(indices, seams, strict=True), 1)
    ]


def _prefix(batch: Batch, start: int) -> int:
    """How many positions see each other at the start of a piece; 0 where there is no such prefix."""
    mask = batch.inputs.get("attention_mask")
    if mask is None or mask.ndim != 4:
        return 0
    seen = int(mask[0, 0, start].sum())
    return seen if seen > 1 else 0


def _cells(ids: Sequence[int], labels: Sequence[int], weights: Sequence[float], texts: TokenTexts) -> list[Cell]:
    """One for each of `ids`, given the label of that very token, or of what it stands for."""
    hidden = [label for token, label in zip(ids, labels, strict=False) if label not in (IGNORE_INDEX, token)]
    originals = iter([texts([label])[0] for label in hidden])
    cells = []
    for token, text, label, weight in zip(ids, texts(ids), labels, weights, strict=False):
        target = next(originals) if label not in (IGNORE_INDEX, token) else None
        cells.append(Cell(text, 0.0 if label == IGNORE_INDEX else weight, target, texts.is_special(token)))
    return cells


def _source_and_target(batch: Batch, texts: TokenTexts, last: int) -> list[Part]:
    """What the encoder reads, and what the decoder writes; `last` is the target's last token where it is not learned,
    as no decoder input tells it."""
    source = batch.inputs["input_ids"][0][batch.inputs["attention_mask"][0] == 1].tolist()
    given = batch.inputs["decoder_input_ids"][0][batch.inputs["decoder_attention_mask"][0] == 1].tolist()
    _, labels, weights = (tensor[0].tolist() for tensor in _token_arrays(batch))
    end = labels[len(given) - 1]
    target = [*given[1:], last if end == IGNORE_INDEX else end]
    (begin,) = texts(given[:1])
    return [
        Part(
            f"source, {len(source):,} tokens for the encoder",
            _cells(source, [IGNORE_INDEX] * len(source), [0.0] * len(source), texts),
        ),
        Part(
            f"target, {len(target):,} tokens for the decoder, which begins with {begin}",
            _cells(target, labels, weights, texts),
        ),
    ]
