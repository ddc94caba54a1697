"""The steps that rows may have missed: each step's numbers, from the last flush on; and whether one was skipped."""

import numpy as np
import torch
from torch import Tensor


class Mirror:
    """A device's copy of a matrix that grows on the CPU: what is new or changed goes there without being waited for."""

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._same = 0  # rows that are as on the CPU

    def changed(self, first: int) -> None:
        """Rows from `first` on are not what they were."""
        self._same = min(self._same, first)

    def updated(self, rows: Tensor, device: torch.device) -> Tensor:
        """`rows` (n, width) on `device`; before n shrinks, `changed(n)` has to be called."""
        if self._room is None or len(self._room) < len(rows):
            larger = torch.empty(max(64, 2 * len(rows)), rows.shape[1], dtype=rows.dtype, device=device)
            if self._room is not None:
                larger[: self._same] = self._room[: self._same]
            self._room = larger
        if self._same < len(rows):
            new = rows[self._same :]
            pinned = new if device.type == "cpu" else new.pin_memory()  # else the copy may wait for the device
            self._room[self._same : len(rows)].copy_(pinned, non_blocking=True)
            self._same = len(rows)
        return self._room[: len(rows)]


class Steps:
    """steps[j] are the numbers of step j + 1, floats; also as a matrix for kernels."""

    def __init__(self, width: int) -> None:
        self._exact = np.empty((64, width))
        self._single = np.empty((64, width), dtype=np.float32)
        self._count = 0
        self._mirror = Mirror()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, j: int) -> list[float]:
        numbers: list[float] = self._exact[: self._count][j].tolist()
        return numbers

    def append(self, numbers: tuple[float, ...]) -> None:
        if self._count == len(self._exact):
            self._exact, self._single = (np.concatenate([x, np.empty_like(x)]) for x in (self._exact, self._single))
        self._exact[self._count] = self._single[self._count] = numbers
        self._count += 1

    def take_back(self) -> None:
        """The last one was none."""
        self._count -= 1
        self._mirror.changed(self._count)

    def matrix(self, device: torch.device | None = None) -> Tensor:
        """(steps, numbers) fp32, a view; on a GPU, a view of a copy that is kept there."""
        rows = torch.from_numpy(self._single[: self._count])
        return rows if device is None or device.type == "cpu" else self._mirror.updated(rows, device)


class Verdict:
    """Whether a step is skipped: `found_inf`, a scalar, is not 0. From a GPU the number is sent without a wait."""

    def __init__(self, found_inf: Tensor) -> None:
        self.found_inf = self._number = found_inf
        self._sent: torch.cuda.Event | None = None
        if found_inf.is_cuda:
            self._number = torch.empty_like(found_inf, device="cpu", pin_memory=True)
            self._number.copy_(found_inf, non_blocking=True)
            self._sent = torch.cuda.current_stream(found_inf.device).record_event()

    def skips(self) -> bool:
        """Waits for the number to arrive."""
        if self._sent is not None:
            self._sent.synchronize()
        return bool(self._number)
