"""The contract of a `slots` kernel: each row has a place of its own, and keeps it."""

import pytest
import torch

from fastft import dispatch


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_get_the_next_places(backend: str) -> None:
    kernel, _ = dispatch.load("slots", backend)
    assert kernel is not None
    slot, used, have = torch.full((1000,), -1, dtype=torch.int32, device="cpu"), 0, dict[int, int]()
    assert kernel.why_not(slot) is None
    g = torch.Generator("cpu").manual_seed(0)
    for k in (5, 0, 1, 300, 999, 1000, 2):
        ids = torch.randperm(1000, generator=g, device="cpu")[:k]
        used = kernel.assigned(slot, ids, used)
        for row in ids.tolist():
            have.setdefault(row, len(have))
        assert used == len(have)
        assert [have.get(row, -1) for row in range(1000)] == slot.tolist()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_strided_ids(backend: str) -> None:
    kernel, _ = dispatch.load("slots", backend)
    assert kernel is not None
    slot = torch.full((6,), -1, dtype=torch.int32, device="cpu")
    assert kernel.assigned(slot, torch.tensor([5, 0, 3, 0, 1, 0], device="cpu")[::2], 4) == 7
    assert slot.tolist() == [-1, 6, -1, 5, -1, 4]
