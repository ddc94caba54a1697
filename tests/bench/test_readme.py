"""README's measured table is what the rows in bench/results/ say."""

import re
from pathlib import Path

import pytest

from bench.rows import RESULTS, Row, load

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


def measured() -> tuple[str, Path]:
    """README's section, and the folder of the rows it names."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Measured") : text.index("## File map")]
    if not (ROOT / "bench/results").is_dir():
        pytest.skip("an installation without the results")
    place = re.search(r"bench/results/[0-9a-z-]+/", section)
    assert place is not None
    return section, ROOT / place[0]


def test_the_table_is_measured() -> None:
    text, folder = measured()
    rows = load(folder / "linear_cross_entropy.jsonl", Row)
    by = {(row.case, row.dtype, row.provider): row for row in rows if row.ignored == IGNORED}
    expected = [line(row, by[case, dtype, "eager"]) for (case, dtype, name), row in by.items() if name == "fastft"]
    assert len(expected) >= 8
    shown = [
        entry for entry in text.splitlines() if entry.startswith("|") and "x floor" not in entry and "---" not in entry
    ]
    assert sorted(shown) == sorted(expected)


def newest(pattern: str) -> Path:
    """The newest folder of results whose device is, or is not, one of NVIDIA's."""
    return max(
        (path.parent for path in RESULTS.glob("*/*.jsonl") if re.search(pattern, path.parent.name)),
        key=lambda path: path.name,
        default=Path("none"),
    )


def test_the_pictures_are_the_newest() -> None:
    """At least one of each kind of device that has results, each in the newest folder of its kind."""
    text, _ = measured()
    shown = [ROOT / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)]
    kinds = {newest(r"^(?!.*nvidia)"), newest("nvidia")} - {Path("none")}
    assert {picture.parent for picture in shown} == kinds
    for picture in shown:
        assert picture.read_bytes().startswith(b"\x89PNG"), picture
    assert "make bench " in text
    assert "bench/gpu.sh" in text


def test_the_sentences_are_measured() -> None:
    text, folder = measured()
    logits = load(folder / "cross_entropy.jsonl", Row)
    loss = {r.provider: r for r in logits if (r.case, r.dtype, r.ignored) == ("smollm2", "bf16", IGNORED)}
    table = {r.provider: r for r in load(folder / "embedding.jsonl", Row) if r.case == "qwen2.5"}

    def times(rows: dict[str, Row], peer: str, name: str = "fastft") -> float:
        ours, theirs = rows[name].eager_factor, rows[peer].eager_factor
        assert ours is not None
        assert theirs is not None
        return ours / theirs

    shape, head = table["fastft"].shape, loss["fastft"].shape
    sentences = (
        f"Given logits, {head['N']} x {head['V']} bf16 at 85 %: {times(loss, 'eager'):.1f} times as fast as eager, "
        f"{times(loss, 'torch-compile'):.1f} times as `torch.compile`.",
        f"A step of a table of {shape['V']:,} x {shape['D']} that {shape['N']:,} tokens read "
        f"(lookup, backward, AdamW): {times(table, 'eager'):.1f} times as fast as dense, "
        f"{times(table, 'sparse-adam'):.1f} times as `SparseAdam` (another optimizer), "
        f"{1 / table['fastft'].floor_share:.1f} times the time of a copy of the touched bytes.",
        f"Two rows of it alone: {times(table, 'rows-peft', 'rows-fastft'):.0f} times as fast as PEFT.",
    )
    for sentence in sentences:
        assert sentence in " ".join(text.split())
