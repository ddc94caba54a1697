"""SparseSGD against torch's dense SGD, to the bit."""

from typing import Any

import pytest
import torch

from fastft.optim import SparseSGD
from optim.runs import Twins, cosine, zipf

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bitwise(options: dict[str, Any]) -> None:
    t = Twins(SparseSGD, torch.optim.SGD, lr=0.1, **options)
    for i, ids in enumerate(zipf(60)):
        assert torch.equal(*t.read(ids))
        t.backward(ids)
        t.step(cosine(i, 60, peak=0.1))
    t.optimizer.flush()
    assert torch.equal(t.weight, t.dense)
    if "momentum" in options:
        held = t.optimizer.dense_state_dict()["state"][0]["momentum_buffer"]
        assert torch.equal(held, t.torchs.state[t.dense]["momentum_buffer"])


def test_to_and_from_torchs_sgd() -> None:
    t = Twins(SparseSGD, torch.optim.SGD, lr=0.1, momentum=0.9)
    for i, ids in enumerate(zipf(40)):
        t.backward(ids)
        t.step()
        if i == 20:
            state = t.torchs.state_dict()
            t.optimizer.flush()
            t.optimizer = SparseSGD(t.embedding.parameters())
            t.optimizer.load_state_dict(state)
    t.optimizer.flush()
    assert torch.equal(t.weight, t.dense)


def test_refusals() -> None:
    table = [torch.zeros(3, 2, requires_grad=True)]
    with pytest.raises(ValueError, match=r"nesterov needs momentum and no dampening; they are 0.0 and 0.0"):
        SparseSGD(table, nesterov=True)
    with pytest.raises(ValueError, match="momentum is -1; expected 0 or more"):
        SparseSGD(table, momentum=-1)
