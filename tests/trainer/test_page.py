import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fastft.trainer.inspection.page import STYLE as OTHER_STYLE
from fastft.trainer.reporting.page import charts, page, write_page
from fastft.trainer.reporting.rendering import rows
from fastft.trainer.reporting.report import Generation, Report

EVIL = "<script>alert('&1')</script>"
VOID = {"meta", "wbr", "br", "path", "use"}
LOSSES = [
    {
        "step": step, "loss": 3.0 - step / 20, "losses": {EVIL: 1.0, "b": 2.0 - step / 30}, "learning_rate": 1e-4,
        "grad_norm": 0.5, "tokens_per_second": 900.0, "supervised_tokens_per_second": 300.0, "mfu": 0.25,
    }
    for step in range(5, 41, 5)
]  # fmt: skip
EVALS = [
    {"step": step, "eval_loss": 3.1 - step / 25, "tokens": {" <s>": {"due": 2.0, "nll": 1.5, "probability": 0.25}}}
    for step in (0, 20, 40)
]


def report_of(**changes: Any) -> Report:
    """Facts that are all alike, by type."""
    values = {"str": EVIL, "int": 7, "float": 0.5, "bool": True, "float | None": 1.5, "str | None": EVIL}
    told: dict[str, Any] = {}
    for field in dataclasses.fields(Report):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        told[field.name] = {} if "dict" in str(field.type) else values.get(kind, values.get(str(field.type)))
    told |= {"model": EVIL, "checkpoint": None, "interrupted_by": None, "generations": [], "head": None}
    return Report(**(told | {"eval_losses_before": {"a": 2.0}, "eval_losses_after": {"a": 1.0}} | changes))


class Reader(HTMLParser):
    """Checks that elements are closed in order, and gathers the text and the ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []
        self.targets: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            assert value is not None
            self.ids += [value] if name == "id" else []
            self.targets |= set(re.findall(r"url\\(#([^)]*)\\)", value)) | ({value[1:]} if name == "href" else set())
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_holds_the_facts_the_curves_and_the_texts(tmp_path: Path) -> None:
    generation = Generation("file:1", "a prompt\n  indented", "its reference", "what it was", "what it is")
    silent = Generation("file:2", "another", "of it", "")
    report = report_of(generations=[generation, silent])
    write_page(report, [*LOSSES, *EVALS, {"step": 40, "error_rate": 0.5}], tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = Reader(html)
    for name, value in rows(report):
        assert name.strip() in read.text
        assert value in read.text
    for text in (generation.prompt, "its reference", "what it was", "what it is", "file:1", "after training"):
        assert text in read.text
    for title in (
        "loss (nats, all tasks and outputs)", "training 2.75 \u2192 1", "held out 3.1 \u2192 1.5",
        "training loss by task or output", "b 1.833 \u2192 0.6667", "watched tokens: probability where due",
        "\u00b7<s> 0.25 \u2192 0.25", "gradient norm", "learning rate", "supervised 300", "share of a measured GEMM",
        "word error rate of held-out completions",
    ):  # fmt: skip
        assert title in read.text, title
    assert html.count("<svg") == 9
    assert read.text.count("before training") == 2
    assert read.text.count("nothing") == 1
    assert "held-out loss by task" not in read.text


def test_what_comes_from_data_is_no_markup() -> None:
    generation = Generation(EVIL, EVIL, f'"{EVIL}', EVIL, "$x$ \\frac </p>")
    html = page(report_of(generations=[generation]), [*LOSSES, *EVALS])
    read = Reader(html)
    assert "script" not in read.seen
    assert "<script" not in html
    assert read.text.count(EVIL) >= 8
    assert "$x$ \\frac </p>" in read.text


def test_needs_nothing_from_elsewhere_and_adapts() -> None:
    html = page(report_of(), [*LOSSES, *EVALS])
    read = Reader(html)
    assert not re.search(r"https?:|//[a-z]|@import|src=", html)
    assert len(read.ids) == len(set(read.ids))
    assert read.targets
    assert read.targets <= set(read.ids)
    drawn = html[html.index("<svg") :]
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) <= {"none", *(f"var(--{v})" for v in COLOURS)}
    assert {"ink", "line", "c0", "c1"} <= {v for v in COLOURS if f"var(--{v})" in drawn}
    assert "prefers-color-scheme: dark" in html
    assert 'content="width=device-width, initial-scale=1"' in html


COLOURS = ["ink", "line", *(f"c{number}" for number in range(8))]


def test_a_run_without_anything_to_draw() -> None:
    html = page(report_of(), [])
    assert "<svg" not in html
    assert "<h2>" not in html
    Reader(html)


def test_many_tokens_share_several_charts() -> None:
    records = [{"step": 0, "tokens": {f"t{n}": {"due": 0.0} | ({"nll": 1.0} if n else {}) for n in range(11)}}]
    groups = [curves for title, curves in charts(records) if "loss where due" in title]
    assert [len(curves) for curves in groups] == [8, 3]
    assert groups[0][0].steps == []
    html = page(report_of(), records)
    assert html.count("<figure>") == 2
    assert "t0 " not in Reader(html).text


def test_numbers_that_are_none_are_left_out() -> None:
    records = [{"step": n, "loss": loss} for n, loss in enumerate([2.0, float("nan"), float("inf"), 1.0])]
    (training,) = [c for title, curves in charts(records) for c in curves if c.name == "training" and c.steps]
    assert (training.steps, training.values) == ([0, 3], [2.0, 1.0])


def test_styles_of_pages_do_not_repeat_each_other() -> None:
    assert "--paper:" not in OTHER_STYLE
