"""What a row holds, written down once: a field that changes shows here, and every row that is kept is read."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from bench import rows
from bench.rows import Absence, Accuracy, Row

WHERE = {
    "op": "str", "provider": "str", "case": "str", "shape": "dict[str, int]", "dtype": "str", "ignored": "float",
    "device": "str", "driver": "str", "threads": "int", "torch": "str", "fastft": "str", "taken": "str",
}  # fmt: skip
SCHEMA = {
    Row: WHERE | {
        "ms_min": "float", "ms_median": "float", "rounds": "int", "samples_ms": "list[float]",
        "other_cores": "float | None", "gflops": "float | None", "floor_ms": "float", "floor_share": "float",
        "eager_factor": "float | None", "peak_mib": "float | None", "errors": "dict[str, float]",
        "deviation": "float | None", "gb_per_s": "float | None", "tokens_per_s": "float | None",
        "outside": "float | None",
    },
    Absence: WHERE | {"reason": "str"},
    Accuracy: WHERE | {"errors": "dict[str, float]", "eager": "dict[str, float]"},
}  # fmt: skip
RESULTS = sorted(rows.RESULTS.glob("*/*.jsonl"))
PLACE: dict[str, Any] = {
    "op": "accuracy", "provider": "eager", "case": "plain", "shape": {"N": 4}, "dtype": "fp32", "ignored": 0,
    "device": "some", "driver": "some", "threads": 2, "torch": "2", "fastft": "0", "taken": "2026-01-01T00:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMA, ids=lambda kind: kind.__name__)
def test_fields_and_types_are_those_written_down(kind: type) -> None:
    types = {field.name: getattr(field.type, "__name__", "") for field in fields(kind)}
    whole = {field.name: str(field.type) for field in fields(kind)}
    plain = {"str", "int", "float"}
    assert {name: found if found in plain else whole[name] for name, found in types.items()} == SCHEMA[kind]


@pytest.mark.skipif(not RESULTS, reason="an installation without the results")
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_row_that_is_kept_is_one(path: Path) -> None:
    kind = {rows.ABSENT: Absence, rows.ACCURACY: Accuracy}.get(path.stem, Row)
    loaded = rows.load(path, kind)
    assert loaded
    if kind is not Absence:
        assert {row.op for row in loaded} == {path.stem}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"threads": "2"}, "threads is '2', not int"),
        ({"threads": 2.5}, "threads is 2.5, not int"),
        ({"errors": {"loss": "small"}}, r"errors is \{'loss': 'small'\}, not dict\[str, float\]"),
        ({"ignored": None}, "ignored is None, not float"),
        ({"shape": {"N": 4.5}}, "shape is"),
        ({"speed": 1.0}, "missing or unknown: speed"),
    ],
)
def test_a_line_of_another_type_is_named(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    right = asdict(Accuracy(**PLACE, errors={"loss": 1}, eager={"loss": 0.5}))
    path = tmp_path / "accuracy.jsonl"
    path.write_text(json.dumps(right))
    assert rows.load(path, Accuracy) == [Accuracy(**right)]  # 0 is a float as well
    path.write_text(json.dumps(right) + "\n" + json.dumps(right | changed))
    with pytest.raises(ValueError, match=rf"accuracy\.jsonl:2: not a Accuracy; {reason}"):
        rows.load(path, Accuracy)


def test_a_float_may_be_missing_where_it_says_so() -> None:
    assert rows.fits(None, float | None)
    assert rows.fits([1, 2.5], list[float])
    assert not rows.fits(["1"], list[float])
    assert not rows.fits(True, int)
