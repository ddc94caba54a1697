"""Objectives by name. One is a class in a file of its own; its fields are its options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastft.data.objectives.clm import CausalLM
from fastft.data.objectives.mlm import MaskedLM
from fastft.data.objectives.nsp import NextSentence, SentenceOrder
from fastft.data.objectives.objective import Encoded, Objective
from fastft.data.objectives.prefix_lm import PrefixLM
from fastft.data.objectives.seq2seq import Seq2Seq
from fastft.data.objectives.span_corruption import SpanCorruption
from fastft.data.objectives.ul2 import UL2

_KINDS: tuple[type[Objective], ...] = (
    CausalLM,
    MaskedLM,
    NextSentence,
    SentenceOrder,
    Seq2Seq,
    PrefixLM,
    SpanCorruption,
    UL2,
)
OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in _KINDS}


def make_objective(name: str, tokenizer: Any, options: Mapping[str, Any]) -> Objective:
    """The objective called `name`, with those of `options` that are its fields.

    Raises:
        ValueError: an unknown name, an option's value, or a tokenizer without what the objective needs.
    """
    kind = objective_class(name)
    fields = {field.name for field in dataclasses.fields(kind)} - {"tokenizer"}
    return kind(tokenizer, **{key: value for key, value in options.items() if key in fields})


def objective_class(name: str) -> type[Objective]:
    """Raises ValueError for an unknown name."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective: got {name!r}; one of {', '.join(OBJECTIVES)} is wanted")
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Encoded", "Objective", "make_objective", "objective_class"]
