import pytest
import torch
from torch import nn

from fastft.trainer.optimizer import adamw

from .conftest import MakeConfig


def test_norms_and_biases_do_not_decay(make_config: MakeConfig) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, make_config(weight_decay=0.5, learning_rate=0.1, adam_beta1=0.8, adam_epsilon=1e-6))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
    assert optimizer.defaults["betas"] == (0.8, 0.999)
    assert optimizer.defaults["eps"] == 1e-6


def test_equals_torch_adamw(make_config: MakeConfig) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    mine = adamw(ours, make_config(learning_rate=0.01))
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0, fused=False, foreach=False)
    for _ in range(5):
        for model, optimizer in ((ours, mine), (theirs, plain)):
            model(torch.arange(6.0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_only_trainable_parameters_and_at_least_one(make_config: MakeConfig) -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    assert [p for group in adamw(model, make_config()).param_groups for p in group["params"]] == [model.weight]
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        adamw(model, make_config())
