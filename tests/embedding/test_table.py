"""SparseEmbedding: torch.nn.Embedding's values, and its gradient, compact."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdamW
from fastft.optim.gradient import grouped


def pair(dtype: torch.dtype = torch.float32, padding_idx: int | None = None) -> tuple[SparseEmbedding, nn.Embedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(50, 8, padding_idx, dtype=dtype)
    return SparseEmbedding.from_embedding(copy.deepcopy(plain)), plain


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_values_and_gradient(shape: tuple[int, ...], dtype: torch.dtype, padding_idx: int | None) -> None:
    ours, plain = pair(dtype, padding_idx)
    ids = torch.randint(50, shape)
    ids.view(-1)[::4] = 3
    upstream = torch.randint(-8, 9, (*shape, 8)).to(dtype) / 8
    for module in (ours, plain):
        y = module(ids)
        assert y.shape == (*shape, 8)
        y.backward(upstream)
    assert torch.equal(ours(ids), plain(ids))
    grad = ours.weight.grad
    assert grad is not None
    assert grad.is_coalesced()
    assert grad._nnz() == len({i for i in ids.flatten().tolist() if i != ours.padding_idx})
    assert torch.equal(grad.to_dense(), plain.weight.grad)


def test_positions_are_grouped_once_and_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "fastft.embedding.table.grouped", lambda ids, rows: calls.append(len(ids)) or grouped(ids, rows)
    )
    ours, _ = pair(padding_idx=3)
    ids = torch.tensor([1, 3, 3])
    with torch.no_grad():
        ours(ids)
    assert not calls
    for _ in range(2):
        ours(ids).sum().backward()
        assert calls == [3]
        calls.clear()
        optimizer = SparseAdamW(ours.parameters())
        optimizer.step()


def test_backward_passes_add_up_by_rows() -> None:
    ours, plain = pair()
    for ids in (torch.tensor([1, 2, 2]), torch.tensor([2, 9]), torch.tensor([1])):
        for module in (ours, plain):
            (module(ids) * torch.arange(8)).sum().backward()
    grad = ours.weight.grad
    assert grad is not None
    assert grad._indices().tolist() == [[1, 2, 9]]
    assert torch.equal(grad.to_dense(), plain.weight.grad)


def test_the_sum_of_duplicates_is_in_fp32() -> None:
    """1 + 2^-9 a thousand times: in bf16 each of the small ones would be lost."""
    ours, _ = pair(torch.bfloat16)
    upstream = torch.full((1001, 8), 2.0**-9, dtype=torch.bfloat16)
    upstream[0] = 1
    ours(torch.zeros(1001, dtype=torch.int64)).backward(upstream)
    assert ours.weight.grad is not None
    assert (ours.weight.grad._values() == torch.tensor(1 + 1000 / 512, dtype=torch.bfloat16)).all()


def test_state_dict_is_nn_embeddings() -> None:
    ours, plain = pair()
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    assert repr(ours) == "SparseEmbedding(50, 8)"


def test_from_embedding_shares_the_weight() -> None:
    plain = nn.Embedding(5, 3, padding_idx=1).eval()
    ours = SparseEmbedding.from_embedding(plain)
    assert ours.weight is plain.weight
    assert ours.padding_idx == 1
    assert not ours.training


class Model(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = nn.functional.cross_entropy(self.head(torch.tanh(self.body(self.embed(ids)))), ids)
        return loss


# Dynamo itself looks at the .grad of what it is given after a break.
DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@DYNAMO
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_in_a_model(tied: bool, backend: str | None) -> None:
    """Tied, the rows are added to the head's dense gradient; compiled, the lookup is outside the graph."""
    model, ids = Model(tied), torch.tensor([1, 7, 7, 3])
    model(ids).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model = Model(tied)
    model.embed = SparseEmbedding.from_embedding(model.embed)
    (model if backend is None else torch.compile(model, backend=backend))(ids).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.is_sparse == (name == "embed.weight" and not tied)
        torch.testing.assert_close(p.grad.to_dense(), expected[name])


@DYNAMO
def test_compiled_training_reads_current_rows() -> None:
    """Two runs of a model, one compiled: rows are caught up with outside the graph."""
    losses = []
    for compiled in (False, True):
        model = Model(tied=False)
        model.embed = SparseEmbedding.from_embedding(model.embed)
        run: Any = torch.compile(model, backend="eager") if compiled else model
        optimizer = SparseAdamW([model.embed.weight], lr=0.1, weight_decay=0.1)
        g = torch.Generator().manual_seed(0)
        losses.append([])
        for _ in range(8):
            loss = run(torch.randint(50, (4,), generator=g))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_frozen_and_no_grad() -> None:
    ours, _ = pair()
    with torch.no_grad():
        assert not ours(torch.tensor([1])).requires_grad
    ours.weight.requires_grad_(False)
    assert not ours(torch.tensor([1])).requires_grad


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([[0, 1], [50, 2]]), IndexError, r"ids\[2\] \(flattened\) is 50; expected 0..49"),
        (torch.tensor([-1]), IndexError, r"ids\[0\] \(flattened\) is -1"),
        (torch.tensor([1.0]), TypeError, "ids are torch.float32; expected int64 or int32"),
    ],
)
def test_bad_ids(ids: Tensor, error: type[Exception], message: str) -> None:
    ours, _ = pair()
    with pytest.raises(error, match=message):
        ours(ids)


def test_refused_options() -> None:
    for name, value in (("max_norm", 1.0), ("scale_grad_by_freq", True)):
        with pytest.raises(ValueError, match=f"{name} is {value}; SparseEmbedding has none"):
            SparseEmbedding(5, 3, **{name: value})
        with pytest.raises(ValueError, match=name):
            SparseEmbedding.from_embedding(nn.Embedding(5, 3, **{name: value}))  # type: ignore[arg-type]
    for module in (nn.Linear(2, 2), type("Scaled", (nn.Embedding,), {})(2, 2)):
        with pytest.raises(TypeError, match=f"embedding is a {type(module).__name__}; expected a plain"):
            SparseEmbedding.from_embedding(module)
