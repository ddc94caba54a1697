"""Gradients that are none of a table's; optimizers that take turns, are copied, lack memory; tables of no width."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdamW


@pytest.mark.parametrize("ids", [[15], [3, -1], [-2, 4]])
def test_rows_that_the_table_does_not_have(ids: list[int]) -> None:
    """A gradient that somebody else made. Nothing is written."""
    embedding = SparseEmbedding(10, 4)
    optimizer, before = SparseAdamW(embedding.parameters()), embedding.weight.detach().clone()
    embedding.weight.grad = torch.sparse_coo_tensor([ids], torch.ones(len(ids), 4), (10, 4), check_invariants=False)
    with pytest.raises(IndexError, match=r"expected 0\.\.9"):
        optimizer.step()
    optimizer.flush()
    assert torch.equal(embedding.weight, before)
    state = optimizer.state_dict()
    moments = {"exp_avg": torch.zeros(1, 4), "exp_avg_sq": torch.zeros(1, 4)}
    state["state"] = {0: {"step": torch.tensor(1.0), "size": (10, 4), "rows": torch.tensor([50]), **moments}}
    with pytest.raises(IndexError, match="is 50"):
        optimizer.load_state_dict(state)


def test_a_gradient_of_single_elements() -> None:
    embedding = SparseEmbedding(10, 4)
    embedding.weight.grad = torch.eye(10, 4).to_sparse()
    with pytest.raises(ValueError, match="sparse in 2 dimensions"):
        SparseAdamW(embedding.parameters()).step()


def test_optimizers_that_take_turns() -> None:
    """Each goes on from what the other left, as torch's do."""
    ours = SparseEmbedding(20, 4)
    dense = torch.nn.Embedding(20, 4, _weight=ours.weight.detach().clone())
    turns = [SparseAdamW([ours.weight], lr=lr) for lr in (1e-2, 3e-2)]
    theirs = [torch.optim.AdamW([dense.weight], lr=lr) for lr in (1e-2, 3e-2)]
    g = torch.Generator().manual_seed(0)
    for step in range(8):
        ids = torch.randint(20, (6,), generator=g)
        for module, optimizers in ((ours, turns), (dense, theirs)):
            module.zero_grad()
            (module(ids) ** 2).sum().backward()
            optimizers[step % 2].step()
        torch.testing.assert_close(ours(ids), dense(ids), rtol=1e-5, atol=1e-6)


def test_betas_changed_in_place() -> None:
    embedding = SparseEmbedding(10, 4)
    optimizer = SparseAdamW(embedding.parameters(), betas=[0.9, 0.999])  # type: ignore[arg-type]
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["betas"][0] = 0.5
    with pytest.raises(ValueError, match="flush"):
        optimizer.step()


def test_a_kernel_without_memory_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, twin = SparseEmbedding(10, 4), SparseEmbedding(10, 4)
    twin.load_state_dict(ours.state_dict())
    optimizers = [SparseAdamW([module.weight]) for module in (ours, twin)]
    for i in range(4):
        for module, optimizer in zip((ours, twin), optimizers, strict=True):
            module.zero_grad()
            module(torch.tensor([i, 1])).sum().backward()
            if module is ours and i == 2:
                with monkeypatch.context() as patch:
                    patch.setattr(optimizer.tables[ours.weight].kernel, "step_rows", refuse)
                    with pytest.raises(MemoryError):
                        optimizer.step()
            optimizer.step()
    for optimizer in optimizers:
        optimizer.flush()
    torch.testing.assert_close(ours.weight, twin.weight, rtol=1e-6, atol=1e-7)  # a step moves 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_without_memory_admits_no_row(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = SparseEmbedding(10, 4, dtype=dtype)
    optimizer = SparseAdamW([embedding.weight])
    for ids in ([1, 2], [2, 7]):
        optimizer.zero_grad()
        embedding(torch.tensor(ids)).sum().backward()
        if ids == [2, 7]:
            t, before = optimizer.tables[embedding.weight], embedding.weight.detach().clone()
            with monkeypatch.context() as patch:
                patch.setattr("fastft.optim.table.grown", refuse)
                with pytest.raises(MemoryError):
                    optimizer.step()
            assert (t.used, t.slot.tolist(), len(t.steps)) == (2, [-1, 0, 1, *[-1] * 7], 1)
            assert torch.equal(embedding.weight, before)
        optimizer.step()
    assert optimizer.tables[embedding.weight].slot[7] == 2


def refuse(*args: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"load the state_dict\(\)"):
        copied(SparseAdamW(SparseEmbedding(10, 4).parameters()))


@pytest.mark.parametrize("semantics", ["dense", "lazy"])
def test_a_table_of_no_width(semantics: str) -> None:
    embedding = SparseEmbedding(10, 0)
    optimizer = SparseAdamW(embedding.parameters(), semantics=semantics)
    for _ in range(2):
        embedding(torch.tensor([[1, 2]])).sum().backward()
        optimizer.step()
    optimizer.flush()
    assert embedding(torch.tensor([[1, 2]])).shape == (1, 2, 0)
