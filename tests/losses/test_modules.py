"""The nn.Module twins give what the functions give."""

import copy
import pickle
from typing import Any

import pytest
import torch

from fastft.losses import CrossEntropyLoss, LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy
from losses.cases import problem

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "ignore_index": 3},
    {"label_smoothing": 0.1, "softcap": 5.0, "logit_scale": 0.5, "z_loss": 1e-3},
    {"backend": "reference"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_loss(options: dict[str, Any], weighted: bool) -> None:
    p = problem(12, 5, 7)
    weight = p.eighths(7, low=1) if weighted else None
    module = CrossEntropyLoss(weight, **options)
    assert torch.equal(module(p.z, p.y), cross_entropy(p.z, p.y, weight, **options))
    tensors = {"token_weight": p.eighths(12)}
    assert torch.equal(module(p.z, p.y, **tensors), cross_entropy(p.z, p.y, weight, **options, **tensors))
    if options.get("reduction") is None:
        assert torch.equal(module(p.z, p.y, num_items=5), cross_entropy(p.z, p.y, weight, **options, num_items=5))


@pytest.mark.parametrize("options", [*OPTIONS, {"memory_budget": 100}], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_cross_entropy_loss(options: dict[str, Any], bias: bool) -> None:
    p = problem(12, 5, 7)
    weight = p.eighths(7, low=1)
    module = LinearCrossEntropyLoss(5, 7, bias, weight=weight, **options)
    loss = module(p.x, p.y, valid=torch.tensor([0, 1, 5]), token_weight=torch.ones(12))
    expected = linear_cross_entropy(
        p.x, module.linear.weight, p.y, linear_bias=module.linear.bias, weight=weight, valid=torch.tensor([0, 1, 5]),
        token_weight=torch.ones(12), **options,
    )  # fmt: skip
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(t.grad is not None for t in module.parameters())
    assert len(list(module.parameters())) == 1 + bias


def test_factory_arguments() -> None:
    module = LinearCrossEntropyLoss(5, 7, True, dtype=torch.bfloat16, device="meta")
    assert module.linear.weight.dtype == module.linear.bias.dtype == torch.bfloat16
    assert module.linear.weight.device.type == "meta"


def test_class_weights_are_a_buffer() -> None:
    module = CrossEntropyLoss(torch.ones(7))
    assert list(module.state_dict()) == ["weight"]
    assert module.double().weight.dtype == torch.float64
    assert list(CrossEntropyLoss().state_dict()) == []


def test_statistics_and_no_reduction() -> None:
    p = problem(12, 5, 7)
    loss, stats = CrossEntropyLoss(reduction="none", return_stats=True)(p.z, p.y)
    torch.testing.assert_close(loss, stats.nll)


@pytest.mark.parametrize("module", [CrossEntropyLoss(softcap=3.0), LinearCrossEntropyLoss(5, 7, softcap=3.0)], ids=repr)
def test_shows_its_options_and_travels(module: torch.nn.Module) -> None:
    assert "softcap=3.0" in repr(module)
    p = problem(12, 5, 7)
    input = p.z if isinstance(module, CrossEntropyLoss) else p.x
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(input, p.y), module(input, p.y))
