"""A corpus of rendered records that are there already."""

from collections.abc import Iterable

from fastft.data import Corpus, Objective
from fastft.data.build import Record, check_on_empty, chunks, collect, encode
from fastft.data.growing import InMemory
from fastft.data.masking import Policy


def build(records: Iterable[Record], count: int, objective: Objective, policy: Policy, on_empty: str) -> Corpus:
    """The samples that an objective makes of `count` records, in order, and up to 8 examples of them."""
    check_on_empty(on_empty)
    kept = list(records)
    assert len(kept) == count
    chunked = chunks(kept, lambda record: len(record[0].text))
    return collect((encode(chunk, objective, policy, on_empty) for chunk in chunked), InMemory())
