"""Data sets of the Hugging Face package `datasets`: saved in a folder, or by name from the hub.

Rows come from memory-mapped Arrow files, a few at a time, so nothing is held in memory. The hub is asked once: what it
gives is kept by `datasets` in its own cache.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastft.data.readers import RawRecord
from fastft.dispatch import optional

PREFIX = "hf:"
ROWS = 256  # made Python objects at a time


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def parts(source: str) -> tuple[str, str | None, str | None]:
    """Name (or folder), configuration and split of `hf:name[:config][:split]`; a part left empty is None.

    With one part behind the name, that is the configuration: `hf:name::split` names a split alone.
    """
    name, config, split = [*source.removeprefix(PREFIX).split(":", 2), "", ""][:3]
    if not name:
        raise ValueError(f"source: got {source!r}; hf:name[:config][:split] is wanted")
    return name, config or None, split or None


def read(source: str) -> Iterator[RawRecord]:
    """Rows of one split, in order; without one it is `train`, or the only one a saved folder has.

    Raises:
        ImportError: `datasets` is not installed.
        FileNotFoundError, ValueError: neither a saved folder nor to be had from the hub; no such split; no rows.
    """
    name, config, split = parts(source)
    rows = _load(source, name, config, split)
    if not len(rows):
        raise ValueError(f"source: {source!r} has no rows")
    index = 0
    for batch in rows.with_format(None).iter(batch_size=ROWS):
        for values in zip(*batch.values(), strict=True):
            yield RawRecord(dict(zip(batch, values, strict=True)), f"{source}[{index}]")
            index += 1


def _load(source: str, name: str, config: str | None, split: str | None) -> Any:
    datasets = optional("datasets", f"source {source!r}")
    folder = Path(name).expanduser()
    try:
        if not is_saved(folder):
            return datasets.load_dataset(name, config, split=split or "train")
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, IndexError) as error:  # the last for a data set without a file
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"source: {source!r} cannot be loaded: {error}") from None
    if not isinstance(found, dict):
        if split not in (None, str(found.split)):
            raise ValueError(f"source: {source!r} is one split, {str(found.split)!r}, and has no {split!r}")
        return found
    wanted = split or ("train" if len(found) > 1 else next(iter(found), ""))
    if wanted not in found:
        raise ValueError(f"source: {source!r} has no split {wanted!r}; it has {', '.join(found)}")
    return found[wanted]
