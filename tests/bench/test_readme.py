"""README's measured table is what the rows in bench/results/ say."""

import re
from pathlib import Path

import pytest

from bench.rows import Row, load

ROOT = Path(__file__).parents[2]
IGNORED = 0.85


def line(row: Row, eager: Row) -> str:
    """One line of the table."""
    size = " x ".join(str(row.shape[axis]) for axis in "NDV")
    assert row.eager_factor is not None
    assert row.peak_mib is not None
    assert eager.peak_mib is not None
    factors = f"{row.eager_factor:.1f} | {1 / row.floor_share:.2f}"
    return f"| {row.case} | {size} | {row.dtype} | {factors} | {row.peak_mib:.0f} | {eager.peak_mib:.0f} |"


def test_the_table_is_measured() -> None:
    text = (ROOT / "README.md").read_text()
    place = re.search(r"bench/results/[0-9a-z-]+/", text[text.index("## Measured") : text.index("## File map")])
    if not (ROOT / "bench/results").is_dir():
        pytest.skip("an installation without the results")
    assert place is not None
    rows = load(ROOT / place[0] / "linear_cross_entropy.jsonl", Row)
    by = {(row.case, row.dtype, row.provider): row for row in rows if row.ignored == IGNORED}
    expected = [line(row, by[case, dtype, "eager"]) for (case, dtype, name), row in by.items() if name == "fastft"]
    assert len(expected) >= 8
    shown = [
        entry for entry in text.splitlines() if entry.startswith("|") and "x floor" not in entry and "---" not in entry
    ]
    assert sorted(shown) == sorted(expected)
