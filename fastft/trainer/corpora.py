"""The data of a run: what trains, what is held out, and whether both fit the model."""

from typing import Any

from fastft.data import Corpus, load_corpus
from fastft.trainer.config import TrainConfig


def load_corpora(config: TrainConfig, tokenizer: Any) -> tuple[Corpus, Corpus | None]:
    """Training and held-out samples; the latter from `eval_data`, or by `eval_fraction`, or None.

    Raises:
        ValueError, OSError: data that cannot be read or learned from, with file and line; see `load_corpus`.
    """

    def load(source: str, split: str, eval_fraction: float, limit: int | None, seed: int = 0) -> Corpus:
        return load_corpus(
            source,
            tokenizer,
            format=config.format,
            mask=config.mask,
            max_length=config.max_length,
            on_empty=config.on_empty,
            split=split,
            eval_fraction=eval_fraction,
            limit=limit,
            seed=seed,
        )

    train = load(config.train_data, "train", config.eval_fraction, config.max_train_samples, config.seed)
    if config.eval_data is not None:
        return train, load(config.eval_data, "train", 0.0, config.max_eval_samples)
    if config.eval_fraction:
        return train, load(config.train_data, "eval", config.eval_fraction, config.max_eval_samples)
    return train, None


def check_fits(model: Any, corpus: Corpus, config: TrainConfig) -> None:
    """Refuse samples with more tokens than the model has positions.

    Raises:
        ValueError: naming both numbers.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(corpus.lengths)
    if positions is not None and longest > positions:
        raise ValueError(
            f"a sample has {longest} tokens, but {config.model} takes {positions}: "
            f"lower max_length (now {config.max_length})"
        )
