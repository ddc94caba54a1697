"""SparseAdamW against torch's dense AdamW: to the bit where that is promised, closer to fp64 than torch elsewhere."""

import copy
from typing import Any

import pytest
import torch

from fastft.embedding.table import SparseEmbedding
from fastft.optim import SparseAdamW
from fastft.optim.table import room_for_all
from optim.runs import ROWS, WIDTH, Twins, cosine, zipf


def twins(**options: Any) -> Twins:
    return Twins(SparseAdamW, torch.optim.AdamW, **{"lr": 1e-2, "engine": "bitwise", **options})


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9), (0.9, 0.5)])
@pytest.mark.parametrize("size", [1e-2, 1e-8])
def test_bitwise(weight_decay: float, betas: tuple[float, float], size: float) -> None:
    """At every read, too. 1e-8: gradients near eps."""
    twins(weight_decay=weight_decay, betas=betas).run_bitwise(40, size=size)


def errors(weight_decay: float, betas: tuple[float, float], size: float, steps: int) -> tuple[float, float]:
    """Distance from fp64 AdamW of `fast` and of torch in fp32: root mean square over the table."""
    t = twins(weight_decay=weight_decay, betas=betas, engine="fast")
    truth = torch.nn.Parameter(t.weight.detach().double())
    exact = torch.optim.AdamW([truth], weight_decay=weight_decay, betas=betas)
    for i, ids in enumerate(zipf(steps)):
        t.backward(ids, size)
        exact.param_groups[0]["lr"] = cosine(i, steps)
        truth.grad = t.weight.grad.to_dense().double()  # type: ignore[union-attr]
        exact.step()
        t.step(cosine(i, steps))
    t.optimizer.flush()
    ours, torchs = ((x.detach() - truth.detach()).square().mean().sqrt().item() for x in (t.weight, t.dense))
    return ours, torchs


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
@pytest.mark.parametrize("size", [1e-2, 1e-8])
def test_fast_is_closer_to_fp64_than_torch(weight_decay: float, betas: tuple[float, float], size: float) -> None:
    ours, torchs = errors(weight_decay, betas, size, 300)
    assert ours < torchs


@pytest.mark.parametrize("engine", ["fast", "bitwise"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_reads_are_dense_training(engine: str, backend: str) -> None:
    t = twins(engine=engine, backend=backend, weight_decay=0.1)
    for i, ids in enumerate(zipf(120)):
        torch.testing.assert_close(*t.read(ids), rtol=1e-5, atol=1e-6)
        t.backward(ids)
        t.step(cosine(i, 120))
    before = t.weight.detach().clone()
    t.embedding(torch.arange(ROWS))
    assert torch.equal(before, t.weight), "a read wrote"


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"betas": (0.9, 0.5)}, {"weight_decay": 100.0}])
def test_fast_where_there_is_no_leap(options: dict[str, Any]) -> None:
    t = twins(engine="fast", **options)
    for ids in zipf(40):
        torch.testing.assert_close(*t.read(ids), rtol=1e-4, atol=1e-5)
        t.backward(ids)
        t.step()


def test_amsgrad_bitwise() -> None:
    twins(amsgrad=True).run_bitwise()


def test_state_is_for_touched_rows_only() -> None:
    t = twins(engine="fast")
    touched: set[int] = set()
    for ids in zipf(10):
        t.backward(ids)
        t.step()
        touched |= set(ids.tolist())
    held = t.optimizer.state_dict()["state"][0]
    assert set(held["rows"].tolist()) == touched
    assert held["exp_avg"].shape == held["exp_avg_sq"].shape == (len(touched), WIDTH)


def test_rows_untouched_decay() -> None:
    t = twins(weight_decay=0.1, engine="fast")
    for _ in range(5):
        t.backward(torch.tensor([0]))
        t.step()
    torch.testing.assert_close(t.embedding(torch.tensor([7])), t.dense.detach()[[7]])


