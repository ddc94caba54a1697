"""The benchmark of tables: its batches, the bytes of its floor, state that goes on, whom it refuses, rows and pages."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import benchmarked, records
from torch import Tensor, nn

from bench import checks, peers, report, rows
from bench.embedding import OP, floor, step
from bench.peers import EMBEDDING, Peer
from bench.shapes import TABLES, table_cases
from bench.tables import BATCHES, Start, Table, Training, batches, ranked, traffic

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = Table("tiny", 64, 32, 300)
OPTIMIZERS = ("eager", "sparse-adam", "fastft-lazy", "fastft")
FAST = (*OPTIMIZERS, "rows-by-hand")  # need nothing that takes long to import


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Adds a provider to the table."""

    def add(name: str, start: Start, **options: Any) -> None:
        monkeypatch.setitem(EMBEDDING, name, Peer(lambda device: start, **options))

    return add


def adamw(table: Tensor, **options: Any) -> Training:
    embedding = nn.Embedding(*table.shape, _weight=table)
    return Training(embedding, torch.optim.AdamW([embedding.weight], **{**peers.ADAMW, **options}), lambda: table)


def test_every_provider_has_a_row_or_a_reason() -> None:
    timed, absent = records(OP, TINY)
    assert timed.keys() | absent.keys() == EMBEDDING.keys() | {"floor"}
    assert not timed.keys() & absent.keys()
    assert timed.keys() >= {*FAST, "rows-fastft", "floor"}, absent
    assert absent.keys() <= {"fbgemm", "rows-peft"}


def test_what_a_row_says() -> None:
    timed, _ = records(OP, TINY, chosen=OPTIMIZERS)
    row = timed["fastft"]
    touched = round(sum(len(set(ids.tolist())) for ids in batches(64, 300)) / BATCHES)
    assert (row.op, row.case, row.dtype, row.ignored) == ("embedding", "tiny", "fp32", 0.0)
    assert row.shape == {"N": 64, "D": 32, "V": 300, "U": touched}
    assert row.gflops is None
    assert row.gb_per_s == pytest.approx((11 * touched + 2 * 64) * 32 * 4 / (row.ms_median / 1e3) / 1e9)
    assert row.errors.keys() == {"rows", "moved"}
    assert all(0 < error < 1e-5 for error in row.errors.values())
    assert timed["eager"].deviation is timed["sparse-adam"].deviation is None
    for name in ("fastft", "fastft-lazy"):
        assert timed[name].deviation == pytest.approx(0, abs=1e-5)
    assert timed["fastft"].errors["moved"] != timed["fastft-lazy"].errors["moved"]


def test_the_floor_copies_the_bytes_of_the_touched_rows() -> None:
    call = floor(TINY.inputs())
    with torch.profiler.profile() as profile:
        written = call()
    assert {event.name for event in profile.events() if event.name.startswith("aten::")} == {"aten::copy_"}
    forward, backward, adam = 3 * 10 + 16, 16 + 10, 4 * 10 + 3 * 10  # rows, of 10 different ones at 16 positions
    assert traffic(N=16, D=8, U=10, itemsize=4) == (forward + backward + adam) * 8 * 4
    assert 2 * written.nbytes == TINY.traffic == traffic(64, 32, TINY.shape["U"], 4)


def test_batches_are_zipf_distributed() -> None:
    ids, V = batches(4096, 2**15), 2**15
    assert ids.shape == (BATCHES, 4096)
    assert not torch.equal(ids[0], ids[1])
    counts = torch.bincount(ids.flatten(), minlength=V)[ranked(V)].double()
    harmonic = (1 / torch.arange(1, V + 1, dtype=torch.float64)).sum()
    expected = ids.numel() / (torch.arange(1, V + 1, dtype=torch.float64) * harmonic)
    for part in (slice(0, 1), slice(1, 10), slice(10, 1000), slice(1000, V)):
        assert counts[part].sum() == pytest.approx(expected[part].sum().item(), rel=0.05)
    assert sorted(ranked(V).tolist()) == list(range(V))


