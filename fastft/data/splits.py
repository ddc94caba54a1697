"""Which records train, which are held out, and which are drawn when fewer are wanted.

Every choice is the rank of a hash, so it depends on the data and never on reading order, worker or Python version.
Sources are read twice: once for the hashes, 8 bytes a record, and once for the records that were chosen, one at a time.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from fastft.data.readers import RawRecord

T = TypeVar("T")
SPLITS = ("train", "eval")


@dataclass(frozen=True, eq=False)
class Chosen(Generic[T]):
    """Some items of a source that can be read again, in its order.

    Attributes:
        items: the source, n items.
        kept: (n,) bool, those that are chosen.
    """

    items: Iterable[T]
    kept: Any

    def __len__(self) -> int:
        return int(np.count_nonzero(self.kept))

    def __iter__(self) -> Iterator[T]:
        count = 0
        for item in self.items:
            if count == len(self.kept):
                raise ValueError(f"the source grew while it was read: it had {count} records and now has more")
            if self.kept[count]:
                yield item
            count += 1
        if count < len(self.kept):
            raise ValueError(f"the source shrank while it was read: from {len(self.kept)} records to {count}")


def divide(records: Iterable[RawRecord], split: str, eval_fraction: float) -> Iterable[RawRecord]:
    """The records of one side, in order; as `records` itself, they can be iterated over again.

    Records of one group (a module of a code base; otherwise equal records) always stay on one side, so nothing leaks.
    Groups are held out in the order of their hash as long as they fit into `eval_fraction` of all records; each side
    gets at least one. A lone text is cut instead: its last part, from a line start, is held out.
    The seed of a run has no part in it, so that runs with different seeds are evaluated on the same records.

    Raises:
        ValueError: an unknown split, a fraction outside [0, 1), `split="eval"` with nothing held out, or records that
            cannot be divided.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; one of {', '.join(SPLITS)} is wanted")
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"eval_fraction: got {eval_fraction}; at least 0 and below 1 is wanted")
    if eval_fraction == 0:
        if split == "eval":
            raise ValueError("split='eval' with eval_fraction=0: nothing is held out; give a fraction such as 0.05")
        return records
    first: RawRecord | None = None

    def ranks() -> Iterator[int]:
        nonlocal first
        for record in records:
            first = first or record
            yield _rank(_group(record))

    ranked = np.fromiter(ranks(), np.uint64)
    if first is not None and len(ranked) == 1 and set(first.columns) == {"text"}:
        return [_cut(first, split, eval_fraction)]
    groups, sizes = np.unique(ranked, return_counts=True)
    held_out = _held_out(sizes, eval_fraction)
    if len(groups) and held_out.all():
        raise ValueError(
            f"eval_fraction={eval_fraction}: none of {len(ranked)} record(s) can be held out, as all are equal or of "
            "one group; give more data, or a file of its own for evaluation"
        )
    return Chosen(records, np.isin(ranked, groups[held_out]) == (split == "eval"))


def draw(items: Iterable[T], limit: int | None, seed: int) -> Iterable[T]:
    """At most `limit` items from all over, in order; the choice is a function of (seed, index). None takes all."""
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"limit: got {limit}; at least 1 is wanted, or None for everything")
    count = len(items) if isinstance(items, Sized) else sum(1 for _ in items)
    if limit >= count:
        return items
    kept = np.zeros(count, bool)
    kept[drawn(count, limit, seed)] = True
    return Chosen(items, kept)


def drawn(count: int, limit: int, seed: int) -> Any:
    """The places, in order, of `limit` of `count` items."""
    ranks = np.fromiter((_rank(f"{seed}/{index}") for index in range(count)), np.uint64, count)
    return np.sort(np.argsort(ranks, kind="stable")[:limit])


def _held_out(sizes: Any, eval_fraction: float) -> Any:
    """Whether each group is held out, given the sizes of all in the order of their hashes."""
    total = int(sizes.sum())
    room = min(total - 1, max(1, round(eval_fraction * total)))
    held_out = np.zeros(len(sizes), bool)
    for place in np.flatnonzero(sizes <= room):
        if room == 0:
            break
        if sizes[place] <= room:
            held_out[place] = True
            room -= int(sizes[place])
    if len(sizes) and not held_out.any():
        held_out[np.argmin(sizes)] = True
    return held_out


def _group(record: RawRecord) -> str:
    if record.group is not None:
        return record.group
    return json.dumps(record.columns, sort_keys=True, default=str)


def _cut(record: RawRecord, split: str, eval_fraction: float) -> RawRecord:
    text = record.columns["text"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{record.origin}: the text is empty")
    seam = text.find("\n", int(len(text) * (1 - eval_fraction))) + 1
    if not text[:seam].strip() or not text[seam:].strip():
        raise ValueError(
            f"{record.origin}: eval_fraction={eval_fraction} cannot cut this text: it is one document without a line "
            "break in its last part; split it into several files, or give a file of its own for evaluation"
        )
    return record._replace(columns={"text": text[seam:] if split == "eval" else text[:seam]})


def _rank(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
