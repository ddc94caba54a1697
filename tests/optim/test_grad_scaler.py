"""Row optimizers under torch's GradScaler: they unscale as they step, and skipped steps leave no trace."""

from typing import Any

import pytest
import torch

from fastft.embedding import SparseEmbedding
from fastft.optim import SparseAdagrad, SparseAdamW, SparseSGD, clip_grad_norm_
from fastft.optim.row_optimizer import RowOptimizer
from optim.runs import ROWS, WIDTH, Twins, zipf

RULES: list[Any] = [
    (SparseAdamW, torch.optim.AdamW, {"engine": "bitwise", "weight_decay": 0.1}),
    (SparseAdamW, torch.optim.AdamW, {"engine": "bitwise", "amsgrad": True}),
    (SparseSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (SparseSGD, torch.optim.SGD, {}),
    (SparseAdagrad, torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.1, "weight_decay": 0.01}),
]
FAST: list[Any] = [(SparseAdamW, torch.optim.AdamW, {"engine": "fast", "backend": b}) for b in ("auto", "reference")]
SKIPPED = (0, 1, 9, 10, 23)  # the first two, two in a row, and the last


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Late: steps are launched and settled as on a GPU, where the host does not know whether they are skipped."""
    if request.param:
        monkeypatch.setattr(RowOptimizer, "runs_ahead", lambda self, p: True)
    return bool(request.param)


def run(t: Twins, scale: float, *, unscale: bool = False, read: bool = True, exact: bool = True) -> None:
    """Twins by one scaler; compared whenever they are read."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    for i, ids in enumerate(zipf(24)):
        if read:
            torch.testing.assert_close(*t.read(ids), **tolerance)
        upstream = torch.randn(*ids.shape, WIDTH, generator=t.noise) * 1e-2
        if i in SKIPPED:
            upstream[3, 2] = torch.inf
        scaler.scale(t.embedding(ids)).backward(upstream)  # type: ignore[no-untyped-call]
        t.dense.grad = t.weight.grad.to_dense()  # type: ignore[union-attr]
        for optimizer in (t.optimizer, t.torchs):
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
        t.optimizer.zero_grad()
    assert scaler.get_scale() == scale * 2 ** (3 - len(SKIPPED)), "steps were skipped, and scales have grown"


@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
@pytest.mark.parametrize("scale", [2.0**16, 1000.0])
@pytest.mark.parametrize(("kind", "torchs", "options"), RULES)
def test_bitwise(kind: Any, torchs: Any, options: dict[str, Any], scale: float, unscale: bool, late: bool) -> None:
    """1 / 1000 is rounded: as torch rounds it."""
    t = Twins(kind, torchs, lr=1e-2, **options)
    run(t, scale, unscale=unscale)
    t.same_bits()


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(("kind", "torchs", "options"), FAST)
def test_fast(kind: Any, torchs: Any, options: dict[str, Any], read: bool, late: bool) -> None:
    t = Twins(kind, torchs, lr=1e-2, weight_decay=0.1, **options)
    run(t, 2.0**16, read=read, exact=False)
    t.optimizer.flush()
    torch.testing.assert_close(t.weight, t.dense, rtol=1e-5, atol=1e-6)
    assert t.optimizer.tables[t.weight].offset == 24 - len(SKIPPED)


@pytest.mark.parametrize("engine", ["fast", "bitwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_skipped_step_leaves_no_trace(engine: str, dtype: torch.dtype, late: bool) -> None:
    """Rows seen for the first time among them, and masters; what follows is as if it had not been. (A row that has a
    place in the state already may take another way to the same numbers.)
    """
    tables = []
    for skips in (False, True):
        embedding = SparseEmbedding(ROWS, WIDTH, dtype=dtype)
        embedding.weight.data.copy_(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)))
        optimizer = SparseAdamW(embedding.parameters(), lr=1e-2, engine=engine)
        for ids in zipf(12):
            for found_inf in [1.0, torch.nan] * skips + [0.0]:
                seen = ids if found_inf == 0 else (ids + 100) % ROWS
                embedding(seen).backward(torch.ones(*ids.shape, WIDTH, dtype=dtype))
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(found_inf)
                optimizer.step()
                optimizer.zero_grad()
        state = optimizer.dense_state_dict()["state"][0]
        tables.append((embedding.weight.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"]))
    tolerance = (
        {"rtol": torch.finfo(dtype).eps, "atol": 0.0} if late and engine == "fast" else {"rtol": 0.0, "atol": 0.0}
    )
    for without, beside in zip(*tables, strict=True):
        torch.testing.assert_close(without, beside, **tolerance)


def another_step(t: Twins) -> None:
    t.backward(torch.tensor([1]))
    t.optimizer.step()


def second_optimizer(t: Twins) -> None:
    t.backward(torch.tensor([1]))
    SparseAdamW(t.embedding.parameters()).step()


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize(
    ("use", "more"),
    [
        (lambda t: t.embedding(torch.arange(ROWS)), 0),
        (lambda t: t.optimizer.flush(), 0),
        (lambda t: t.optimizer.state_dict(), 0),
        (lambda t: t.embedding.state_dict(), 0),
        (lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()), 0),
        (another_step, 1),
        (second_optimizer, 0),
    ],
)
def test_what_is_in_doubt_is_settled_before_it_is_used(
    use: Any, more: int, found_inf: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowOptimizer, "runs_ahead", lambda self, p: True)
    t = Twins(SparseAdamW, torch.optim.AdamW)
    another_step(t)
    t.optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
    another_step(t)
    del t.optimizer.found_inf  # type: ignore[attr-defined]
    t.weight.grad, table = None, t.optimizer.tables[t.weight]
    assert table.leaps is not None
    assert (len(table.steps), table.leaps.count) == (2, 1), "taken for now, and no leap goes over it"
    use(t)
    assert table.verdict is None
    assert table.offset + len(table.steps) == 2 - found_inf + more


def test_clipping_put_off_meets_the_scale() -> None:
    """Under a scale that is a power of 2 the bits are those of clipping at once."""
    found = []
    for defer in (False, True):
        t = Twins(SparseAdamW, torch.optim.AdamW, engine="bitwise", lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for ids in zipf(12):
            upstream = torch.randn(*ids.shape, WIDTH, generator=t.noise)
            scaler.scale(t.embedding(ids)).backward(upstream)  # type: ignore[no-untyped-call]
            clip_grad_norm_([t.weight], 100.0, defer=defer)
            scaler.step(t.optimizer)
            scaler.update()
            t.optimizer.zero_grad()
        t.optimizer.flush()
        found.append(t.weight.detach())
    assert torch.equal(*found)
