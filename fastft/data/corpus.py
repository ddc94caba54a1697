"""From the name of a source to a corpus ready to train on."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fastft.cache import cache_dir as default_cache_dir
from fastft.data import formats, keys, masking, splits, store
from fastft.data.build import CHUNK, Encoder, check_on_empty, chunks, collect
from fastft.data.growing import Growing, InMemory
from fastft.data.masking import Policy
from fastft.data.objectives import Objective, make_objective
from fastft.data.parallel import ordered
from fastft.data.readers import RawRecord
from fastft.data.sample import Corpus, Samples
from fastft.data.sources import Source


def load_corpus(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    objective: str | Objective = "clm",
    format: str = "auto",
    mask: str | Policy = "prompt",
    max_length: int = 1024,
    on_empty: str = "error",
    split: str = "train",
    eval_fraction: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    num_proc: int = 0,
    cache: bool = True,
    cache_dir: str | Path | None = None,
) -> Corpus:
    """Read, render, tokenise and mask a corpus for an objective, or open it where that was done before.

    Records stream through, a few hundred at a time, into arrays that are mapped from files of the cache: with it, a
    corpus may be larger than memory (a document, and a `.json` file, may not).

    What was made is found again by a hash of the bytes of the source, the tokenizer with its chat template, the
    objective and the mask with their options, the arguments here, and fastft's own code. Every byte of it is checked
    when it is opened; a damaged corpus is made again, with a warning. Where the cache cannot be written a warning says
    so and the corpus is kept in memory. An objective, or a mask, that is not fastft's own and plain values is not
    cached, with a warning.

    Args:
        source: a `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, `.md` or `.rst` file, a folder of those, a
            folder or hub name of the package `datasets` (`hf:name[:config][:split]`), or `builtin:stdlib-docstrings`
            (prompt and completion), `builtin:stdlib-docs` (text) or `builtin:cmudict` (source and target).
        tokenizer: a fast one, but for objectives that need no masks; if it has a chat template, everything but plain
            text and tokens is rendered by that.
        objective: an instance, or the name of one that has no options but `max_length`.
        format: `text`, `prompt_completion`, `instruction` (or `alpaca`), `messages`, `sharegpt`, `source_target` or
            `tokens`; `auto`: told from the columns of the first record, and the same for all.
        mask: a `Mask`, or the name of one without other options. `prompt`: completions and assistant turns are learned,
            each with its end token; `none`: every token is.
        max_length: tokens per sample, of an objective given by name. Documents are cut into blocks, other records are
            cut off.
        on_empty: `error` or `drop`, for a record with nothing to learn.
        split, eval_fraction: `train` or `eval`, the two sides of a division that holds out this share of the records.
        limit: at most so many records, drawn from all over the source; of plain text, so many blocks.
        seed: of that draw for training. Evaluation ignores it, so that runs with different seeds compare.
        chat_template_kwargs: what the chat template is told beside the messages, such as `enable_thinking`.
        num_proc: processes that tokenise; 0: this one, where the tokenizer's own threads do. The result is the same.
        cache, cache_dir: whether the corpus is kept, and where: by default in `corpora` under `fastft.cache.cache_dir`.

    Raises:
        FileNotFoundError, ValueError: whatever cannot be used, naming file and line, or the argument.
        ImportError: a package that reads this source is missing; says which.
        ChildProcessError: with `num_proc`, a process ended without an answer.
    """
    policy = masking.policy(mask) if isinstance(mask, str) else mask
    if isinstance(objective, str):
        objective = make_objective(objective, tokenizer, {"max_length": max_length})
    check_on_empty(on_empty)
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}; at least 1 is wanted, or None for everything")
    recipe = Recipe(
        Source(source), tokenizer, objective, policy, format, on_empty, split, eval_fraction, limit,
        seed if split == "train" else 0, chat_template_kwargs,
    )  # fmt: skip
    corpus = _cached(recipe, num_proc, cache_dir) if cache else recipe.make(InMemory, num_proc)
    objective.check(corpus.samples, f"source {source!r}" + (f", split {split!r}" if eval_fraction else ""))
    return corpus


def _cached(recipe: "Recipe", num_proc: int, cache_dir: str | Path | None) -> Corpus:
    """The corpus of the cache, which is made first if it is not there."""
    try:
        before = keys.stamps(recipe.source)
        key = recipe.key()
    except keys.Nameless as error:
        warnings.warn(f"the corpus is not cached: {error}; cache=False says that this is meant", stacklevel=3)
        return recipe.make(InMemory, num_proc)

    def make(growing: Callable[[], Growing]) -> Corpus:
        corpus = recipe.make(growing, num_proc)
        if keys.stamps(recipe.source) != before:
            raise ValueError(f"source: {recipe.source.name!r} was changed while it was read; load it again")
        return corpus

    root = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    return store.kept(root / "corpora" / key, make)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in a corpus."""

    source: Source
    tokenizer: Any
    objective: Objective
    mask: Policy
    format: str
    on_empty: str
    split: str
    eval_fraction: float
    limit: int | None
    seed: int
    chat_template_kwargs: Mapping[str, Any] | None

    def key(self) -> str:
        """Names the corpus; see `keys.corpus_key`."""
        return keys.corpus_key(
            self.source,
            self.tokenizer,
            self.objective,
            self.mask,
            {
                "format": self.format,
                "on_empty": self.on_empty,
                "split": self.split,
                "eval_fraction": self.eval_fraction,
                "limit": self.limit,
                "seed": self.limit and self.seed,
                "chat_template_kwargs": json.dumps(dict(self.chat_template_kwargs or {}), default=repr),
            },
        )

    def make(self, growing: Callable[[], Growing], num_proc: int) -> Corpus:
        """Read, tokenise and mask; the last arrays asked of `growing` are those of the corpus."""
        records = splits.divide(self.source, self.split, self.eval_fraction)
        first = next(iter(records), None)
        if first is None:
            raise ValueError(f"source: {self.source.name!r} holds no record")
        known = formats.pick(self.format, first)
        if known.name != "text":
            records = splits.draw(records, self.limit, self.seed)
        encoder = Encoder(
            self.tokenizer, self.objective, known, self.mask, self.on_empty, self.chat_template_kwargs
        )  # fmt: skip
        corpus = collect(ordered(encoder, chunks(records, _size), num_proc), growing())
        if known.name == "text" and self.limit is not None and self.limit < len(corpus.samples):
            return _some(corpus, splits.drawn(len(corpus.samples), self.limit, self.seed), growing())
        return corpus


def _some(corpus: Corpus, places: Any, growing: Growing) -> Corpus:
    """The samples at these places, and what is counted of them."""
    stats = replace(corpus.stats, samples=0, tokens=0, supervised_tokens=0, truncated=0)
    rest = iter(places.tolist())
    while chunk := list(islice(rest, CHUNK)):
        samples = [corpus.samples[place] for place in chunk]
        for sample in samples:
            stats.add(sample, truncated=False)
        growing.append(Samples.of(samples))
    return replace(corpus, samples=growing.finish(), stats=stats)


def _size(record: RawRecord) -> int:
    return _chars(record.columns)


def _chars(value: Any) -> int:
    """Characters, roughly, of whatever a record holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_chars, value.values()))
    if isinstance(value, list):
        return sum(map(_chars, value)) if value and isinstance(value[0], dict | list | str) else 8 * len(value)
    return 8