@pytest.mark.parametrize("case", [TINY, replace(TINY, warm_up=8)])
def test_steps_go_on_from_the_last_ones_state(case: Table, provider: Callable[..., None]) -> None:
    """Everyone has taken as many steps when it is timed, with the same batches in the same order."""
    seen: dict[int, list[Tensor]] = {}

    def watched(table: Tensor, chosen: list[int]) -> Training:
        training, given = adamw(table), seen.setdefault(len(seen), [])
        return training._replace(lookup=lambda ids: (given.append(ids), training.lookup(ids))[1])

    provider("watched", watched)
    timed, absent = records(OP, case, chosen=("eager", "watched", "fastft"), cap=10.0)
    assert timed.keys() == {"floor", "eager", "watched", "fastft"}, absent
    check, race = seen.values()
    assert torch.equal(torch.stack(check), batches(TINY.N, TINY.V))
    assert len(race) == case.warm_up + 1 + 3
    assert torch.equal(torch.stack(race), torch.stack([batches(TINY.N, TINY.V)[k % BATCHES] for k in range(len(race))]))
    assert timed["fastft"].deviation == pytest.approx(0, abs=1e-5)


def test_batches_come_round_again() -> None:
    inputs = TINY.inputs()
    assert not torch.equal(inputs.batch(0)[1], inputs.batch(1)[1])
    for one, other in zip(inputs.batch(3), inputs.batch(3 + BATCHES), strict=True):
        assert torch.equal(one, other)
    call = step(peers.eager_table("cpu"), inputs)
    with pytest.raises(RuntimeError, match="no rows"):
        inputs.left  # noqa: B018
    call()
    (training,) = inputs.trainings
    assert torch.equal(inputs.left["rows"], inputs.initial[inputs.ids[0]])
    assert not torch.equal(training.table(), inputs.initial)
    inputs.reset()
    assert [p.grad for group in training.optimizer.param_groups for p in group["params"]] == [None]


class Forgets(torch.optim.AdamW):
    """Steps the rows that have a gradient only."""

    def step(self, closure: Any = None) -> None:
        (p,) = self.param_groups[0]["params"]
        before, idle = p.detach().clone(), (p.grad == 0).all(1)
        super().step()
        p.data[idle] = before[idle]


@pytest.mark.parametrize(
    ("start", "like", "reason"),
    [
        (lambda table, chosen: adamw(table, lr=1.001e-3), "eager", "error of rows against fp64"),
        (lambda table, chosen: adamw(table, weight_decay=0.0), "eager", "error of"),
        (lambda table, chosen: adamw(table), "sparse-adam", "; sparse-adam's own is"),
        (lambda table, chosen: adamw(table)._replace(lookup=lambda ids: table[ids]), "eager", "RuntimeError"),
        (lambda table, chosen: table.undefined, "eager", "AttributeError"),
    ],
    ids=["faster", "no decay", "dense", "detached", "raises"],
)
def test_a_wrong_provider_has_no_row(start: Start, like: str, reason: str, provider: Callable[..., None]) -> None:
    provider("wrong", start, like=like)
    timed, absent = records(OP, TINY, chosen=("wrong", "eager"))
    assert timed.keys() == {"floor", "eager"}
    assert reason in absent["wrong"]


def test_rows_that_do_not_catch_up_are_no_dense_adamw(provider: Callable[..., None]) -> None:
    """What tells fastft from a lazy optimizer, whose momentum and decay stop where the gradient does."""

    def forgetful(table: Tensor, chosen: list[int]) -> Training:
        embedding = nn.Embedding(*table.shape, _weight=table)
        return Training(embedding, Forgets([embedding.weight], **peers.ADAMW), lambda: table)

    provider("forgetful", forgetful)
    _, absent = records(OP, TINY, chosen=("forgetful",))
    assert "error of" in absent["forgetful"]


