"""What a corpus depends on, as one hash: the bytes of its source, the tokenizer, the options, and the code here."""

import hashlib
import json
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from fastft.data.objectives import Objective
from fastft.data.readers import RawRecord
from fastft.data.sources import Source

PIECE = 8 << 20  # bytes of a file hashed by one thread at a time
THREADS = 8


class Nameless(TypeError):
    """Something has no content that a corpus could be named by, such as a function of the user's."""


def corpus_key(
    source: Source, tokenizer: Any, objective: Objective, mask: Any, options: Mapping[str, str | int | float | None]
) -> str:
    """32 hexadecimal digits, the same only if nothing that decides what is in the corpus differs.

    Raises:
        Nameless: the objective or the mask is not made of plain values and classes of fastft.
    """
    described = {
        "source": source.name,
        "content": _content(source),
        "tokenizers": [_tokenizer(known) for known in _distinct(tokenizer, objective.tokenizer)],
        "objective": _objective(objective),
        "mask": describe(mask),
        "options": describe(options),
        "versions": [_code(), platform.python_version(), transformers.__version__, tokenizers.__version__],
    }
    return _hash(json.dumps(described, sort_keys=True).encode("utf-8", "surrogatepass"))


def describe(value: Any) -> Any:
    """A value as JSON that differs wherever the value does."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(describe(entry), sort_keys=True) for entry in value)
    if isinstance(value, Mapping):
        return [[describe(name), describe(entry)] for name, entry in value.items()]  # order may count, as in a Mask
    if isinstance(value, re.Pattern):
        return ["regex", value.pattern, value.flags]
    owner = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    name = f"{owner.__module__}.{owner.__qualname__}"
    if not name.startswith("fastft.") or "<" in name:
        raise Nameless(f"{name} is not of fastft")
    if owner is value:
        return ["name", name]
    if is_dataclass(value):
        return [name, {field.name: describe(getattr(value, field.name)) for field in fields(value)}]
    raise Nameless(f"{name} is not a dataclass")


def stamps(source: Source) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file that is read; a cheap way to see that none has changed meanwhile."""
    return [(f"{path}", path.stat().st_size, path.stat().st_mtime_ns) for path in source.files() or ()]


def _objective(objective: Objective) -> Any:
    kind = type(objective)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not name.startswith("fastft.") or "<" in name:
        raise Nameless(f"objective {name} is not of fastft")
    left_out = {"tokenizer", *kind.batch_options}
    return [name, {f.name: describe(getattr(objective, f.name)) for f in fields(objective) if f.name not in left_out}]


def _content(source: Source) -> list[list[Any]]:
    """Path, size and pieces of every file, or, where there are none, a hash of the records."""
    files = source.files()
    if files is None:
        return [["records", _of_records(source)]]
    pieces = [(path, start) for path in files for start in range(0, path.stat().st_size, PIECE)]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(_of_piece, pieces))
    return [[f"{path}", start, digest] for (path, start), digest in zip(pieces, hashes, strict=True)]


def _of_piece(place: tuple[Path, int]) -> str:
    path, start = place
    with path.open("rb") as file:
        file.seek(start)
        return _hash(file.read(PIECE))


def _of_records(records: Iterable[RawRecord]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps([*record], sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def _distinct(*values: Any) -> list[Any]:
    return list({id(value): value for value in values}.values())


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """All that decides how it writes and splits text."""
    described = {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "cleans": getattr(tokenizer, "clean_up_tokenization_spaces", None),
        "splits_special": getattr(tokenizer, "split_special_tokens", None),
        "languages": [getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang")],
    }
    if tokenizer.is_fast:
        core = tokenizer.backend_tokenizer
        if core.truncation or core.padding:  # left behind by the call before
            core = tokenizers.Tokenizer.from_str(core.to_str())
            core.no_truncation()
            core.no_padding()
        described["state"] = _hash(core.to_str().encode("utf-8", "surrogatepass"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            described["state"] = [[path.name, _hash(path.read_bytes())] for path in paths]
    return described


@cache
def _code() -> str:
    """A hash of the source of `fastft.data`, so that no corpus outlives the code that made it."""
    folder = Path(__file__).parent
    return _hash(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py"))))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
