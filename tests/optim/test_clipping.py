"""clip_grad_norm_ over dense and row gradients."""

import pytest
import torch
from torch import nn

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdamW, SparseSGD, clip_grad_norm_


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


SCRIPTS = (
    "bcsz bcsz", "bcbsz", "bccsz", "bcbcsz", "bcssz", "bcs bcs bcs", "bczbsz", "bc0bsz bs", "bbcsz", "bCcsz", "bcCsz",
)  # fmt: skip


def run(script: str, defer: bool, dtype: torch.dtype = torch.float32, engine: str = "bitwise") -> torch.Tensor:
    """b: a backward, c and C: clips, to two norms, s: a step, z and 0: zero_grad, to None and to zeros."""
    embedding = SparseEmbedding(20, 4, dtype=dtype)
    embedding.weight.data.copy_(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    optimizer, noise = SparseAdamW([embedding.weight], lr=0.1, engine=engine), torch.Generator().manual_seed(1)
    for letter in script.replace(" ", ""):
        if letter == "b":
            ids = torch.randint(20, (7,), generator=noise)
            embedding(ids).backward(torch.randn(7, 4, generator=noise).to(dtype))
        elif letter in "cC":
            clip_grad_norm_(embedding.parameters(), 0.3 if letter == "c" else 2.0, defer=defer)
        elif letter == "s":
            optimizer.step()
        else:
            optimizer.zero_grad(set_to_none=letter == "z")
    optimizer.flush()
    return embedding.weight.detach()


@pytest.mark.parametrize("script", SCRIPTS)
def test_put_off_is_clipped_all_the_same(script: str) -> None:
    """Whatever comes between: gradients that add up, other clips, steps on the same gradient, no step at all."""
    assert torch.equal(run(script, defer=True), run(script, defer=False))
    torch.testing.assert_close(run(script, defer=True, engine="fast"), run(script, defer=False))
    if script in ("bcsz bcsz", "bcssz"):
        assert not torch.equal(run(script, defer=True), run(script.replace("c", ""), defer=True)), "clips do something"


def test_what_put_off_leaves() -> None:
    """The norm, dense gradients clipped, row gradients and the factor; nothing of it once the gradient is gone."""
    now, later = model(sparse=True), model(sparse=True)
    raw = later[0].weight.grad.clone()  # type: ignore[union-attr,operator]
    norm = clip_grad_norm_(later.parameters(), 0.1, defer=True)
    assert norm == clip_grad_norm_(now.parameters(), 0.1)
    assert torch.equal(later[1].weight.grad, now[1].weight.grad)  # type: ignore[arg-type]
    weight, grad = later[0].weight, later[0].weight.grad
    assert torch.equal(grad._values(), raw._values())  # type: ignore[union-attr,operator]
    assert torch.equal(grad._values() * grad.factor, now[0].weight.grad._values())  # type: ignore[union-attr,operator]
    assert len(weight._backward_hooks) == 1
    del grad
    weight.grad = None
    assert not weight._backward_hooks


def test_put_off_rounds_less() -> None:
    """A bf16 gradient that is clipped at once is rounded once more."""
    errors = []
    for defer in (False, True):
        embedding = SparseEmbedding(20, 400, dtype=torch.bfloat16)
        embedding.weight.data.zero_()
        upstream = torch.randn(20, 400, generator=torch.Generator().manual_seed(1)).bfloat16()
        embedding(torch.arange(20)).backward(upstream)
        norm = clip_grad_norm_(embedding.parameters(), 3.0, defer=defer)
        optimizer = SparseSGD(embedding.parameters(), lr=1.0)
        optimizer.step()
        master = optimizer.state_dict()["state"][0]["master"]
        truth = -upstream.double() * 3.0 / (norm.double() + 1e-6)
        errors.append(((master - truth).norm() / truth.norm()).item())
    assert errors[1] < 1e-6 < 1e-3 < errors[0]


def test_a_frozen_table_is_clipped_at_once() -> None:
    embedding = SparseEmbedding(20, 4)
    embedding(torch.tensor([1])).sum().backward()
    embedding.weight.requires_grad_(False)
    clip_grad_norm_(embedding.parameters(), 0.1, defer=True)
    grad = embedding.weight.grad
    assert grad is not None
    assert float(grad.to_dense().norm()) == pytest.approx(0.1, rel=1e-4)
