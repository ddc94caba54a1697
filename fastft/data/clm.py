"""Causal language modelling: rendered records to samples in which each token is predicted from those before it."""

from collections.abc import Iterator, Sequence
from itertools import islice

from transformers import PreTrainedTokenizerBase

from fastft.data.masking import Policy, Rendered, WeightedSpan, token_weights
from fastft.data.sample import Corpus, Example, Sample, Stats

ON_EMPTY = ("error", "drop")
EXAMPLES = 8
NOTHING = "no token of it is to be learned: an empty completion or text, or no assistant turn"
CHUNK = 256  # records tokenised in one call, which the tokenizer spreads over threads

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids and character offsets, of one length


def build(
    records: Sequence[tuple[Rendered, str]],
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    max_length: int,
    on_empty: str,
) -> Corpus:
    """Samples of records of one format, given with their origins, in order.

    A document is cut into blocks of `max_length` tokens. Each block begins with the last token of the one before, as
    context: every token but a document's first is learned exactly once, the end token included, and the short last
    block is kept. Any other record is one sample, cut off at `max_length`. Tokens behind the last one learned are
    left out: none of the others sees them.

    Raises:
        ValueError: a record has nothing to learn, unless `on_empty="drop"` (counted by reason); nothing is left;
            `max_length` is below 2; the tokenizer gives no character offsets or has no end token.
    """
    if max_length < 2:
        raise ValueError(f"max_length: got {max_length}; at least 2 is wanted, a token and the one before it")
    if on_empty not in ON_EMPTY:
        raise ValueError(f"on_empty: got {on_empty!r}; one of {', '.join(ON_EMPTY)} is wanted")
    samples: list[Sample] = []
    examples: list[Example] = []
    stats = Stats()
    shown = {len(records) * place // EXAMPLES for place in range(EXAMPLES)}
    tokens = _tokenise([rendered for rendered, _ in records], tokenizer)
    for index, ((rendered, origin), (ids, offsets)) in enumerate(zip(records, tokens, strict=True)):
        weights = token_weights(offsets, policy(rendered))
        end = max((place + 1 for place, weight in enumerate(weights) if weight and place), default=0)
        blocks = list(_blocks(end, max_length)) if rendered.divisible else [(0, min(end, max_length))]
        kept = [Sample(ids[a:b], [0.0, *weights[a + 1 : b]]) for a, b in blocks if any(weights[a + 1 : b])]
        if not kept:
            reason = f"max_length={max_length} cuts off all of its target" if end else NOTHING
            if on_empty == "error":
                raise ValueError(_refusal(index, origin, rendered, reason))
            stats.drop(reason)
            continue
        truncated = not rendered.divisible and end > max_length
        for sample in kept:
            stats.add(sample, truncated)
        samples += kept
        if index in shown and rendered.targets and not truncated and not rendered.divisible:
            examples += _example(rendered, origin, ids, offsets, tokenizer)
    if not samples:
        raise ValueError(f"nothing is left to learn from: all {len(records)} records were dropped\n{stats.summary()}")
    return Corpus(samples, stats, examples)


def _refusal(index: int, origin: str, rendered: Rendered, reason: str) -> str:
    words = " ".join(rendered.opening.split())
    return (
        f"sample {index} ({origin}, {words!r}) has nothing to learn: {reason}. "
        "Correct the data or max_length, or drop such samples with on_empty='drop'"
    )


def _blocks(length: int, max_length: int) -> Iterator[tuple[int, int]]:
    """[start, end) of blocks that overlap by one token."""
    for start in range(0, length - 1, max_length - 1):
        yield start, min(start + max_length, length)


def _tokenise(records: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokens]:
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} gives no character offsets, from which masks are made; "
            "a fast tokenizer (one with a tokenizer.json) is wanted"
        )
    rest = iter(records)
    while chunk := list(islice(rest, CHUNK)):
        encoded = tokenizer(
            [record.text for record in chunk],
            add_special_tokens=chunk[0].add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for record, ids, offsets in zip(chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield _close(record, list(ids), list(offsets), tokenizer)


def _close(
    record: Rendered, ids: list[int], offsets: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> Tokens:
    """One beginning token, and one end token if the record is closed, whoever wrote them."""
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and offsets[0] == (0, 0):
        ids, offsets = ids[1:], offsets[1:]  # the text brings its own
    if record.closed:
        n, eos = len(record.text), tokenizer.eos_token_id
        if eos is None:
            raise ValueError("tokenizer: it has no end token, so a model could never learn to stop; set eos_token")
        while ids and ids[-1] == eos:
            del ids[-1], offsets[-1]
        ids, offsets = [*ids, eos], [*offsets, (n, n + 1)]
    return ids, offsets


def _example(
    rendered: Rendered,
    origin: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Example]:
    """The record's last target as an example; none where it has no token, or no prompt to be generated from."""
    start, end = rendered.targets[-1]
    target = [place for place, weight in enumerate(token_weights(offsets, [WeightedSpan(start, end, 1.0)])) if weight]
    if not target or not target[0]:
        return []
    completion = tokenizer.decode([ids[place] for place in target], skip_special_tokens=True)
    return [Example(rendered.text[:start], str(completion).strip(), ids[: target[0]], origin)]
