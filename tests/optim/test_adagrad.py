"""SparseAdagrad against torch's dense Adagrad, to the bit."""

from typing import Any

import pytest
import torch

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdagrad
from optim.runs import ROWS, WIDTH, Twins

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr_decay": 0.1},
    {"weight_decay": 0.1},
    {"initial_accumulator_value": 0.1, "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bitwise(options: dict[str, Any]) -> None:
    Twins(SparseAdagrad, torch.optim.Adagrad, lr=0.1, **options).run_bitwise(peak=0.1)


def test_rowwise() -> None:
    t = SparseEmbedding(ROWS, WIDTH)
    start = t.weight.detach().clone()
    optimizer = SparseAdagrad(t.parameters(), lr=0.1, rowwise=True)
    t(torch.tensor([3])).backward(torch.full((1, WIDTH), 2.0))
    optimizer.step()
    torch.testing.assert_close(t(torch.tensor([3])), start[[3]] - 0.1)
    assert optimizer.state_dict()["state"][0]["sum"].tolist() == [[4.0]]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="eps is -1; expected 0 or more"):
        SparseAdagrad([torch.zeros(3, 2, requires_grad=True)], eps=-1)
