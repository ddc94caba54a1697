"""The steps that rows may have missed: each step's numbers, from the last flush on."""

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
        """`rows` (n, width) on `device`; n never shrinks."""
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
        self._room = torch.empty(64, width, dtype=torch.float64)
        self._single = torch.empty(64, width)
        self._count = 0
        self._mirror = Mirror()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, j: int) -> list[float]:
        numbers: list[float] = self._room[: self._count][j].tolist()
        return numbers

    def append(self, numbers: tuple[float, ...]) -> None:
        if self._count == len(self._room):
            self._room = torch.cat([self._room, torch.empty_like(self._room)])
            self._single = torch.cat([self._single, torch.empty_like(self._single)])
        self._room[self._count] = self._single[self._count] = torch.tensor(numbers, dtype=torch.float64)
        self._count += 1

    def matrix(self, device: torch.device | None = None) -> Tensor:
        """(steps, numbers) fp32, a view; on a GPU, a view of a copy that is kept there."""
        rows = self._single[: self._count]
        return rows if device is None or device.type == "cpu" else self._mirror.updated(rows, device)
