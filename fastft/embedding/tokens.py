"""New tokens for a tokenizer and its model, their rows made from rows that are trained: per table, by id."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastft.embedding.model import output_embedding, owner_of, tables_of

CHUNK = 4096  # rows that are widened at a time
TERM = r"-?\d*\.?\d+(?:e-?\d+)?\*"  # how each term of a mix starts: 0.7*
SOURCES = '"mean", "zeros", "noise", "random", "copy:<token>", "text:<words>", "mix:0.7*copy:yes+0.3*mean"'

Part = tuple[float, str, list[int]]  # weight, "rows" | "mean" | "noise", ids whose rows are averaged


def add_tokens(
    model: Any, tokenizer: Any, tokens: Mapping[str, str], *, seed: int = 0, pad_to_multiple_of: int | None = None
) -> list[int]:
    """Add special tokens to a tokenizer, and their rows to the embedding table(s) of its model.

    A table keeps its size if it has room (padded tables do), else it grows; it never shrinks. Rows are written by id,
    each table's from that table's own rows, a head's bias likewise; all other rows keep their bits. Padding rows of a
    grown table are set to the mean.

    What a row starts as:

        mean           mean of the rows of all tokens that the tokenizer has
                       (padding rows do not count)
        zeros          zeros
        noise          normal noise with the deviation of those rows, per column
        random         mean + noise
        copy:<token>   the row of one token; copy:- is that of "-"
        text:<words>   mean of the rows of the tokens that the words are split into
        mix:<weight>*<source>+<weight>*<source>...
                       a weighted sum of any of these: mix:0.7*copy:yes+0.3*mean,
                       mix:1*text:end of thought+0.1*noise

    Args:
        model: a `transformers.PreTrainedModel`, tied or not, or one wrapped.
        tokenizer: its tokenizer.
        tokens: new token -> what its row starts as, one of the above.
        seed: of the noise.
        pad_to_multiple_of: a table that has to grow grows to a multiple of this.

    Returns:
        The new ids, in the order of `tokens`.

    Raises:
        ValueError: no token, one that the tokenizer has already, a source that is unknown or names something that
            is not one token (the message says what it splits into). Nothing is changed then.
        TypeError: a table that cannot be written by row: quantised, sharded, under a PEFT adapter.
    """
    owner = owner_of(model)
    sizes = [len(table.weight) for table in tables_of(model)]
    known = tokenizer.get_vocab()
    recipes = recipes_of(tokens, tokenizer, known)
    rowless = [i for recipe in recipes for _, _, ids in recipe for i in ids if i >= min(sizes)]
    if rowless:
        raise ValueError(f"token id {rowless[0]} has no row in a table of {min(sizes)}: resize the model first")

    new = enroll(tokens, tokenizer)
    if max(new) >= min(sizes):
        wanted = max(max(new) + 1, *sizes)
        owner.resize_token_embeddings(wanted, pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for values, size in zip(arrays(owner), [*sizes, sizes[-1]], strict=False):
        write(values, size, new, recipes, sorted({i for i in known.values() if i < size}), generator)
    return new


def recipes_of(tokens: Mapping[str, str], tokenizer: Any, known: Mapping[str, int]) -> list[list[Part]]:
    """What each new token's row is the weighted sum of.

    known: the tokenizer's vocabulary.

    Raises:
        ValueError: no token, one without a visible character or that is there already, a source that cannot be meant.
    """
    if not tokens:
        raise ValueError('tokens is empty; expected {"<token>": source}, where source is one of ' + SOURCES)
    recipes = []
    for token, source in tokens.items():
        if not token.strip():
            raise ValueError(f"{token!r} is no token; it needs a visible character")
        if token in known:
            raise ValueError(
                f"{token!r} is in the tokenizer already (id {known[token]}): leave it out; its row alone is trained by "
                f"TrainableRows(model, [{known[token]}]), in a run by train_rows: [{token!r}]"
            )
        try:
            recipes.append(list(parts(source, tokenizer, known)))
        except ValueError as error:
            raise ValueError(f"{token!r}: {error}") from error
    return recipes


def enroll(tokens: Iterable[str], tokenizer: Any) -> list[int]:
    """Give a tokenizer new special tokens; their ids, in order.

    Raises:
        ValueError: it maps some of them to one another.
    """
    names = list(tokens)
    added = tokenizer.add_tokens(names, special_tokens=True)
    new: list[int] = tokenizer.convert_tokens_to_ids(names)
    if added != len(names) or len(set(new)) != len(new):
        raise ValueError(f"the tokenizer took {added} of {names}, as ids {new}: it maps some to one another")
    return new


def token_id(name: str, tokenizer: Any, known: Mapping[str, int], hint: str) -> int:
    """The id of a token, by its name in the vocabulary `known`, or else as text.

    Raises:
        ValueError: it is several, then what they are and the hint are said, or none.
    """
    if name in known:
        return known[name]
    ids = split(name, tokenizer)
    if len(ids) != 1:
        raise ValueError(f"{name!r} is {tokenizer.convert_ids_to_tokens(ids)}, not one token; {hint}")
    return ids[0]


def arrays(owner: Any) -> Iterator[Tensor]:
    """Every table (V, D), and the head's bias as (V, 1)."""
    yield from (table.weight.data for table in tables_of(owner))
    bias = getattr(output_embedding(owner), "bias", None)
    if bias is not None:
        yield bias.data[:, None]


def write(
    values: Tensor, size: int, new: list[int], recipes: list[list[Part]], trained: list[int], generator: torch.Generator
) -> None:
    """Rows `new` of values (V, D) by their recipes; whatever else lies beyond `size`, its old length, is the mean."""
    mean, deviation = statistics(values, torch.tensor(trained, device=values.device))
    rows = []
    for recipe in recipes:
        row = torch.zeros_like(mean)
        for weight, kind, ids in recipe:
            if kind == "rows":
                row += weight * values[torch.tensor(ids, device=values.device)].to(mean.dtype).mean(0)
            elif kind == "mean":
                row += weight * mean
            else:
                row += weight * deviation * torch.randn(len(mean), generator=generator).to(mean)
        rows.append(row)
    values[size:] = mean.to(values)
    values[torch.tensor(new, device=values.device)] = torch.stack(rows).to(values)


def statistics(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of rows `ids`, in fp64, a chunk of rows at a time."""
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    mean = torch.stack([values[chunk].double().sum(0) for chunk in chunks]).sum(0) / len(ids)
    square = torch.stack([(values[chunk].double() - mean).square().sum(0) for chunk in chunks]).sum(0) / len(ids)
    return mean, square.sqrt()


def parts(source: str, tokenizer: Any, known: Mapping[str, int]) -> Iterator[Part]:
    """What a source is the weighted sum of."""
    kind, _, argument = source.partition(":")
    if source in ("mean", "noise"):
        yield 1.0, source, []
    elif source == "random":
        yield from ((1.0, "mean", []), (1.0, "noise", []))
    elif kind == "copy" and argument:
        yield 1.0, "rows", [token_id(argument, tokenizer, known, f"'text:{argument}' averages them")]
    elif kind == "text" and argument:
        yield 1.0, "rows", split(argument, tokenizer)
    elif kind == "mix" and re.match(TERM, argument):
        for term in re.split(rf"\+(?={TERM})", argument):
            weight, _, inner = term.partition("*")
            yield from ((float(weight) * factor, what, ids) for factor, what, ids in parts(inner, tokenizer, known))
    elif source != "zeros":
        raise ValueError(f"source {source!r} is unknown; expected one of {SOURCES}")


def split(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"the tokenizer has no tokens for {text!r}, or not for all of it")
    return ids
