"""Bad input: which error, and that it names the argument, what was got and what is wanted."""

import inspect
import sys
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from fastft import dispatch
from fastft.losses import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    LossStats,
    arguments,
    cross_entropy,
    linear_cross_entropy,
)
from losses.cases import problem

N, D, V = 6, 5, 7
WRONG_TYPE = (TypeError, ValueError)
Case = tuple[dict[str, Any], type[Exception] | tuple[type[Exception], ...], str]
BOTH: list[Case] = [
    ({"target": torch.zeros(N, dtype=torch.int32)}, TypeError, r"torch.int32; expected int64 class.*target.long\(\)"),
    ({"target": torch.zeros(N, dtype=torch.bool)}, TypeError, r"target has dtype torch.bool; expected int64"),
    ({"target": [1, 2, 3]}, TypeError, r"target is a list; expected a Tensor"),
    ({"target": torch.zeros(N, dtype=torch.int64, device="meta")}, ValueError, r"target is on meta, input is on cpu"),
    ({"input": [[1.0]]}, TypeError, r"input is a list; expected a Tensor"),
    ({"input": torch.ones(N, D, dtype=torch.int64)}, TypeError, r"input has dtype torch.int64; expected float16"),
    ({"input": torch.ones(N, D, dtype=torch.complex64)}, TypeError, r"input has dtype torch.complex64; expected"),
    ({"weight": torch.ones(V + 1)}, ValueError, r"weight has shape \(8,\); expected \(7,\), one value per class"),
    ({"weight": torch.ones(V, 1)}, ValueError, r"weight has shape \(7, 1\); expected \(7,\)"),
    ({"weight": torch.ones(V, dtype=torch.int64)}, TypeError, r"weight has dtype torch.int64; expected float16"),
    ({"weight": [1.0] * V}, TypeError, r"weight is a list; expected a Tensor"),
    ({"weight": torch.ones(V, device="meta")}, ValueError, r"weight is on meta, input is on cpu"),
    ({"token_weight": torch.ones(N + 1)}, ValueError, r"token_weight has shape \(7,\); expected \(6,\), that of"),
    ({"token_weight": [1.0] * N}, TypeError, r"token_weight is a list; expected a float Tensor"),
    ({"token_weight": torch.ones(N, requires_grad=True)}, ValueError, r"token_weight requires grad.*detach"),
    ({"token_weight": torch.ones(N, device="meta")}, ValueError, r"token_weight is on meta"),
    ({"reduction": "average"}, ValueError, r"reduction is 'average'; expected 'mean', 'sum' or 'none'"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5; expected a number in \[0, 1\]"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing is -0.1"),
    ({"label_smoothing": float("nan")}, ValueError, r"label_smoothing is nan"),
    ({"softcap": 0.0}, ValueError, r"softcap is 0.0; expected a positive number, or None"),
    ({"softcap": -30.0}, ValueError, r"softcap is -30.0"),
    ({"softcap": float("inf")}, ValueError, r"softcap is inf"),
    ({"logit_scale": float("inf")}, ValueError, r"logit_scale is inf; expected a finite"),
    ({"logit_scale": torch.tensor(2.0)}, ValueError, r"logit_scale is tensor\(2\.\); expected a finite Python number"),
    ({"z_loss": float("nan")}, ValueError, r"z_loss is nan"),
    ({"num_items": 0}, ValueError, r"num_items is 0; expected a positive number"),
    ({"num_items": -3.0}, ValueError, r"num_items is -3.0"),
    ({"num_items": torch.ones(2)}, ValueError, r"num_items has shape \(2,\); expected a number or one-element Tensor"),
    ({"num_items": 5, "reduction": "sum"}, ValueError, r"num_items replaces the mean's denominator.*'sum'"),
    ({"backend": "gpu"}, ValueError, r"backend is 'gpu'; expected 'auto' or one of cuda, triton, cpu, reference"),
    ({"logit_scale": "1"}, WRONG_TYPE, r"logit_scale is '1'; expected a finite Python number"),
    ({"ignore_index": 1.5}, WRONG_TYPE, r"ignore_index is 1\.5; expected"),
    ({"label_smoothing": "0.1"}, WRONG_TYPE, r"label_smoothing is '0\.1'; expected"),
    ({"softcap": "30"}, WRONG_TYPE, r"softcap is '30'; expected"),
    ({"num_items": "many"}, WRONG_TYPE, r"num_items is 'many'; expected"),
    ({"token_weight": torch.ones(N, dtype=torch.complex64)}, TypeError, r"token_weight has dtype torch.complex64"),
]  # fmt: skip
LOGITS: list[Case] = [
    ({"target": torch.zeros(N + 1, dtype=torch.int64)}, ValueError, r"input \(6, 7\), target \(7,\); expected \("),
    ({"input": torch.tensor(1.0)}, ValueError, r"shapes do not fit: input \(\), target \(6,\)"),
    ({"input": torch.ones(2, 3, 4, 5)}, ValueError, r"shapes do not fit"),
    ({"target": torch.ones(N, V + 1)}, ValueError, r"target has shape \(6, 8\); expected \(6, 7\), class"),
]  # fmt: skip
HEAD: list[Case] = [
    ({"target": torch.zeros(N + 1, dtype=torch.int64)}, ValueError, r"target has shape \(7,\); expected \(6,\), that"),
    ({"input": torch.ones(N, D + 1)}, ValueError, r"input has shape \(6, 6\); expected \(\.\.\., 5\), linear_weight"),
    ({"input": torch.tensor(1.0)}, ValueError, r"input has shape \(\); expected \(\.\.\., 5\)"),
    ({"linear_weight": torch.ones(V, D, 2)}, ValueError, r"linear_weight has shape \(7, 5, 2\); expected \(V, D\)"),
    ({"linear_weight": torch.ones(V, D).bfloat16()}, TypeError, r"linear_weight has dtype torch.bfloat16, input has"),
    ({"linear_weight": torch.ones(V, D, device="meta")}, ValueError, r"linear_weight is on meta, input is on cpu"),
    ({"linear_weight": None}, TypeError, r"linear_weight is a NoneType; expected a Tensor"),
    ({"linear_bias": torch.ones(V - 1)}, ValueError, r"linear_bias has shape \(6,\); expected \(7,\), one value"),
    ({"linear_bias": torch.ones(V).double()}, TypeError, r"linear_bias has dtype torch.float64, input has"),
    ({"valid": [1, 2]}, TypeError, r"valid is list; expected a 1-d int64 Tensor of positions"),
    ({"valid": torch.ones(N, dtype=torch.bool)}, TypeError, r"valid is torch.bool \(6,\); expected a 1-d int64"),
    ({"valid": torch.tensor([[1, 2]])}, TypeError, r"valid is torch.int64 \(1, 2\)"),
    ({"valid": torch.tensor([2, 1])}, ValueError, r"valid must ascend, each position once, within the 6 positions"),
    ({"valid": torch.tensor([1, 1])}, ValueError, r"valid must ascend"),
    ({"valid": torch.tensor([0, 6])}, ValueError, r"valid must ascend, each position once, within the 6 positions"),
    ({"valid": torch.tensor([-1, 2])}, ValueError, r"valid must ascend"),
    ({"memory_budget": -1}, ValueError, r"memory_budget is -1; expected"),
    ({"memory_budget": "1G"}, WRONG_TYPE, r"memory_budget is '1G'; expected"),
]  # fmt: skip


