"""Coefficients: every option as three numbers per token, and what the mean divides by."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from fastft.losses import cross_entropy, linear_cross_entropy
from fastft.losses.reduction import coefficients, combine, ignore_weightless
from losses.cases import problem

PLAIN = {
    "weight": None, "token_weight": None, "ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0,
    "reduction": "mean", "num_items": None,
}  # fmt: skip


def rows_and_q(target: Tensor, vocab: int = 5, **options: object) -> tuple[Tensor, Tensor | None]:
    return coefficients(target, vocab, torch.float64, **{**PLAIN, **options})  # type: ignore[arg-type]


def test_plain_mean_divides_by_the_supervised_tokens() -> None:
    rows, q = rows_and_q(torch.tensor([0, -100, 4, 1]))
    assert q is None
    assert torch.equal(rows, torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]).double() / 3)


def test_weights_multiply_and_are_what_the_mean_divides_by() -> None:
    weight, token_weight = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([1.0, 9, 0.5, 2])
    rows, q = rows_and_q(torch.tensor([0, -100, 4, 1]), weight=weight, token_weight=token_weight)
    assert q is None
    assert torch.equal(rows[:, 0], torch.tensor([1.0, 0, 2.5, 4]).double() / 7.5)
    assert (rows[:, 1:] == 0).all()


def test_smoothing_with_class_weights_spreads_over_them() -> None:
    """torch's definition: the smooth part is weighted by the class that it goes to, not by the target's."""
    weight = torch.tensor([1.0, 2, 3, 4, 0])
    rows, q = rows_and_q(torch.tensor([0, 3]), weight=weight, label_smoothing=0.25, reduction="sum")
    assert q is not None
    assert torch.equal(q, weight.double() / 10)
    assert torch.equal(rows, torch.tensor([[0.75, 0.25 * 10 / 5, 0], [3, 0.25 * 10 / 5, 0]]).double())


@pytest.mark.parametrize("num_items", [8, 8.0, torch.tensor(8), torch.tensor([8.0])], ids=repr)
def test_num_items_replaces_the_denominator(num_items: float | Tensor) -> None:
    rows, _ = rows_and_q(torch.tensor([0, -100, 4, 1]), num_items=num_items, token_weight=torch.tensor([1.0, 1, 2, 0]))
    assert torch.equal(rows[:, 0], torch.tensor([1.0, 0, 2, 0]).double() / 8)


@pytest.mark.parametrize(
    "options", [{"weight": torch.zeros(5)}, {"token_weight": torch.zeros(2)}, {"num_items": 0}], ids=str
)
def test_nothing_to_divide_by_is_zero_not_nan(options: dict[str, object]) -> None:
    rows, _ = rows_and_q(torch.tensor([1, 2]), label_smoothing=0.5, **options)
    assert rows.isfinite().all()
    if "num_items" not in options:
        assert (rows == 0).all()


def test_out_of_range_targets_do_not_read_out_of_the_class_weights() -> None:
    rows, _ = rows_and_q(torch.tensor([7, -3]), weight=torch.ones(5))
    assert rows.isfinite().all()


def test_nan_token_weight_of_an_ignored_token_stays_out() -> None:
    rows, _ = rows_and_q(torch.tensor([1, -100]), token_weight=torch.tensor([1.0, torch.nan]))
    assert torch.equal(rows[:, 0], torch.tensor([1.0, 0]).double())


def test_weightless_tokens_become_ignored() -> None:
    target = torch.tensor([[1, 2], [3, -7]])
    assert ignore_weightless(target, None, -7) is target
    got = ignore_weightless(target, torch.tensor([[0.0, 1], [-0.0, 2]]), -7)
    assert got.tolist() == [[-7, 2], [-7, -7]]


def test_combine_is_the_documented_sum() -> None:
    torch.manual_seed(0)
    stats, rows = torch.rand(5, 4).double(), torch.rand(4, 3).double()
    nll, lse, qz = stats[:3]
    expected = rows[:, 0] * nll + rows[:, 1] * (lse - qz) + rows[:, 2] * lse**2
    torch.testing.assert_close(combine(stats, rows, False), expected)
    torch.testing.assert_close(combine(stats, rows, True), expected.sum())


def test_infinite_q_z_counts_only_where_there_is_smoothing() -> None:
    stats = torch.tensor([[1.0, 1], [2, 2], [-torch.inf, -torch.inf]])
    assert combine(stats, torch.tensor([[1.0, 0, 0], [1, 0.1, 0]]), False).tolist() == [1, torch.inf]


@settings(max_examples=50)
@given(
    n=st.integers(1, 30), parts=st.integers(1, 6), share=st.sampled_from([0.0, 0.3, 0.9]), weighted=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_split_into_micro_batches_gives_the_same(
    n: int, parts: int, share: float, weighted: bool, seed: int
) -> None:
    """Means over parts with the window's `num_items` add up to the mean over all, loss and gradient alike."""
    p = problem(n, 5, 11, torch.float64, share, seed=seed)
    token_weight = p.eighths(n, low=1) if weighted else None
    keep = p.y != -100
    items = (torch.ones(n) if token_weight is None else token_weight)[keep].sum()
    if not keep.any():
        return
    x, w = p.x.requires_grad_(), p.w.requires_grad_()
    whole = linear_cross_entropy(x, w, p.y, token_weight=token_weight)
    total = 0
    for i in torch.arange(n).tensor_split(parts):
        part = linear_cross_entropy(
            x[i], w, p.y[i], num_items=items, token_weight=None if token_weight is None else token_weight[i]
        )
        part.backward()
        total += part.detach()
    torch.testing.assert_close(total, whole.detach())
    for accumulated, expected in zip((x.grad, w.grad), torch.autograd.grad(whole, (x, w)), strict=True):
        torch.testing.assert_close(accumulated, expected)


def test_reductions_agree_with_each_other() -> None:
    p = problem(20, 5, 11, torch.float64, 0.4)
    options = {"token_weight": p.eighths(20), "weight": p.eighths(11, low=1), "label_smoothing": 0.1, "z_loss": 0.01}
    none = cross_entropy(p.z, p.y, reduction="none", **options)
    total = cross_entropy(p.z, p.y, reduction="sum", **options)
    mean = cross_entropy(p.z, p.y, reduction="mean", **options)
    keep = p.y != -100
    torch.testing.assert_close(none.sum(), total)
    torch.testing.assert_close(
        total / (options["token_weight"] * options["weight"][p.y.clamp(0)])[keep].sum().double(), mean
    )
    assert (none[~keep] == 0).all()


def test_token_weight_is_the_loss_times_a_weight() -> None:
    p = problem(20, 5, 11, torch.float64, 0.4)
    token_weight = p.eighths(20)
    plain = F.cross_entropy(p.z, p.y, reduction="none")
    torch.testing.assert_close(
        cross_entropy(p.z, p.y, reduction="none", token_weight=token_weight), plain * token_weight
    )