def test_lazy_is_torchs_sparse_adam() -> None:
    t = twins(weight_decay=0.0, semantics="lazy", engine="fast")
    embedding = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    embedding.weight.data.copy_(t.weight.detach())
    torchs = torch.optim.SparseAdam(embedding.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(0)
    for ids in zipf(30):
        upstream = torch.randn(*ids.shape, WIDTH, generator=g)
        for e, o in ((t.embedding, t.optimizer), (embedding, torchs)):
            e(ids).backward(upstream)
            o.step()
            o.zero_grad()
    torch.testing.assert_close(t.weight, embedding.weight)
    t.optimizer.flush()
    torch.testing.assert_close(t.weight, embedding.weight)


@pytest.mark.parametrize("engine", ["fast", "bitwise"])
def test_to_and_from_torchs_adamw(engine: str) -> None:
    """Half of a run by rows, half densely, and the other way round."""
    t = twins(engine=engine, weight_decay=0.1)
    for ids in zipf(30):
        t.backward(ids)
        t.step()
    dense = torch.nn.Parameter(t.weight.detach().clone())
    torchs = torch.optim.AdamW([dense], foreach=False)
    torchs.load_state_dict(t.optimizer.dense_state_dict())
    dense.data.copy_(t.weight.detach())
    back = SparseAdamW(t.embedding.parameters(), engine=engine)
    back.load_state_dict(copy.deepcopy(torchs.state_dict()))
    t.optimizer = back
    for ids in zipf(30, seed=5):
        t.backward(ids)
        dense.grad = t.weight.grad.to_dense()  # type: ignore[union-attr]
        torchs.step()
        t.step()
    back.flush()
    tolerance = {"rtol": 0.0, "atol": 0.0} if engine == "bitwise" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(t.weight, dense, **tolerance)
    torch.testing.assert_close(t.weight, t.dense, **tolerance)


@pytest.mark.parametrize("scheduler", ["LambdaLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_learning_rate_schedulers(scheduler: str) -> None:
    t = twins(weight_decay=0.1)
    options: dict[str, Any] = {
        "LambdaLR": {"lr_lambda": lambda i: 1 / (i + 1)},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 40, "cycle_momentum": False},
        "ReduceLROnPlateau": {},
    }
    kind = getattr(torch.optim.lr_scheduler, scheduler)
    both = [kind(optimizer, **options[scheduler]) for optimizer in (t.optimizer, t.torchs)]
    for ids in zipf(30):
        assert torch.equal(*t.read(ids))
        t.backward(ids)
        t.step()
        for s in both:
            s.step(*[1.0] * (scheduler == "ReduceLROnPlateau"))
    t.same_bits()


def test_grad_scaler() -> None:
    """Scaled gradients are unscaled, and a step with an infinite one is left out."""
    t = twins()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i, ids in enumerate(zipf(20)):
        assert torch.equal(*t.read(ids))
        upstream = torch.randn(*ids.shape, WIDTH, generator=t.noise)
        if i % 7 == 3:
            upstream[3, 2] = torch.inf
        scaler.scale(t.embedding(ids)).backward(upstream)  # type: ignore[no-untyped-call]
        scaler.unscale_(t.optimizer)
        t.dense.grad = t.weight.grad.to_dense()  # type: ignore[union-attr]
        if i % 7 != 3:
            t.torchs.step()
        scaler.step(t.optimizer)
        scaler.update()
        t.optimizer.zero_grad()
    t.same_bits()


def test_what_is_saved_does_not_lag() -> None:
    t = twins()
    for ids in zipf(30):
        t.backward(ids)
        t.step()
    assert not torch.equal(t.weight, t.dense)
    assert torch.equal(t.embedding.state_dict()["weight"], t.dense)
    copied = copy.deepcopy(t.embedding)
    assert torch.equal(copied(torch.arange(ROWS)), t.dense)


@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
def test_bf16_table(rounding: str) -> None:
    """With a master, the fp32 run's rounding; without, near it. Steps here are far below half a bf16 ulp."""
    start = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    tables = []
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        embedding = SparseEmbedding(ROWS, WIDTH, dtype=dtype)
        embedding.weight.data.copy_(start)
        optimizer = SparseAdamW(embedding.parameters(), lr=1e-4, rounding=rounding)
        for ids in zipf(200):
            embedding(ids).backward(torch.ones(*ids.shape, WIDTH, dtype=dtype) / 8)
            optimizer.step()
            optimizer.zero_grad()
        optimizer.flush()
        tables.append(embedding.weight.detach())
    low, high = tables
    if rounding == "master":
        assert torch.equal(low, high.bfloat16())
    moved, wanted = (low.float() - start).mean(), (high - start).mean()
    assert wanted < -0.002
    assert (moved < 0.5 * wanted) == (rounding != "nearest")


def test_rowwise_second_moment() -> None:
    t = SparseEmbedding(ROWS, WIDTH)
    start = t.weight.detach().clone()
    optimizer = SparseAdamW(t.parameters(), lr=0.1, rowwise=True, weight_decay=0.0)
    t(torch.tensor([3])).backward(torch.full((1, WIDTH), 2.0))
    optimizer.step()
    torch.testing.assert_close(t(torch.tensor([3])), start[[3]] - 0.1)
    assert optimizer.state_dict()["state"][0]["exp_avg_sq"].shape == (1, 1)


def dense_gradient(t: Twins) -> None:
    t.weight.grad = torch.ones(ROWS, WIDTH)
    t.optimizer.step()


def changed_betas(t: Twins) -> None:
    for _ in range(2):
        t.optimizer.param_groups[0]["betas"] = (0.8, 0.9) if t.optimizer.tables else (0.9, 0.999)
        t.backward(torch.tensor([1]))
        t.optimizer.step()


def changed_amsgrad(t: Twins) -> None:
    t.backward(torch.tensor([1]))
    t.step()
    t.optimizer.flush()
    t.optimizer.param_groups[0]["amsgrad"] = True
    t.backward(torch.tensor([1]))
    t.optimizer.step()


def other_table(t: Twins) -> None:
    t.backward(torch.tensor([1]))
    t.step()
    SparseAdamW(SparseEmbedding(ROWS + 1, WIDTH).parameters()).load_state_dict(t.optimizer.state_dict())


def other_state(t: Twins) -> None:
    t.optimizer.load_state_dict({**t.optimizer.state_dict(), "state": {0: {"step": 1, "momentum_buffer": t.weight}}})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (dense_gradient, r"has a dense gradient.*tied head.*torch's own optimizer"),
        (changed_betas, r"betas changed from \(0.9, 0.999\) to \(0.8, 0.9\).*flush\(\) first"),
        (changed_amsgrad, r"amsgrad changed from False to True, and with it .*make a new optimizer"),
        (other_table, r"a table \(300, 16\); this one is \(301, 16\)"),
        (other_state, r"expected exp_avg, exp_avg_sq"),
        (lambda t: SparseAdamW(t.embedding.parameters(), lr=-1), "lr is -1; expected 0 or more"),
        (lambda t: SparseAdamW(t.embedding.parameters(), betas=(0.9, 1.0)), r"betas are \(0.9, 1.0\)"),
        (lambda t: SparseAdamW(t.embedding.parameters(), engine="quick"), "engine is 'quick'; expected one of 'fast'"),
        (lambda t: SparseAdamW([torch.zeros(3, requires_grad=True)]), r"expected a table \(rows, width\)"),
    ],
)
def test_refusals(what: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        what(twins())


@pytest.mark.parametrize("flush_first", [True, False])
@pytest.mark.parametrize("engine", ["fast", "bitwise"])
def test_betas_may_change_after_a_flush(engine: str, flush_first: bool) -> None:
    """Steps that were missed are those of the betas they were taken with, whenever the flush comes."""
    t = twins(engine=engine)
    tolerance = {"rtol": 0.0, "atol": 0.0} if engine == "bitwise" else {"rtol": 1e-5, "atol": 1e-6}
    for betas in ((0.9, 0.999), (0.5, 0.9)):
        if flush_first:
            t.optimizer.flush()
        for optimizer in (t.optimizer, t.torchs):
            optimizer.param_groups[0]["betas"] = betas
        torch.testing.assert_close(*t.read(torch.arange(ROWS)), **tolerance)
        t.optimizer.flush()
        for ids in zipf(40):
            torch.testing.assert_close(*t.read(ids), **tolerance)
            t.backward(ids)
            t.step()
    t.optimizer.flush()
    torch.testing.assert_close(t.weight, t.dense, **tolerance)


@pytest.mark.parametrize("engine", ["fast", "bitwise"])
def test_what_is_loaded_into_a_table_stays(engine: str) -> None:
    """Steps before it are not taken again on what is loaded, and later ones go on from it."""
    t = twins(engine=engine)
    for ids in zipf(30):
        t.backward(ids)
        t.step()
    best = {"weight": torch.randn(ROWS, WIDTH, generator=t.noise)}
    t.embedding.load_state_dict(best)
    t.dense.data.copy_(best["weight"])
    assert torch.equal(*t.read(torch.arange(ROWS)))
    for ids in zipf(30, seed=3):
        t.backward(ids)
        t.step()
    t.optimizer.flush()
    torch.testing.assert_close(t.weight, t.dense, rtol=1e-5, atol=1e-6)


def test_masters_follow_what_is_loaded_and_only_that() -> None:
    embedding = SparseEmbedding(4, 2, dtype=torch.bfloat16)
    embedding.weight.data.fill_(1.0)
    optimizer = SparseAdamW(embedding.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(3):
        embedding(torch.tensor([1, 2])).backward(torch.ones(2, 2, dtype=torch.bfloat16))
        optimizer.step()
        optimizer.zero_grad()
    loaded = embedding.state_dict()["weight"].clone()
    kept = optimizer.state_dict()["state"][0]["master"][0].clone()
    loaded[2] = 5.0
    embedding.load_state_dict({"weight": loaded})
    master = optimizer.state_dict()["state"][0]["master"]
    assert torch.equal(master[0], kept)
    assert not torch.equal(kept, kept.bfloat16().float())
    assert (master[1] == 5).all()


def test_a_second_optimizer_goes_on_where_the_first_was() -> None:
    t = twins()
    for ids in zipf(30):
        t.backward(ids)
        t.step()
    t.optimizer = SparseAdamW(t.embedding.parameters(), lr=1e-2, engine="bitwise")
    t.torchs = torch.optim.AdamW([t.dense], lr=1e-2, foreach=False)
    for ids in zipf(30, seed=3):
        assert torch.equal(*t.read(ids))
        t.backward(ids)
        t.step()
    t.same_bits()


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    t, other = twins(), Twins(SparseAdamW, torch.optim.AdamW, amsgrad=True)
    for ids in zipf(30):
        t.backward(ids)
        t.step()
    wrong = t.optimizer.state_dict()
    wrong["state"][0]["size"] = (ROWS + 1, WIDTH)
    wrong["param_groups"] = other.optimizer.state_dict()["param_groups"]
    with pytest.raises(ValueError, match="expected exp_avg, exp_avg_sq, max_exp_avg_sq"):
        t.optimizer.load_state_dict(wrong)
    t.backward(torch.tensor([1]))
    t.step()
    t.same_bits()


def test_room_for_state_where_the_system_does_not_promise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastft.optim.table.room_for_all", lambda buffer, rows: None)
    t = twins()
    t.run_bitwise(20)
    assert len(t.optimizer.tables[t.weight].buffers[0]) < ROWS


def test_what_the_system_does_not_promise_is_not_an_error() -> None:
    assert room_for_all(torch.empty(0, 1 << 20), 1 << 40) is None
