"""SparseEmbedding: torch.nn.Embedding's values, and its gradient, compact."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdamW, SparseSGD, clip_grad_norm_
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
    for module in ("table", "compiled"):
        monkeypatch.setattr(
            f"fastft.embedding.{module}.grouped", lambda ids, rows: calls.append(len(ids)) or grouped(ids, rows)
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


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_in_a_model(tied: bool, backend: str | None) -> None:
    """Tied, the rows are added to the head's dense gradient."""
    model, ids = Model(tied), torch.tensor([1, 7, 7, 3])
    for _ in range(2):
        model(ids).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model = Model(tied)
    model.embed = SparseEmbedding.from_embedding(model.embed)
    call: Any = model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):
        call(ids).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.is_sparse == (name == "embed.weight" and not tied)
        torch.testing.assert_close(p.grad.to_dense(), expected[name])


class Sums(nn.Module):
    """Two tables, of which one may be read three times, twice at the same ids: equal calls in a graph."""

    def __init__(self, dtype: torch.dtype, often: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.often = often
        self.a, self.b = SparseEmbedding(50, 8, 3, dtype=dtype), SparseEmbedding(50, 8, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.a(ids) * self.b(ids)
        if self.often:
            rows = rows + self.a(ids.flip(0)) + self.a(ids)
        loss: Tensor = rows.float().square().sum()
        return loss


@pytest.mark.parametrize("engine", ["fast", "bitwise"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("often", [False, True], ids=["once", "often"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_training(engine: str, backend: str, often: bool, dtype: torch.dtype) -> None:
    """In one graph: what is read, gradients and steps are eager training's. The same bits, where the compiler keeps
    the operations and a table is read once: gradients of several reads are added up in another order.
    """
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    models = [Sums(dtype, often), Sums(dtype, often)]
    call: Any = torch.compile(models[1], backend=backend, fullgraph=True)
    optimizers = [SparseAdamW(m.parameters(), lr=0.01, weight_decay=0.1, engine=engine) for m in models]
    exact = {"rtol": 0.0, "atol": 0.0}
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.05}
    close = near if often or backend == "inductor" else exact
    g = torch.Generator().manual_seed(0)
    for step in range(8):
        ids = torch.randint(50, (6,), generator=g)
        losses = [models[0](ids), call(ids)]
        torch.testing.assert_close(*losses, **close)
        for loss, model, optimizer in zip(losses, models, optimizers, strict=True):
            loss.backward()
            assert all(p.grad is not None and p.grad.is_coalesced() for p in model.parameters())
            if step % 3:  # else the gradients of two steps add up
                optimizer.step()
                optimizer.zero_grad()
    for optimizer in optimizers:
        optimizer.flush()
    for ours, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, **close)


def test_compiled_lookups_without_a_gradient() -> None:
    ours, _ = pair()
    call: Any = torch.compile(ours, backend="aot_eager", fullgraph=True)
    ids = torch.tensor([[1, 3], [4, 1]])
    with torch.no_grad():
        assert torch.equal(call(ids), ours(ids))
    with pytest.raises(IndexError, match=r"expected 0\.\.49"):
        call(ids + 49)
    ours.weight.requires_grad_(False)
    assert not call(ids).requires_grad


def test_compiled_backward_after_deferred_clipping() -> None:
    """What a later backward adds to is clipped first, as without a compiler."""
    ours, _ = pair()
    twin = copy.deepcopy(ours)
    call: Any = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for module, defer in ((ours, False), (call, True)):
        module(torch.tensor([5])).sum().backward()
        clip_grad_norm_(module.parameters(), 0.5, defer=defer)
        held = module.weight.grad
        module.zero_grad()
        for _ in range(2):
            module(torch.tensor([1, 3, 3])).sum().backward()
            clip_grad_norm_(module.parameters(), 0.5, defer=defer)
        module(torch.tensor([2])).sum().backward()
        assert held is not None
    assert ours.weight.grad is not None
    assert twin.weight.grad is not None
    torch.testing.assert_close(twin.weight.grad.to_dense(), ours.weight.grad.to_dense(), rtol=1e-6, atol=0)


def test_copies_of_a_compiled_table_are_tables_of_their_own() -> None:
    ours, _ = pair()
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        copied.weight += 1
    for module in (ours, copied):
        torch.compile(module, backend="aot_eager", fullgraph=True)(torch.tensor([1])).sum().backward()
        assert module.weight.grad is not None
        assert module.weight.grad.to_dense().sum() == 8
    assert torch.equal(torch.compile(copied, backend="aot_eager")(torch.tensor([1])), copied.weight[[1]])


def test_hooks_that_would_miss_a_compiled_gradient_are_refused() -> None:
    ours, _ = pair()
    ours(torch.tensor([1])).sum().backward()  # hooks of its own do not count
    call: Any = torch.compile(ours, backend="aot_eager", fullgraph=True)
    call(torch.tensor([1])).sum().backward()
    ours.weight.register_hook(lambda g: g)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="has hooks, which would not see its gradient"):
        call(torch.tensor([1])).sum().backward()


def test_opcheck() -> None:
    ours, _ = pair()
    optimizer = SparseSGD(ours.parameters(), lr=0.1, momentum=0.9)
    ids = torch.tensor([[1, 3], [4, 1]])
    ours(ids).sum().backward()
    optimizer.step()
    torch.library.opcheck(torch.ops.fastft.lookup.default, (ours.weight.detach(), ids, ours.mark, ours.number))
    args = (torch.ones(2, 2, 8), ids, ours.number, 1)
    torch.library.opcheck(torch.ops.fastft.add_row_gradient.default, args)


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
