"""Errors of loss and gradients against fp64, of everyone: also of those whom the check keeps from the tables of times.

plain       logits of unit variance, half of the tokens without a label
sharp       the same with |z| ~ 30: every p is near 0 or 1, and a rounded logit is a wrong factor
stretches   long runs of ignored tokens: of N only two runs of eight carry a label
tiny 1/n    the denominator is 2^30, as of a huge accumulation window: `num_items` where a loss has it, elsewhere the
            mean scaled by M / 2^30 before backward

The truth is eager in fp64 on the very same values. An error is `|got - truth| / |truth|` in the Frobenius norm; the
report sets it beside eager's own at the same dtype.

    python -m pytest bench/accuracy.py -k bf16 --providers fastft,eager
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import checks, peers
from bench.cases import DTYPES, IGNORE_INDEX, Case, Head, HeadInputs, Inputs, LogitInputs, Logits
from bench.conftest import chosen_providers
from bench.contest import DEVICES, expect, summary
from bench.peers import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Peer, Provider
from bench.rows import ACCURACY, Absence, Accuracy, Record, device_facts

OPS = {"linear_cross_entropy": LINEAR_CROSS_ENTROPY, "cross_entropy": CROSS_ENTROPY}
RUN = 8  # labelled tokens of a stretch


@dataclass(frozen=True)
class Condition:
    name: str
    scale: float = 1.0  # of the logits; a power of two, which rounds nothing
    stretches: bool = False
    num_items: int | None = None


CONDITIONS = (
    Condition("plain"),
    Condition("sharp", scale=32.0),
    Condition("stretches", stretches=True),
    Condition("tiny 1/n", num_items=2**30),
)


def case_of(op: str, dtype: str, device: str, smoke: bool) -> Head | Logits:
    N, D, V = (64, 32, 300) if smoke else (512, 256, 8192)
    if op == "cross_entropy":
        return Logits(op, N, V, dtype, 0.5, device)
    return Head(op, N, D, V, dtype, 0.5, device)


def inputs_of(case: Case, condition: Condition, upcast: torch.dtype | None = None) -> Any:
    """The case's inputs, sharpened and with other labels as the condition wants."""
    made: Inputs = case.inputs(upcast)
    assert isinstance(made, HeadInputs | LogitInputs)
    with torch.no_grad():
        (made.w if isinstance(made, HeadInputs) else made.values).mul_(condition.scale)
    if condition.stretches:
        first = torch.arange(case.N, device=case.device) - case.N // 2
        made.y.random_(case.V, generator=torch.Generator(case.device).manual_seed(1))
        made.y[((first < 0) | (first >= RUN)) & (first < case.N - case.N // 2 - RUN)] = IGNORE_INDEX
    made.reset()
    return made


def outputs(
    provider: Provider, peer: Peer, case: Case, condition: Condition, upcast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Loss and gradients, by name."""
    inputs = inputs_of(case, condition, upcast)
    given = (inputs.x, inputs.w, inputs.y) if isinstance(inputs, HeadInputs) else (inputs.z, inputs.y)
    n = condition.num_items
    if n is not None and peer.num_items:
        value = provider(*given, num_items=n)
    else:
        value = provider(*given) * (1.0 if n is None else int((inputs.y != IGNORE_INDEX).sum()) / n)
    if isinstance(inputs, HeadInputs):
        value.backward()
    else:
        (inputs.dz,) = torch.autograd.grad(value, inputs.z)
    return {"loss": value.detach(), **inputs.left}


def measured(op: str, case: Case, chosen: Collection[str]) -> tuple[list[Record], list[str]]:
    """Records of all conditions, and the names of those who are there and raised."""
    known, broken = OPS[op], list[str]()
    providers, absent = peers.load({name: peer for name, peer in known.items() if name in chosen}, case.device)
    eager = known["eager"].load(case.device)
    made: list[Record] = []
    for condition in CONDITIONS:
        where: dict[str, Any] = {"op": ACCURACY, "case": f"{op} {condition.name}", "shape": case.size}
        inputs = inputs_of(case, condition)
        ignored = round((inputs.y == IGNORE_INDEX).double().mean().item(), 2)
        where |= {"dtype": case.dtype, "ignored": ignored, **device_facts(case.device)}
        truth = outputs(eager, known["eager"], case, condition, torch.float64)
        own = checks.relative_errors(outputs(eager, known["eager"], case, condition), truth)
        for name, provider in providers.items():
            try:
                errors = checks.relative_errors(outputs(provider, known[name], case, condition), truth)
                made.append(Accuracy(provider=name, **where, errors=errors, eager=own))
            except Exception as error:  # whatever a peer raises
                made.append(Absence(provider=name, **where, reason=summary(error)))
                broken.append(name)
    where["case"] = op
    return made + [Absence(provider=name, **where, reason=reason) for name, reason in absent.items()], broken


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_accuracy(
    op: str,
    device: str,
    dtype: str,
    benchmark: BenchmarkFixture,
    pytestconfig: pytest.Config,
    record: Callable[[list[Record]], None],
) -> None:
    case = case_of(op, dtype, device, pytestconfig.getoption("smoke"))
    made, broken = benchmark.pedantic(measured, (op, case, chosen_providers(pytestconfig)), rounds=1)  # type: ignore[no-untyped-call]
    record(made)
    reasons = {record.provider: record.reason for record in made if isinstance(record, Absence)}
    expect(pytestconfig.getoption("smoke"), reasons, broken)
