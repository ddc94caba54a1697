"""Trackers beside log.jsonl: TensorBoard, trackio and Weights & Biases, each through its own library."""

import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastft.dispatch import optional
from fastft.trainer.reporting.log import numbers

TENSORBOARD, IDENTITY = "tensorboard", "tracking.json"  # in the output folder
PROJECT = "fastft"
PARTS = ("prompt", "reference", "completion")  # of a generation
PATIENCE = 60  # seconds that Weights & Biases may take to begin; after that it stays offline


class Trackers:
    """What follows a run while it lasts. One that fails later is warned of by name, once, and left out from then on.

    A resumed run goes on in the tracker's run that it had: what TensorBoard has of steps behind `resumed_step` is
    superseded; trackio and Weights & Biases, which forget nothing, are given those steps again.

    Args:
        names: any of tensorboard, trackio, wandb. Only one process of a run should have any.
        output_dir: TensorBoard's files go to its folder `tensorboard`, those of Weights & Biases to `wandb`, and the
            name of the run, for trackio and Weights & Biases, to `tracking.json`. Their project is fastft, or what
            WANDB_PROJECT says. trackio writes where TRACKIO_DIR says.
        config: settings of the run, fit for JSON.
        resumed_step: where the run starts; 0 begins a new one.

    Raises:
        ValueError, ImportError: see `libraries`.
    """

    def __init__(
        self, names: Sequence[str], output_dir: Path, config: Mapping[str, Any], resumed_step: int = 0
    ) -> None:
        found = libraries(names)
        run = identity(output_dir, bool(resumed_step)) if {"trackio", "wandb"} & found.keys() else ""
        self._trackers: dict[str, Any] = {}
        for name, library in found.items():
            self._guard(name, lambda: self._begin(name, KINDS[name](library, output_dir, run, config, resumed_step)))  # noqa: B023

    def log(self, record: Mapping[str, Any]) -> None:
        """Report a record of log.jsonl: numbers, nested ones as `outer/inner`, what the model wrote. Other lists are
        left out."""
        told = numbers(record, "/")
        step = int(told.pop("step"))
        texts = {
            f"generations/{written['origin']}": {part: str(written.get(part, "")) for part in PARTS}
            for written in record.get("generations", ())
        }
        for name, tracker in list(self._trackers.items()):
            if told:
                self._guard(name, lambda: tracker.scalars(step, told))  # noqa: B023
            if texts and name in self._trackers:
                self._guard(name, lambda: tracker.texts(step, texts))  # noqa: B023

    def close(self) -> None:
        """Write what is left. May be called twice."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)
        self._trackers.clear()

    def _begin(self, name: str, tracker: Any) -> None:
        self._trackers[name] = tracker

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is: a run of days is not lost for it
            self._trackers.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{name} failed and is left out from now on; log.jsonl has it all ({reason})", stacklevel=4)


def libraries(names: Sequence[str]) -> dict[str, Any]:
    """The library of each tracker, imported.

    Raises:
        ValueError: an unknown name.
        ImportError: a library is not installed; says what to install.
    """
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(f"report_to has {unknown[0]!r}; wanted any of {', '.join(KINDS)}")
    return {name: optional(name, f"report_to: {name}") for name in names}


def identity(output_dir: Path, resumed: bool) -> str:
    """The name of a run, for trackers that keep many in one place: a new one, or that of the run that goes on."""
    path = output_dir / IDENTITY
    if resumed and path.is_file():
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    name = f"{output_dir.resolve().name}-{uuid.uuid4().hex[:8]}"
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": name}) + "\n", encoding="utf-8")
    return name


def markdown(parts: Mapping[str, str]) -> str:
    """Texts as blocks of code, in which nothing of theirs is markup."""
    lines = ((f"**{name}**", "", *(f"    {line}" for line in text.splitlines()), "") for name, text in parts.items())
    return "\n".join(line for block in lines for line in block)


class TensorBoard:
    """Event files. A later session supersedes steps from its first on."""

    def __init__(self, library: Any, output_dir: Path, run: str, config: Mapping[str, Any], resumed_step: int) -> None:
        torch_side = optional("torch.utils.tensorboard", "report_to: tensorboard")
        first = resumed_step + 1 if resumed_step else 0
        _after_other_files(output_dir / TENSORBOARD)
        self._writer = torch_side.SummaryWriter(str(output_dir / TENSORBOARD), purge_step=first)
        self._writer.add_text("config", markdown({"config": json.dumps(dict(config), indent=1)}), first)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def texts(self, step: int, texts: Mapping[str, Mapping[str, str]]) -> None:
        for name, parts in texts.items():
            self._writer.add_text(name, markdown(parts), step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A database on this machine, or a Space if trackio's own settings name one."""

    def __init__(self, library: Any, output_dir: Path, run: str, config: Mapping[str, Any], resumed_step: int) -> None:
        self._library = library
        self._run = library.init(
            project=PROJECT, name=run, config=dict(config),
            resume="allow" if resumed_step else "never", embed=False,
        )  # fmt: skip

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def texts(self, step: int, texts: Mapping[str, Mapping[str, str]]) -> None:
        self._run.log({name: self._library.Markdown(markdown(parts)) for name, parts in texts.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Wandb:
    """Weights & Biases, by `step` as a metric, as its own step cannot go back. Offline where it is out of reach."""

    def __init__(self, library: Any, output_dir: Path, run: str, config: Mapping[str, Any], resumed_step: int) -> None:
        self._library = library
        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT), "id": run, "name": run, "dir": str(output_dir),
            "config": dict(config), "resume": "allow",
            "settings": library.Settings(login_timeout=PATIENCE, init_timeout=PATIENCE),
        }  # fmt: skip
        try:
            self._run = library.init(**options)
        except Exception as error:
            warnings.warn(f"wandb stays offline, to be sent by `wandb sync`: {error}", stacklevel=6)
            self._run = library.init(**options, mode="offline")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def texts(self, step: int, texts: Mapping[str, Mapping[str, str]]) -> None:
        rows = [[name, *(parts[part] for part in PARTS)] for name, parts in texts.items()]
        table = self._library.Table(columns=["origin", *PARTS], data=rows)
        self._run.log({"step": step, "generations": table})

    def close(self) -> None:
        self._run.finish()


def _after_other_files(folder: Path) -> None:
    """Wait until a new event file comes last. They are read by name, which begins with the second of their making; of
    one second, number 10 of a process would come before number 9. Never longer than that second, whatever the clock."""
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    newest = max((int(second) for second in seconds if second.isdecimal()), default=0)
    time.sleep(min(1.0, max(0.0, newest + 1 - time.time())))


KINDS: dict[str, Callable[..., Any]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
