"""Curves of a run: the losses as a PNG, and any curves as SVG for a page that is light or dark."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = 8  # of curves: --c0 ... --c7 of the page
INK, LINE = "#123456", "#234567"  # stand for the page's --ink and --line
STEPS: dict[str, Any] = {"integer": True, "steps": [1, 2, 5, 10]}


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps. marked: each is shown, as there are few."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    marked: bool = False


def curve(name: str, records: Sequence[dict[str, Any]], *keys: str, marked: bool = False) -> Curve:
    """Of the finite numbers that records have at `record[key][key]...`."""
    points = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)) and math.isfinite(value):
            points.append((record["step"], value))
    return Curve(name, [step for step, _ in points], [value for _, value in points], marked)


def plot_losses(path: Path, train: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], title: str) -> None:
    """Write the training and evaluation loss over the optimizer steps, and below them the learning rate.

    Args:
        train: records with `step`, `loss`, `learning_rate`; `losses` where there are several tasks or outputs.
        evals: records with `step`, `eval_loss`; `eval_losses` likewise.
    """
    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    if train:
        steps = [record["step"] for record in train]
        losses.plot(steps, [record["loss"] for record in train], color="tab:blue", lw=1.5, label="training")
        rates.plot(steps, [record["learning_rate"] for record in train], color="tab:gray", lw=1.5)
    if evals:
        losses.plot(
            [record["step"] for record in evals],
            [record["eval_loss"] for record in evals],
            color="tab:orange", marker="o", lw=1.5, label="held out",
        )  # fmt: skip
        for record in (evals[0], evals[-1]):
            losses.annotate(
                f"{record['eval_loss']:.3f}", (record["step"], record["eval_loss"]),
                textcoords="offset points", xytext=(0, 7), ha="center", color="tab:orange",
            )  # fmt: skip
    losses.set_title(title, fontsize=10, parse_math=False)
    losses.set_ylabel(loss_unit([*train, *evals]))
    losses.margins(y=0.12)
    losses.grid(alpha=0.3)
    if train or evals:
        losses.legend()
    rates.set_ylabel("learning rate")
    rates.set_xlabel("optimizer step")
    rates.xaxis.set_major_locator(MaxNLocator(**STEPS))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.grid(alpha=0.3)
    figure.savefig(path)


def loss_unit(records: Sequence[dict[str, Any]]) -> str:
    """What a loss is counted in: with several tasks or outputs it is no mean over tokens any more."""
    several = any("losses" in record or "eval_losses" in record for record in records)
    return "loss (nats, all tasks and outputs)" if several else "loss (nats per supervised token)"


def svg(name: str, curves: Sequence[Curve]) -> str:
    """Curves as an `<svg>` element, without their names, in colours that the page's style gives: `--ink`, `--line` and
    `--c0` to `--c7`, curve by curve.

    Args:
        name: letters, for ids that no other figure of the page has.
        curves: `COLOURS` at most.
    """
    colours = [f"#fe00{number:02x}" for number in range(COLOURS)]
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "axes.edgecolor": LINE, "grid.color": LINE,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }  # fmt: skip
    file = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5, 2.5), layout="constrained")
        axes = figure.subplots()
        for colour, shown in zip(colours, curves, strict=False):
            marker = "o" if shown.marked or len(shown.steps) == 1 else None
            axes.plot(shown.steps, shown.values, color=colour, lw=1.6, marker=marker, ms=4)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, **STEPS))
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.grid(lw=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in ((INK, "ink"), (LINE, "line"), *((c, f"c{i}") for i, c in enumerate(colours))):
        text = text.replace(colour, f"var(--{variable})")
    return text
