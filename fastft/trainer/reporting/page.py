"""A report as one HTML file: the facts, curves over the steps, and what the model wrote before and after."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastft.trainer.inspection.tokens import visible
from fastft.trainer.reporting.document import document, facts
from fastft.trainer.reporting.plot import COLOURS, Curve, curve, loss_unit, svg
from fastft.trainer.reporting.rendering import rows
from fastft.trainer.reporting.report import Generation, Report

PAGE = "report.html"
NOTHING = '<i class="soft">nothing</i>'
STYLE = """
:root { --c0: #1f6fb4; --c1: #c2570c; --c2: #2f8f46; --c3: #b3261e; --c4: #7b4bb3; --c5: #8a5a44; --c6: #c0408f;
  --c7: #5f6368; }
@media (prefers-color-scheme: dark) { :root { --c0: #6db3f2; --c1: #ffa05c; --c2: #6fd08a; --c3: #ff8a80; --c4: #c39bf0;
  --c5: #c9a08c; --c6: #f29bd0; --c7: #b0b4ba; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0 1.5rem; }
figure { min-width: 0; } figcaption b { color: var(--ink); display: block; }
figcaption span { display: inline-block; max-width: 100%; margin-right: .8rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: system-ui, sans-serif !important; }
.text { white-space: pre-wrap; margin: 0; }
"""


def write_page(report: Report, records: Sequence[dict[str, Any]], output_dir: Path) -> None:
    """report.html. records: those of log.jsonl."""
    (output_dir / PAGE).write_text(page(report, records), encoding="utf-8")


def page(report: Report, records: Sequence[dict[str, Any]]) -> str:
    """The whole document. What came from data stands in it as text, never as markup."""
    shown = [(title, [c for c in curves if c.steps]) for title, curves in charts(records)]
    drawn = [(title, curves) for title, curves in shown if curves]
    figures = "".join(_figure(f"chart{number}", title, curves) for number, (title, curves) in enumerate(drawn))
    texts = "".join(map(_generation, report.generations))
    body = (
        facts(rows(report))
        + (f'<h2>curves</h2>\n<div class="charts">\n{figures}</div>\n' if figures else "")
        + (f"<h2>what the model writes for held-out prompts</h2>\n{texts}" if texts else "")
    )
    return document(f"{report.model}, after training", body, STYLE)


def charts(records: Sequence[dict[str, Any]]) -> list[tuple[str, list[Curve]]]:
    """Titles, and what is drawn under each; curves may be empty."""
    held_out = curve("held out", records, "eval_loss", marked=True)
    found = [
        (loss_unit(records), [curve("training", records, "loss"), held_out]),
        *_each("training loss by task or output", records, "losses"),
        *_each("held-out loss by task or output", records, "eval_losses", marked=True),
        ("word error rate of held-out completions", [curve("held out", records, "error_rate", marked=True)]),
        *_each("watched tokens: loss where due (nats)", records, "tokens", "nll", marked=True),
        *_each("watched tokens: probability where due", records, "tokens", "probability", marked=True),
        ("gradient norm before clipping", [curve("training", records, "grad_norm")]),
        ("learning rate", [curve("training", records, "learning_rate")]),
    ]
    speeds = {"tokens_per_second": "all", "supervised_tokens_per_second": "supervised"}
    found.append(("tokens per second", [curve(name, records, key) for key, name in speeds.items()]))
    found.append(("model FLOPs, share of a measured GEMM's", [curve("training", records, "mfu")]))
    return found


def _each(
    title: str, records: Sequence[dict[str, Any]], key: str, *keys: str, marked: bool = False
) -> list[tuple[str, list[Curve]]]:
    """A curve for each name that `record[key]` has, in as many charts as there are colours for."""
    names = list(dict.fromkeys(name for record in records for name in record.get(key, {})))
    told = {name: visible(name) if key == "tokens" else name for name in names}
    groups = [names[start : start + COLOURS] for start in range(0, len(names), COLOURS)]
    return [
        (title, [curve(told[name], records, key, name, *keys, marked=marked) for name in group]) for group in groups
    ]


def _figure(name: str, title: str, curves: Sequence[Curve]) -> str:
    told = "".join(
        f'<span><i style="color:var(--c{number})">\u25cf</i> {escape(shown.name)} {_course(shown)}</span>'
        for number, shown in enumerate(curves)
    )
    return f"<figure><figcaption><b>{escape(title)}</b>{told}</figcaption>\n{svg(name, curves)}</figure>\n"


def _course(shown: Curve) -> str:
    first, last = (f"{value:.4g}" for value in (shown.values[0], shown.values[-1]))
    return last if len(shown.values) == 1 else f"{first} \u2192 {last}"


def _generation(generation: Generation) -> str:
    parts = (
        ("prompt", generation.prompt),
        ("the data's own", generation.reference),
        ("before training", generation.before),
        ("after training", generation.after),
    )
    told = "".join(
        f'<h4>{name}</h4>\n<p class="text">{escape(text) or NOTHING}</p>\n' for name, text in parts if text is not None
    )
    return f"<h3>{escape(generation.origin)}</h3>\n{told}"
