"""Arrays of samples that grow: in memory, or in files that a corpus larger than memory fits into."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastft.data.sample import Samples


class Growing(Protocol):
    """Takes samples in order and gives all of them back."""

    def append(self, samples: Samples) -> None: ...

    def finish(self) -> Samples: ...


class InMemory:
    """Arrays in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Any]] = {name: [] for name in Samples.DTYPES}
        self._tokens = 0

    def append(self, samples: Samples) -> None:
        for name, array in moved(samples, self._tokens).items():
            self._parts[name].append(array)
        self._tokens += len(samples.arrays["input_ids"])

    def finish(self) -> Samples:
        arrays = {}
        for name, dtype in Samples.DTYPES.items():
            arrays[name] = np.concatenate([np.empty(0, dtype), *self._parts.pop(name)])
        return Samples(arrays)


class InFolder:
    """Arrays in files of a folder of its own, beside `target`; see `file`.

    Where they cannot be written (no right, no room) a warning says so, what was written is taken into memory, and the
    rest is kept there too: nothing is lost.

    Attributes:
        folder: with the files; None where they are in memory.
    """

    def __init__(self, target: Path) -> None:
        self.folder: Path | None = None
        self._memory = InMemory()
        self._files: dict[str, Any] = {}
        self._sizes = dict.fromkeys(Samples.DTYPES, 0)  # bytes of whole appends
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=DRAFT, dir=target.parent))
            self._files = {name: file(self.folder, name).open("wb", buffering=0) for name in Samples.DTYPES}
        except OSError as error:
            self._give_up(error)

    def append(self, samples: Samples) -> None:
        if self.folder is not None:
            try:
                arrays = moved(samples, self._sizes["input_ids"] // np.dtype(Samples.DTYPES["input_ids"]).itemsize)
                for name, array in arrays.items():
                    write(self._files[name], memoryview(array.view(np.uint8)))
                for name, array in arrays.items():
                    self._sizes[name] += array.nbytes
                return
            except OSError as error:
                self._give_up(error)
        self._memory.append(samples)

    def finish(self) -> Samples:
        self._close()
        return self._memory.finish() if self.folder is None else mapped(self.folder)

    def discard(self) -> None:
        """Remove the folder. Samples that are mapped from it stay as they are on systems that allow it."""
        self._close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _give_up(self, error: OSError) -> None:
        warnings.warn(f"the corpus is kept in memory, as it cannot be written to the cache: {error}", stacklevel=4)
        self._close()
        if self.folder is not None and len(self._files) == len(Samples.DTYPES):
            self._memory.append(read(self.folder, self._sizes))
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = None

    def _close(self) -> None:
        for opened in self._files.values():
            opened.close()


DRAFT = ".draft-"


def file(folder: Path, name: str) -> Path:
    """Where an array of `Samples` is: its little-endian values and nothing else."""
    return folder / f"{name}.bin"


def moved(samples: Samples, tokens: int) -> dict[str, Any]:
    """The arrays of samples that come after so many tokens of others."""
    arrays = {**samples.arrays, "ends": samples.arrays["ends"] + tokens}
    return {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in Samples.DTYPES.items()}


def mapped(folder: Path) -> Samples:
    """Samples whose arrays are mapped from files, so that only what is looked at is read."""
    arrays = {}
    for name, dtype in Samples.DTYPES.items():
        path = file(folder, name)
        empty = path.stat().st_size == 0  # which cannot be mapped
        arrays[name] = np.empty(0, dtype) if empty else np.memmap(path, dtype, "r").view(np.ndarray)
    return Samples(arrays)


def read(folder: Path, sizes: dict[str, int]) -> Samples:
    """The first so many bytes of each array, in memory."""
    arrays = {}
    for name, dtype in Samples.DTYPES.items():
        arrays[name] = np.fromfile(file(folder, name), dtype, sizes[name] // np.dtype(dtype).itemsize)
    return Samples(arrays)


def write(opened: Any, data: memoryview) -> None:
    """All of the bytes: a raw file may take fewer than it is given."""
    while data:
        data = data[opened.write(data) :]
