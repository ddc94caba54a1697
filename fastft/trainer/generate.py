"""What the model writes for held-out prompts: the part of training one can read."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from fastft.data import Corpus, Example


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_new_tokens: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> list[dict[str, str]]:
    """Greedy completions of the examples' prompts, so that two models, or two moments, can be compared.

    Returns:
        Per example `origin`, `prompt`, `reference` (the data's own completion) and `completion`: what the model
        writes, without control tokens, cut after `max_new_tokens` tokens.
    """
    was_training = model.training
    model.eval()
    records = []
    try:
        for example in examples:
            prompt = torch.tensor([example.prompt_ids], device=device)  # (1, T)
            with autocast:
                ids = model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=_ends(model, tokenizer),
                    pad_token_id=pad_token(tokenizer),
                )
            written = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()
            records.append(
                {
                    "origin": example.origin,
                    "prompt": example.prompt,
                    "reference": example.completion,
                    "completion": written,
                }
            )
    finally:
        model.train(was_training)
    return records


def openings(corpus: Corpus, tokenizer: Any, count: int) -> list[Example]:
    """`count` examples of a corpus; of plain text, which has no prompts, the first quarter of some samples."""
    if corpus.examples or not corpus.samples:
        return corpus.examples[:count]
    apart = max(1, len(corpus.samples) // count) if count else 1
    examples = []
    for index in range(0, len(corpus.samples), apart)[:count]:
        ids = corpus.samples[index].input_ids
        seam = max(1, len(ids) // 4)
        prompt, rest = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:seam], ids[seam:]))
        examples.append(Example(prompt, rest, ids[:seam], f"block {index}"))
    return examples


def pad_token(tokenizer: Any) -> int:
    """The padding token; where there is none any id will do, as padding is masked by position, never by id."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: those of the model's generation config and the tokenizer's."""
    ends = model.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [ends]
    return sorted({int(end) for end in (*known, tokenizer.eos_token_id) if end is not None})
