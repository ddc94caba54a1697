"""clip_grad_norm_ over dense and row gradients."""

import pytest
import torch
from torch import nn

from fastft.embedding import SparseEmbedding
from fastft.optim import clip_grad_norm_


def model(sparse: bool) -> nn.ModuleList:
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.Embedding(20, 4), nn.Linear(4, 3)])
    if sparse:
        modules[0] = SparseEmbedding.from_embedding(modules[0])  # type: ignore[arg-type]
    for ids in (torch.tensor([3, 3, 5]), torch.tensor([5, 7])):
        modules[1](modules[0](ids)).square().sum().backward()
    return modules


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_like_torchs_on_dense_gradients(norm_type: float, max_norm: float) -> None:
    ours, dense = model(sparse=True), model(sparse=False)
    got = clip_grad_norm_(ours.parameters(), max_norm, norm_type)
    want = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm, norm_type)
    torch.testing.assert_close(got, want)
    for a, b in zip(ours.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a.grad.to_dense(), b.grad)  # type: ignore[union-attr]


def test_rows_of_several_backward_passes_count_once() -> None:
    weight = nn.Parameter(torch.zeros(5, 1))
    ids, values = torch.tensor([[2, 2]]), torch.tensor([[3.0], [4.0]])
    weight.grad = torch.sparse_coo_tensor(ids, values, (5, 1), check_invariants=True)
    assert clip_grad_norm_(weight, 1e6).item() == 7


def test_nothing_to_clip_and_not_finite() -> None:
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0
    modules = model(sparse=True)
    modules[0].weight.grad._values()[0, 0] = torch.nan  # type: ignore[union-attr,operator]
    before = modules[1].weight.grad.clone()  # type: ignore[union-attr,operator]
    with pytest.raises(RuntimeError, match="norm of the gradients is nan: they were not clipped"):
        clip_grad_norm_(modules.parameters(), 1.0, error_if_nonfinite=True)
    assert torch.equal(modules[1].weight.grad, before)  # type: ignore[arg-type]
