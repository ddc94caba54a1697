"""Tokenised corpora on disk: one folder each, named by a hash of all that decides what is in it.

    <key>/input_ids.bin weights.bin ends.bin boundaries.bin documents.bin    the arrays of `Samples`, little-endian
    <key>/corpus.json                                                        statistics, examples, sizes and checksums

A folder is written beside its place and renamed, so that what is found is whole however many processes write at once.
Opening one checks every byte of it against the checksums (SHA-256 of the arrays, which is also the fingerprint that a
run needs; BLAKE2b of the rest), and a damaged one is made again. Any of them may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastft.data.growing import DRAFT, Growing, InFolder, file, mapped
from fastft.data.sample import Corpus, Example, Samples, Stats

FACTS = "corpus.json"
ABANDONED = 24 * 3600  # seconds without a write after which a draft is of a process that was killed

Make = Callable[[Callable[[], Growing]], Corpus]


def kept(target: Path, make: Make) -> Corpus:
    """The corpus in a folder; if it is not there, or damaged, it is made now and put there.

    Several processes that ask at once wait for the first of them to make it. Where nothing can be written a warning
    says so, and the corpus is in memory.

    Args:
        make: makes the corpus. It is given a function that gives arrays to write to; the last ones asked for hold the
            samples of the corpus.
    """
    if (found := load(target)) is not None:
        return found
    with _alone(target):
        if (found := load(target, tell=False)) is not None:
            return found
        _sweep(target.parent)
        drafts: list[InFolder] = []

        def growing() -> InFolder:
            drafts.append(InFolder(target))
            return drafts[-1]

        try:
            corpus = make(growing)
            return _publish(drafts[-1], corpus, target)
        finally:
            for draft in drafts:
                draft.discard()


def load(target: Path, *, tell: bool = True) -> Corpus | None:
    """The corpus in a folder, with its arrays mapped; None if it is not there, or is damaged, which a warning tells."""
    if not target.is_dir():
        return None
    try:
        facts = _facts(target)
        for name, size in facts["sizes"].items():
            if file(target, name).stat().st_size != size:
                raise ValueError(f"{name} has {file(target, name).stat().st_size} bytes of {size}")
        samples = mapped(target)
        if samples.fingerprint != facts["fingerprint"]:
            raise ValueError("the arrays do not have the checksum that they were written with")
        return _corpus(facts, samples)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if tell:
            warnings.warn(f"the cached corpus '{target}' is damaged ({error}); it is made again", stacklevel=3)
        return None


def _publish(draft: InFolder, corpus: Corpus, target: Path) -> Corpus:
    """Move a draft to its place; the same corpus, mapped from there."""
    if draft.folder is None:
        return corpus
    facts = {
        "sizes": {name: file(draft.folder, name).stat().st_size for name in Samples.DTYPES},
        "fingerprint": corpus.samples.fingerprint,
        "stats": asdict(corpus.stats),
        "examples": [asdict(example) for example in corpus.examples],
    }
    try:
        (draft.folder / FACTS).write_bytes(_encode(facts))
        draft.folder.chmod(0o755)
        _place(draft, target)
    except OSError as error:
        warnings.warn(f"the corpus is not kept in the cache, as it cannot be written: {error}", stacklevel=4)
        return Corpus(_in_memory(corpus.samples), corpus.stats, corpus.examples)
    return _corpus(json.loads(json.dumps(facts)), corpus.samples)


def _place(draft: InFolder, target: Path) -> None:
    assert draft.folder is not None
    if target.exists() and load(target, tell=False) is None:
        aside = Path(tempfile.mkdtemp(prefix=DRAFT, dir=target.parent))
        os.rename(target, aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    try:
        os.rename(draft.folder, target)
    except OSError:  # another process was first
        if load(target, tell=False) is None:
            raise
        return
    draft.folder = None


def _in_memory(samples: Samples) -> Samples:
    return Samples({name: array.copy() for name, array in samples.arrays.items()})


def _facts(target: Path) -> dict[str, Any]:
    written = (target / FACTS).read_bytes()
    facts = json.loads(written)
    if not isinstance(facts, dict) or _encode(facts.get("corpus")) != written:
        raise ValueError(f"{FACTS} does not have the checksum that it was written with")
    found: dict[str, Any] = facts["corpus"]
    return found


def _encode(facts: Any) -> bytes:
    checksum = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return json.dumps({"checksum": checksum, "corpus": facts}, indent=1).encode()


def _corpus(facts: dict[str, Any], samples: Samples) -> Corpus:
    return Corpus(samples, Stats(**facts["stats"]), [Example(**example) for example in facts["examples"]])


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process makes a corpus while the others wait. Where no lock can be had, all of them make it."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _sweep(parent: Path) -> None:
    """Remove what killed processes left behind."""
    try:
        for draft in parent.glob(f"{DRAFT}*"):
            if max(path.stat().st_mtime for path in (draft, *draft.iterdir())) < time.time() - ABANDONED:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError:  # another process is removing or writing it
        return
