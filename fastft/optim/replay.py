"""The steps that rows may have missed: each step's numbers, from the last flush on."""

import torch
from torch import Tensor


class Steps:
    """steps[j] are the numbers of step j + 1, floats; also as a matrix for kernels."""

    def __init__(self, width: int) -> None:
        self._room = torch.empty(64, width, dtype=torch.float64)
        self._single = torch.empty(64, width)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, j: int) -> list[float]:
        numbers: list[float] = self._room[: self._count][j].tolist()
        return numbers

    def append(self, numbers: tuple[float, ...]) -> None:
        if self._count == len(self._room):
            self._room = torch.cat([self._room, torch.empty_like(self._room)])
            self._single = torch.cat([self._single, torch.empty_like(self._single)])
        self._room[self._count] = torch.tensor(numbers, dtype=torch.float64)
        self._single[self._count] = self._room[self._count]
        self._count += 1

    def matrix(self) -> Tensor:
        """(steps, numbers) fp32, a view."""
        return self._single[: self._count]
