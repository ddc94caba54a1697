import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from fastft.trainer.reporting.log import numbers
from fastft.trainer.reporting.trackers import TENSORBOARD, Trackers, markdown

CONFIG = {"model": "tiny", "learning_rate": 1e-3, "freeze": [], "lora": None}
LOSS = {"step": 4, "loss": 2.5, "losses": {"a": 2.0, "b.x": 3.0}, "tokens": {"<t>": {"nll": 0.5}}, "note": "text"}
WRITTEN = {
    "step": 4,
    "generations": [{"origin": "f:1", "prompt": "p <b>", "reference": "r", "completion": "two\nlines"}],
}

needs_trackio = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")


def test_texts_are_blocks_of_code() -> None:
    assert markdown({"prompt": "# a\n<b>", "x": "y"}) == "**prompt**\n\n    # a\n    <b>\n\n**x**\n\n    y\n"


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / TENSORBOARD), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return events


def values(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_numbers_and_texts(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], tmp_path, CONFIG)
    trackers.log(LOSS)
    trackers.log(WRITTEN)
    trackers.close()
    trackers.close()
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "losses/a", "losses/b.x", "tokens/<t>/nll"}
    assert values(events, "losses/b.x") == [(4, 3.0)]
    (text,) = events.Tensors("generations/f:1/text_summary")
    assert text.step == 4
    assert b"    two\n    lines" in text.tensor_proto.string_val[0]
    assert b"learning_rate" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_supersedes_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for start, steps in ((0, range(1, 8)), (4, range(5, 10))):
        trackers = Trackers(["tensorboard"], tmp_path, CONFIG, start)
        for step in steps:
            trackers.log({"step": step, "loss": step + 100.0 * start})
        trackers.close()
    found = values(read(tmp_path), "loss")
    assert found == [(s, s + 400.0 * (s > 4)) for s in range(1, 10)]


def test_a_new_run_supersedes_another_of_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one second are read in the order of their numbers as text: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    for loss in (1.0, 2.0):
        trackers = Trackers(["tensorboard"], tmp_path, CONFIG)
        trackers.log({"step": 0, "loss": loss})
        trackers.close()
    assert values(read(tmp_path), "loss") == [(0, 2.0)]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    trackers = Trackers([], tmp_path / "run", CONFIG)
    trackers.log(LOSS)
    trackers.close()
    assert not list(tmp_path.iterdir())


def test_refuses_unknown_and_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="report_to has 'mlflow'; wanted any of tensorboard, trackio, wandb"):
        Trackers(["mlflow"], tmp_path, CONFIG)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="report_to: tensorboard needs tensorboard: pip install tensorboard"):
        Trackers(["tensorboard"], tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())


class Fake:
    """Takes the place of trackio and wandb, and notes what it is told."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing, self.Markdown, self.Settings = failing, str, SimpleNamespace

    def _note(self, name: str, told: Any) -> "Fake":
        self.calls.append((name, told))
        if name == self.failing:
            raise OSError("disk is full")
        return self

    def init(self, **options: Any) -> "Fake":
        return self._note("init", options)

    def log(self, numbers: Any, step: int | None = None) -> None:
        self._note("log", (numbers, step))

    def define_metric(self, *names: str, **options: str) -> None:
        self._note("define_metric", names)

    def Table(self, columns: list[str], data: list[list[str]]) -> Any:
        return (columns, data)

    def finish(self) -> None:
        self._note("finish", None)

    def told(self, name: str) -> list[Any]:
        return [what for called, what in self.calls if called == name]


@pytest.fixture(params=["trackio", "wandb"])
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_one_that_fails_is_warned_of_once_and_the_others_go_on(
    library: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(failing)
    monkeypatch.setitem(sys.modules, library, fake)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trackers = Trackers([library, "tensorboard"], tmp_path, CONFIG)
        for step in (1, 2):
            trackers.log({"step": step, "loss": float(step)})
        trackers.close()
    told = [str(warning.message) for warning in caught if "offline" not in str(warning.message)]
    assert told == [f"{library} failed and is left out from now on; log.jsonl has it all (OSError: disk is full)"]
    assert len(fake.told("log")) == {"init": 0, "log": 1, "finish": 2}[failing]
    assert values(read(tmp_path), "loss") == [(1, 1.0), (2, 2.0)]


def test_a_resumed_run_is_the_same_run_of_the_tracker(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, library, fake)
    for start in (0, 5, 0):
        trackers = Trackers([library], tmp_path, CONFIG, start)
        trackers.log({**LOSS, "step": start + 1})
        trackers.log(WRITTEN)
        trackers.close()
    names = [options["name"] for options in fake.told("init")]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith(f"{tmp_path.name}-")
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"run": names[2]}
    resumes = [options["resume"] for options in fake.told("init")]
    assert resumes == (["never", "allow", "never"] if library == "trackio" else ["allow"] * 3)
    numbers, step = fake.told("log")[2]
    assert (numbers | {"step": 0})["losses/a"] == 2.0
    assert (step if library == "trackio" else numbers["step"]) == 6


def test_wandb_that_cannot_be_reached_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Fake):
        def init(self, **options: Any) -> Fake:
            if options.get("mode") != "offline":
                raise TimeoutError("no answer")
            return super().init(**options)

    fake = Unreachable()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match="wandb stays offline, to be sent by `wandb sync`: no answer"):
        trackers = Trackers(["wandb"], tmp_path, CONFIG)
    trackers.log(LOSS)
    assert fake.told("log") == [({"step": 4, **numbers(LOSS, "/")}, None)]


PROGRAM = """
import json, sys
from pathlib import Path
from fastft.trainer.reporting.log import numbers
from fastft.trainer.reporting.trackers import Trackers
name, folder, records, written, config = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
for start in (0, 4):
    trackers = Trackers([name], folder, config, start)
    trackers.log({**records, "step": start + 4})
    trackers.log(written)
    trackers.close()
"""


def track(name: str, folder: Path, **environment: str) -> None:
    """Two sessions of one run, in a process of their own, whose threads and hooks end with it."""
    told = [json.dumps(value) for value in (LOSS, WRITTEN, CONFIG)]
    command = [sys.executable, "-W", "error::UserWarning:fastft", "-c", PROGRAM, name, str(folder), *told]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr


@needs_trackio
def test_trackio_itself(tmp_path: Path) -> None:
    environment = {"TRACKIO_DIR": str(tmp_path / "db"), "HOME": str(tmp_path)}
    track("trackio", tmp_path / "run", **environment)
    name = json.loads((tmp_path / "run" / "tracking.json").read_text())["run"]
    program = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"print(json.dumps([S.get_runs('fastft'), S.get_logs('fastft', '{name}')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    runs, logs = json.loads(done.stdout.splitlines()[0])
    assert runs == [name]
    assert [(log["step"], log["losses/b.x"]) for log in logs if "loss" in log] == [(4, 3.0), (8, 3.0)]
    assert "two" in str(next(log for log in logs if "generations/f:1" in log))


@needs_wandb
def test_wandb_itself(tmp_path: Path) -> None:
    track("wandb", tmp_path / "run", WANDB_MODE="offline", HOME=str(tmp_path))
    name = json.loads((tmp_path / "run" / "tracking.json").read_text())["run"]
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files
    assert {file.name for file in files} == {f"run-{name}.wandb"}
    written = b"".join(file.read_bytes() for file in files)
    assert b"losses/b.x" in written
    assert b"generations" in written
