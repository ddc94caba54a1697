"""What the model writes for held-out prompts: the part of training one can read."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fastft.data import Corpus, Example, Objective
from fastft.data.positions import written_positions


@torch.no_grad()
def complete(
    model: Any,
    objective: Objective,
    examples: Sequence[Example],
    max_new_tokens: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    batch_size: int = 1,
) -> list[dict[str, str]]:
    """Greedy completions of the examples' prompts, so that two models, or two moments, can be compared.

    Returns:
        Per example `origin`, `prompt`, `reference` (the data's own completion) and `completion`: what the model
        writes, without control tokens, cut after `max_new_tokens` tokens or where its positions end. Examples whose
        prompts leave it no position are left out.
    """
    was_training, batch_size = model.training, min(batch_size, objective.prompts_at_once or batch_size)
    model.eval()
    written: dict[int, str] = {}
    rooms = [min(max_new_tokens, room) for room in rooms_left(model, examples)]
    try:
        for batch, room in batches_of(examples, rooms, batch_size):
            prompts = left_padded([examples[i].prompt_ids for i in batch], objective.pad_token_id, device)
            with autocast:
                ids = model.generate(
                    **objective.prompted(model, prompts),
                    max_new_tokens=room,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=_ends(model, objective.tokenizer),
                    pad_token_id=objective.pad_token_id,
                )
            given = 0 if model.config.is_encoder_decoder else prompts["input_ids"].shape[1]
            for i, row in zip(batch, ids[:, given:], strict=True):
                written[i] = str(objective.tokenizer.decode(row, skip_special_tokens=True)).strip()
    finally:
        model.train(was_training)
    return [
        {"origin": e.origin, "prompt": e.prompt, "reference": e.completion, "completion": written[i]}
        for i, e in enumerate(examples)
        if i in written
    ]


def rooms_left(model: Any, examples: Sequence[Example]) -> list[float]:
    """How many tokens the model has positions for behind each prompt; an encoder-decoder writes at its decoder's first.

    inf where it has no bound; 0 or less where there is no room.
    """
    positions = written_positions(model)
    if positions is None:
        return [math.inf] * len(examples)
    paired = model.config.is_encoder_decoder
    return [positions - (0 if paired else len(example.prompt_ids)) for example in examples]


def batches_of(examples: Sequence[Example], rooms: Sequence[float], batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Indices of examples with the same room, shorter prompts first, and that room; none of those without any."""
    ordered = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt_ids))
    for room, alike in groupby((i for i in ordered if rooms[i] >= 1), key=lambda i: int(rooms[i])):
        indices = list(alike)
        yield from ((indices[start : start + batch_size], room) for start in range(0, len(indices), batch_size))


def left_padded(prompts: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (B, T), of prompts that end together, as generation wants them."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def openings(objective: Objective, corpus: Corpus, count: int) -> list[Example]:
    """`count` examples of a corpus; of plain text, which has no prompts, the first quarter of some samples."""
    return corpus.examples[:count] or drawn(objective, corpus, count)


def drawn(objective: Objective, corpus: Corpus, count: int) -> list[Example]:
    """`count` samples from all over a corpus, as prompts and what follows them."""
    apart = max(1, len(corpus.samples) // count) if count else 1
    places = range(0, len(corpus.samples), apart)[:count]
    return [objective.opening(corpus.samples[place], f"sample {place}") for place in places]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: those of the model's generation config and the tokenizer's."""
    ends = model.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [ends]
    return sorted({int(end) for end in (*known, tokenizer.eos_token_id) if end is not None})
