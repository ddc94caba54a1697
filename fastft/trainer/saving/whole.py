"""Folders that are whole or absent, whatever happens while they are written: a full disk, a kill, a power cut."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fastft.trainer.distributed import World


@contextmanager
def whole_or_absent(folder: Path, world: World | None = None) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into. It takes the place of `folder` when all of its files are on disk,
    and is deleted if anything fails; what was there is as it was then.

    world: the processes that write into it, all of which enter and see the same folder.

    Raises:
        OSError: it cannot be written (disk full, no permission).
    """
    world = world or World()
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        if world.leads:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)  # of a killed process
            draft.mkdir()
        world.wait()
        with failed_writes():
            yield draft
        for path in (*draft.rglob("*"), draft) if world.leads else ():
            fsync(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if world.leads:
        remove(folder)
        draft.rename(folder)
        fsync(folder.parent)
    world.wait()


def remove(folder: Path) -> None:
    """Delete a folder, if it is there, in such a way that half of it is never seen under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def failed_writes() -> Iterator[None]:
    """What safetensors says of a full disk, as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
