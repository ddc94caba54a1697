"""Which records train, which are held out, and which are drawn when fewer are wanted.

Every choice is the rank of a hash, so it depends on the data and never on reading order, worker or Python version.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from fastft.data.sources import RawRecord

T = TypeVar("T")
SPLITS = ("train", "eval")


def divide(records: list[RawRecord], split: str, eval_fraction: float) -> list[RawRecord]:
    """The records of one side, in order.

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
    if len(records) == 1 and set(records[0].columns) == {"text"}:
        return [_cut(records[0], split, eval_fraction)]
    groups = [_group(record) for record in records]
    held_out = _held_out(Counter(groups), eval_fraction)
    if len(held_out) == len(set(groups)):
        raise ValueError(
            f"eval_fraction={eval_fraction}: none of {len(records)} record(s) can be held out, as all are equal or of "
            "one group; give more data, or a file of its own for evaluation"
        )
    wanted = split == "eval"
    return [record for record, group in zip(records, groups, strict=True) if (group in held_out) == wanted]


def draw(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` items from all over, in order; the choice is a function of (seed, index). None takes all."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit: got {limit}; at least 1 is wanted, or None for everything")
    chosen = sorted(range(len(items)), key=lambda index: _rank(f"{seed}/{index}"))[:limit]
    return [items[index] for index in sorted(chosen)]


def _held_out(sizes: Counter[str], eval_fraction: float) -> set[str]:
    total = sizes.total()
    room = min(total - 1, max(1, round(eval_fraction * total)))
    ranked = sorted(sizes, key=lambda group: (_rank(group), group))
    held_out: set[str] = set()
    for group in ranked:
        if sizes[group] <= room:
            held_out.add(group)
            room -= sizes[group]
    return held_out or {min(ranked, key=lambda group: sizes[group])}


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
