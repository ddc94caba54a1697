"""From the name of a source to a corpus ready to train on."""

from collections import Counter
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from fastft.data import clm, formats, masking, sources, splits
from fastft.data.sample import Corpus, Stats
from fastft.data.templates import Renderer


def load_corpus(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str = "auto",
    mask: str = "prompt",
    max_length: int = 1024,
    on_empty: str = "error",
    split: str = "train",
    eval_fraction: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Read, render, tokenise and mask a corpus for causal language modelling.

    Args:
        source: a `.jsonl`, `.json`, `.txt`, `.md` or `.rst` file, a folder of those, or `builtin:stdlib-docstrings`.
        tokenizer: a fast one; if it has a chat template, everything but plain text is rendered by that.
        format: `text`, `prompt_completion`, `instruction` or `messages`; `auto`: told from the columns of the first
            record, and the same for all.
        mask: `prompt`: completions and assistant turns are learned, each with its end token; `none`: every token is.
        max_length: tokens per sample. Documents are cut into blocks, other records are cut off.
        on_empty: `error` or `drop`, for a record with nothing to learn.
        split, eval_fraction: `train` or `eval`, the two sides of a division that holds out this share of the records.
        limit: at most so many records, drawn from all over the source; of plain text, so many blocks.
        seed: of that draw for training. Evaluation ignores it, so that runs with different seeds compare.

    Raises:
        FileNotFoundError, ValueError: whatever cannot be used, naming file and line, or the argument.
    """
    policy = masking.policy(mask)
    records = splits.divide(list(sources.read(source)), split, eval_fraction)
    if not records:
        raise ValueError(f"source: {source!r} holds no record")
    known = formats.pick(format, records[0])
    draw_seed = seed if split == "train" else 0
    if known.name != "text":
        records = splits.draw(records, limit, draw_seed)
    renderer = Renderer(tokenizer)
    typed = formats.normalise(records, known)
    rendered = [(renderer.render(record, raw.origin), raw.origin) for raw, record in zip(records, typed, strict=True)]
    corpus = clm.build(rendered, tokenizer, policy, max_length, on_empty)
    if known.name == "text":
        corpus = _draw_blocks(corpus, limit, draw_seed)
    used = {*known.required, *known.optional}
    corpus.stats.ignored_columns.update(Counter(name for raw in records for name in raw.columns if name not in used))
    return corpus


def _draw_blocks(corpus: Corpus, limit: int | None, seed: int) -> Corpus:
    samples = splits.draw(corpus.samples, limit, seed)
    stats = Stats(dropped=corpus.stats.dropped, drop_reasons=corpus.stats.drop_reasons)
    for sample in samples:
        stats.add(sample, truncated=False)
    return replace(corpus, samples=samples, stats=stats)