def test_a_provider_that_is_wrong_at_full_size_only_has_no_row(provider: Callable[..., None]) -> None:
    case = replace(TINY, N=400, V=3000)

    def drifts(table: Tensor, chosen: list[int]) -> Training:
        return adamw(table, lr=2e-3 if len(table) > case.reduced().V else 1e-3)

    provider("drifting", drifts)
    timed, absent = records(OP, case, chosen=("drifting", "eager"))
    assert timed.keys() == {"floor", "eager"}
    assert "its rows at full size" in absent["drifting"]


def test_reduced_size_keeps_what_matters() -> None:
    reduced = Table("qwen2.5", 4096, 896, 151936).reduced()
    assert (reduced.D, reduced.dtype) == (896, "fp32")
    assert reduced.N * 8 <= reduced.V <= 2048  # rows fall behind


def test_both_precisions_start_from_the_same() -> None:
    one, other = TINY.inputs(), TINY.inputs(torch.float64)
    assert other.initial.dtype == other.noise.dtype == torch.float64
    assert torch.equal(one.initial.double(), other.initial)
    assert torch.equal(one.noise.double(), other.noise)
    assert torch.equal(one.ids, other.ids)
    assert one.chosen == other.chosen == ranked(TINY.V)[[1, 10]].tolist()


def test_the_grid() -> None:
    cpu, early = table_cases({"cpu": TABLES["cpu"]})
    assert (cpu.name, cpu.V, cpu.D, cpu.N) == ("qwen2.5", 151936, 896, 4096)
    assert cpu.warm_up == BATCHES, "no row is new"
    assert early == replace(cpu, name="qwen2.5-new-rows", warm_up=8)
    (gpu,) = table_cases({"cuda": TABLES["cuda"]})
    assert (gpu.V, gpu.D, gpu.N, gpu.device) == (151936, 4096, 8192, "cuda")


def test_chosen_rows_move_alone() -> None:
    for name in ("rows-by-hand", "rows-fastft"):
        inputs = TINY.inputs()
        call = step(EMBEDDING[name].load("cpu"), inputs)
        for _ in range(3):
            call()
        moved = (inputs.trainings[0].table().detach() != inputs.initial).any(1)
        assert sorted(moved.nonzero()[:, 0].tolist()) == sorted(inputs.chosen)


def test_smoke_run_and_report(tmp_path: Path) -> None:
    """The whole way: pytest, rows on disk, page and pictures."""
    printed = benchmarked("embedding", "--smoke", "-k", "cpu-tiny", "--cap", "0.01", "--record", str(tmp_path))
    assert "2 passed" in printed
    assert "GB/s" in printed
    assert "  U=" in printed

    (path,) = tmp_path.glob("*/embedding.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.keys() == {field.name for field in fields(rows.Row)} for line in lines)
    absent = [json.loads(line) for line in (path.parent / "absent.jsonl").read_text().splitlines()]
    assert {line["provider"] for line in lines + absent} == {*EMBEDDING, "floor"}
    page = report.write(path.parent).read_text()
    assert "| case | N x D x V | dtype | U | ms | GB/s | x floor | vs eager |" in page
    assert re.search(r"^\| tiny \| 64 x 32 x 300 \| fp32 \| \d+ \|", page, re.MULTILINE)
    assert "## GB/s of the touched rows\n" in page
    assert "## Largest relative error of rows and moved against" in page
    assert "ignored" not in page
    for picture in ("time", "memory"):
        assert (path.parent / f"embedding-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_refusal_names_whom_it_should_equal() -> None:
    own, bound = {"rows": 1e-3}, {"rows": 1e-6}
    assert "sparse-adam's own is 1.00e-06" in str(checks.refusal(own, bound, torch.float32, "sparse-adam"))