def call(head: bool, **given: Any) -> Any:
    p = problem(N, D, V)
    tensors = {"input": p.x, "linear_weight": p.w} if head else {"input": p.z}
    return (linear_cross_entropy if head else cross_entropy)(**{**tensors, "target": p.y, **given})


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(*case, id=f"{i}-{','.join(case[0])}") for i, case in enumerate(cases)]


@pytest.mark.parametrize(("given", "error", "text"), named(LOGITS + BOTH))
def test_cross_entropy(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(False, **given)


@pytest.mark.parametrize(("given", "error", "text"), named(HEAD + BOTH))
def test_linear_cross_entropy(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(True, **given)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(
    "given", [{"token_weight": torch.ones(N)}, {"z_loss": 0.1}, {"num_items": 3}, {"return_stats": True}], ids=",".join
)
def test_options_without_meaning_for_class_probabilities(head: bool, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} goes with class indices"):
        call(head, target=torch.full((N, V), 1 / V), **given)


OUT_OF_RANGE = [-1, -101, V, 10**9, -(2**63), 2**63 - 1]


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch, backend: str) -> str:
    """A backend whose kernel may not be called; on a GPU targets are looked at when asked for."""
    monkeypatch.setenv("FASTFT_CHECK", "1")
    module, _ = dispatch.load("cross_entropy", backend)

    def called(*args: Any) -> Tensor:
        raise AssertionError("the kernel ran")

    monkeypatch.setattr(module, "cross_entropy", called)
    return backend


@pytest.mark.parametrize("value", OUT_OF_RANGE)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_target_out_of_range(value: int, head: bool, reduction: str, untouched: str) -> None:
    """Position in the flattened target, value and range, before anything is written."""
    p = problem(N, D, V)
    y = p.y.clone()
    y[1], y[4] = -100, value
    text = rf"target\[4\] \(flattened\) is {value}; expected a class in 0\.\.6 or ignore_index=-100"
    with pytest.raises(IndexError, match=text):
        call(head, target=y, reduction=reduction, backend=untouched)


@pytest.mark.parametrize("budget", [None, 2 * V * 4])
@pytest.mark.parametrize("valid", [None, torch.tensor([0, 2, 5])])
def test_target_out_of_range_in_the_last_chunk(budget: int | None, valid: Tensor | None, untouched: str) -> None:
    p = problem(N, D, V)
    x, w, y = p.x.requires_grad_(), p.w.requires_grad_(), p.y.clone()
    y[5], y[1] = 99, -100
    with pytest.raises(IndexError, match=r"target\[5\] \(flattened\) is 99"):
        linear_cross_entropy(x, w, y, memory_budget=budget, valid=valid, backend=untouched)


def test_target_out_of_range_in_several_dimensions(untouched: str) -> None:
    p = problem(N, D, V)
    y = p.y.reshape(2, 3).clone()
    y[1, 2] = 8
    with pytest.raises(IndexError, match=r"target\[5\] \(flattened\) is 8"):
        call(True, input=p.x.reshape(2, 3, D), target=y, backend=untouched)
    with pytest.raises(IndexError, match=r"target\[5\] \(flattened\) is 8"):
        call(False, input=p.z.reshape(2, 3, V), target=y, backend=untouched)


@pytest.mark.parametrize("head", [False, True])
def test_minus_100_is_out_of_range_where_it_is_not_ignored(head: bool) -> None:
    with pytest.raises(IndexError, match=r"is -100; expected a class in 0\.\.6 or ignore_index=3"):
        call(head, target=torch.tensor([0, 3, -100, 1, 2, 3]), ignore_index=3)


@pytest.mark.parametrize("head", [False, True])
def test_a_weightless_token_may_have_any_target(head: bool) -> None:
    """As an ignored one: nothing of it is read."""
    token_weight = torch.ones(N)
    token_weight[2] = 0
    target = torch.tensor([0, 3, 99, 1, 2, 3])
    assert call(head, target=target, token_weight=token_weight).isfinite()


def test_off_the_cpu_targets_are_read_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking costs a synchronisation there. A meta tensor stands for a GPU's: it cannot be looked at."""
    target = torch.zeros(3, dtype=torch.int64, device="meta")
    for value in (None, "0", ""):
        if value is None:
            monkeypatch.delenv("FASTFT_CHECK", raising=False)
        else:
            monkeypatch.setenv("FASTFT_CHECK", value)
        arguments.targets_in_range(target, 5, -100, None)
    monkeypatch.setenv("FASTFT_CHECK", "1")
    with pytest.raises(RuntimeError, match="meta"):
        arguments.targets_in_range(target, 5, -100, None)


@pytest.mark.parametrize("head", [False, True])
def test_a_backend_that_refuses_says_why(head: bool) -> None:
    doubles = {"input": torch.ones(N, D if head else V).double()}
    if head:
        doubles["linear_weight"] = torch.ones(V, D).double()
    with pytest.raises(
        NotImplementedError, match=r"cross_entropy: no backend takes these inputs\n  cpu: dtype is torch\.float64"
    ):
        call(head, **doubles, backend="cpu")
    assert call(head, **doubles).dtype == torch.float64


@pytest.mark.parametrize("budget", [None, 1])
def test_an_unknown_backend_is_refused_before_the_head_runs(budget: int | None) -> None:
    with pytest.raises(ValueError, match="backend is 'tpu'"):
        call(True, backend="tpu", memory_budget=budget, target=torch.full((N,), -100))


def test_modules_refuse_unknown_options() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'smoothing'; expected .*label_smoothing"):
        CrossEntropyLoss(smoothing=0.1)
    with pytest.raises(TypeError, match=r"unknown option 'softcapp'; expected .*memory_budget.*softcap"):
        LinearCrossEntropyLoss(D, V, softcapp=3.0)
    with pytest.raises(TypeError, match=r"unknown option 'memory_budget'"):
        CrossEntropyLoss(memory_budget=1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
@pytest.mark.parametrize("function", [cross_entropy, linear_cross_entropy])
def test_overloads_say_what_the_signature_says(function: Any) -> None:
    """They spread a class of types in place of most keywords: none missing, none too many, each of the same type."""

    def types(function: Any) -> dict[str, Any]:
        return {name: kind.annotation for name, kind in inspect.signature(function).parameters.items()}

    plain, with_stats = typing.get_overloads(function)
    for overload, stats, result in ((plain, False, Tensor), (with_stats, True, tuple[Tensor, LossStats])):
        said = types(overload)
        (spread,) = typing.get_args(said.pop("options"))
        assert said.pop("return_stats") == typing.Literal[stats]
        assert said | typing.get_type_hints(spread) | {"return_stats": bool} == types(function)
        assert inspect.signature(overload).return_annotation == result
