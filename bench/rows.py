"""What one measurement says about itself, and where it is kept.

`bench/results/<date>-<device>/<op>.jsonl` holds one row a line and only grows: the newest row of a case and provider
counts. `absent.jsonl` beside it says who has no row, and why; `accuracy.jsonl` holds errors, without times.
"""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import torch

RESULTS = Path(__file__).parent / "results"
ABSENT, ACCURACY, SCALING = "absent", "accuracy", "scaling"  # files that are not those of one op
COUNTED = ("M", "U")  # in a shape, what follows from the case: supervised tokens, touched rows


@dataclass(frozen=True)
class Where:
    """What was measured, on what."""

    op: str
    provider: str
    case: str  # name of the model whose shape it is, or of a size
    shape: dict[str, int]
    dtype: str
    ignored: float  # share of tokens without a label; 0 where nothing has labels
    device: str
    driver: str  # CUDA driver and runtime, or the instruction set torch uses
    threads: int
    torch: str
    fastft: str  # commit
    taken: str  # UTC


@dataclass(frozen=True)
class Row(Where):
    """One provider on one case. Times in milliseconds, memory in MiB, errors relative (Frobenius norm)."""

    ms_min: float
    ms_median: float
    rounds: int
    samples_ms: list[float]
    other_cores: float | None  # used by other processes meanwhile; None where it is not known
    gflops: float | None  # useful work over the median time, GFLOP/s; None where traffic bounds the op
    floor_ms: float  # the floor's median
    floor_share: float  # 1 is the floor itself
    eager_factor: float | None  # how many times as fast as eager, or as transformers; None where that did not run
    peak_mib: float | None  # beyond inputs, a head's gradients, a table's state; a trainer's whole; None: not measured
    errors: dict[str, float]  # of each output against fp64, at the reduced size; of a trainer's losses, transformers'
    deviation: float | None  # of the gradients from eager's, at full size; of rows read, from those it should equal
    gb_per_s: float | None = None  # the floor's traffic over the median time, GB/s; None where arithmetic bounds the op
    tokens_per_s: float | None = None  # of a trainer, padding left out; the median over rounds
    outside: float | None = None  # share of its step outside model, loss, backward and the optimizer's step; the median


@dataclass(frozen=True)
class Absence(Where):
    """A provider that has no row on this case."""

    reason: str


@dataclass(frozen=True)
class Accuracy(Where):
    """How far one provider is from fp64, relative (Frobenius norm); also of those whom the check keeps from a `Row`."""

    errors: dict[str, float]  # of each output
    eager: dict[str, float]  # eager's own, at the same dtype, on the same values


Record = Row | Absence | Accuracy
Kind = TypeVar("Kind", Row, Absence, Accuracy)


def key(record: Record) -> tuple[object, ...]:
    """What a newer record of the same kind replaces."""
    size = tuple(sorted(record.shape.items()))
    return (record.op, record.device, record.case, size, record.dtype, record.ignored, record.provider)


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    model = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def device_facts(device: str) -> dict[str, Any]:
    """The part of a record that the machine and the checkout determine."""
    return {
        "device": device_name(device),
        "driver": driver(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fastft": commit(),
        "taken": now(),
    }


def driver(device: str) -> str:
    if not device.startswith("cuda"):
        return torch.backends.cpu.get_cpu_capability()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return f"driver {_output(query).splitlines()[0]}, CUDA {torch.version.cuda}"


def commit() -> str:
    """The checkout's short commit, with `+` where tracked files but for results differ from it; or FASTFT_COMMIT's
    word."""
    if named := os.environ.get("FASTFT_COMMIT"):
        return named
    revision = _output(["git", "rev-parse", "--short=10", "HEAD"])
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results"])
    return revision + ("+" if changed not in ("", "unknown") else "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def folder(device: str, root: Path = RESULTS) -> Path:
    """Today's folder for this device, named `<date>-<device>`."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return root / f"{datetime.date.today().isoformat()}-{name}"


def newest(root: Path = RESULTS) -> Path:
    """The folder of rows whose name has the latest date, the last by name of several.

    Raises `FileNotFoundError` where there is none.
    """
    dated = {path.parent for path in root.glob("*/*.jsonl") if re.match(r"\d{4}-\d\d-\d\d-", path.parent.name)}
    if not dated:
        raise FileNotFoundError(f"{root}: no results yet; make some with pytest bench/<op>.py --record")
    return max(dated, key=lambda path: path.name)


def append(records: Iterable[Record], root: Path = RESULTS) -> None:
    """Adds each record to the file of its op and device."""
    for record in records:
        name = ABSENT if isinstance(record, Absence) else record.op
        path = folder(record.device, root) / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def load(path: Path, kind: type[Kind]) -> list[Kind]:
    """The newest record of each key in a file, in the order in which the keys first appear.

    A line from before a field with a default was there lacks it. Raises `ValueError`, naming file, line and fields, for
    a line that is not a record of this kind: a field missing, unknown, or of another type than the class says.
    """
    newest: dict[tuple[object, ...], Kind] = {}
    known = {field.name: field.type for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        values = json.loads(line)
        if odd_ones := (needed - values.keys()) | (values.keys() - known.keys()):
            odd = ", ".join(sorted(odd_ones))
            raise ValueError(f"{path}:{number}: not a {kind.__name__}; missing or unknown: {odd}")
        for name, value in values.items():
            if not fits(value, known[name]):
                wanted = known[name] if get_args(known[name]) else getattr(known[name], "__name__", known[name])
                raise ValueError(f"{path}:{number}: not a {kind.__name__}; {name} is {value!r}, not {wanted}")
        record = kind(**values)
        newest[key(record)] = record
    return list(newest.values())


def fits(value: object, kind: Any) -> bool:
    """Whether a value out of JSON, which may write a float without its point, is of a field's type."""
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return any(fits(value, each) for each in inner)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    return type(value) is kind or (kind is float and type(value) is int) or (kind is type(None) and value is None)
