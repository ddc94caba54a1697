"""SparseSGD against torch's dense SGD, to the bit."""

from typing import Any

import pytest
import torch

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseSGD
from optim.runs import Twins, zipf

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bitwise(options: dict[str, Any]) -> None:
    Twins(SparseSGD, torch.optim.SGD, lr=0.1, **options).run_bitwise(peak=0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("source", ["torch's", "its own"])
def test_to_and_from_a_state(source: str, momentum: float) -> None:
    t = Twins(SparseSGD, torch.optim.SGD, lr=0.1, momentum=momentum, weight_decay=0.01)
    for i, ids in enumerate(zipf(40)):
        t.backward(ids)
        t.step()
        if i == 20:
            own = t.optimizer.state_dict()
            state = own if source == "its own" else t.torchs.state_dict()
            t.optimizer = SparseSGD(t.embedding.parameters())
            t.optimizer.load_state_dict(state)
    t.same_bits()


def test_a_bf16_table_without_state_goes_on_from_its_master() -> None:
    tables = []
    for resumed in (False, True):
        embedding = SparseEmbedding(4, 2, dtype=torch.bfloat16)
        embedding.weight.data.fill_(1.0)
        optimizer = SparseSGD(embedding.parameters(), lr=1e-3)
        for i in range(20):
            embedding(torch.tensor([1])).backward(torch.ones(1, 2, dtype=torch.bfloat16))
            optimizer.step()
            optimizer.zero_grad()
            if resumed and i == 10:
                held = optimizer.state_dict()
                optimizer = SparseSGD(embedding.parameters(), lr=1e-3)
                optimizer.load_state_dict(held)
        tables.append(embedding.weight.detach())
    assert torch.equal(*tables)
    assert (tables[0][1] == torch.tensor(1 - 0.02).bfloat16()).all()


def test_momentum_neither_from_nor_to_zero() -> None:
    t = Twins(SparseSGD, torch.optim.SGD, lr=0.1)
    t.backward(torch.tensor([1]))
    t.step()
    t.optimizer.flush()
    t.optimizer.param_groups[0]["momentum"] = 0.9
    t.backward(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"momentum changed from 0.0 to 0.9, and with it .*make a new optimizer"):
        t.optimizer.step()


def test_refusals() -> None:
    table = [torch.zeros(3, 2, requires_grad=True)]
    with pytest.raises(ValueError, match=r"nesterov needs momentum and no dampening; they are 0.0 and 0.0"):
        SparseSGD(table, nesterov=True)
    with pytest.raises(ValueError, match="momentum is -1; expected 0 or more"):
        SparseSGD(table, momentum=-1)
