"""Pictures of benchmark rows, as wide as a page: bars by case, a panel for each dtype; lines against the axis that
grows, a panel for each series; errors by condition."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.rows import Accuracy, Row
from bench.trends import Series, worst

COLORS = {
    "fastft": "#d1495b",
    "eager": "#5b6770",
    "compacted": "#9aa5ad",
    "torch-tuned": "#2e6f95",
    "tuned-compacted": "#7fb2d0",
    "torch-default": "#16324f",
    "liger": "#e0a03a",
    "cce": "#5a9367",
    "torch-compile": "#4f8f8b",
    "quack": "#a06c3a",
    "trl": "#c9b458",
    "torchtune": "#6d597a",
    "fastft-lazy": "#e59a86",
    "sparse-adam": "#2e6f95",
    "transformers": "#5b6770",
    "transformers-flat": "#9aa5ad",
    "rows-fastft": "#7a3fa0",
    "rows-peft": "#e0a03a",
    "rows-by-hand": "#5a9367",
    "floor": "#000000",
}
OTHER = "#b58db6"
WIDTH = 9.0  # inches


def scope(beyond: str) -> str:
    """Of which memory a peak is: beyond what is named, or, where nothing is, of a whole process."""
    return f"beyond {beyond}" if beyond else "of its process, with everything in it"


class Panel(NamedTuple):
    """Bars: a group for each place, in it one for each provider."""

    title: str
    places: list[str]
    values: Mapping[str, Mapping[str, float]]  # provider -> place -> value


def draw(rows: list[Row], time: Path, memory: Path, *, floor: str, beyond: str, about: str) -> None:
    """Time as a multiple of the floor, and memory beyond what `beyond` names, both on logarithmic axes."""
    save(panels(rows, lambda row: 1 / row.floor_share), time,
         f"Time over the measured floor (1 = {floor})\n{about}", "time / floor", line=1.0)  # fmt: skip
    save(panels(rows, lambda row: row.peak_mib), memory, f"Peak memory {scope(beyond)}\n{about}", "MiB")


def draw_errors(records: list[Accuracy], path: Path, about: str) -> None:
    """The worst error of a gradient; a panel for each op and dtype."""
    shown = []
    for op, dtype in dict.fromkeys((record.case.partition(" ")[0], record.dtype) for record in records):
        here = [r for r in records if (r.case.partition(" ")[0], r.dtype) == (op, dtype)]
        cells = [(r.provider, r.case.partition(" ")[2], worst(r.errors)) for r in here]
        shown.append(panel_of(f"{op}, {dtype}", cells))
    save(shown, path, f"Largest relative error of a gradient against fp64\n{about}", "|got - truth| / |truth|")


def draw_trends(series: list[Series], path: Path, about: str) -> None:
    """Time against the axis that grows, with the exponent of the fitted power law; two panels in a row."""
    height = (len(series) + 1) // 2
    figure = Figure(figsize=(WIDTH, 3.4 * height + 0.8), dpi=110, layout="constrained")
    panels = figure.subplots(height, 2, squeeze=False).ravel().tolist()
    for axes, one in zip(panels, series, strict=False):
        for provider in ordered(one.points):
            style = "o--" if provider == "floor" else "o-"
            label = f"{provider}: {one.axis}^{one.slopes[provider]:.2f}" if provider in one.slopes else provider
            axes.plot(*zip(*one.points[provider], strict=True), style, color=color(provider), label=label, ms=4)
        values = sorted({x for points in one.points.values() for x, _ in points})
        axes.set_xscale("log", base=2)
        plainly(axes)
        axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
        axes.xaxis.minorticks_off()
        axes.set_title(f"{one.case} ({one.rest})", fontsize=9)
        axes.set_xlabel(f"{one.axis} ({one.meaning})")
        axes.set_ylabel("median ms")
        axes.grid(alpha=0.35)
        axes.legend(fontsize=8, framealpha=0.6)
    for axes in panels[len(series) :]:
        axes.set_axis_off()
    figure.suptitle(f"Time of a call against one axis, and the power of it that fits\n{about}", fontsize=11)
    figure.savefig(path)


def plainly(axes: Axes) -> None:
    """A logarithmic axis with the numbers themselves: 0.5, 1, 2, 5, 10."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def color(provider: str) -> str:
    return COLORS.get(provider, OTHER)


def ordered(names: Iterable[str]) -> list[str]:
    """Providers in the colours' order."""
    present = set(names)
    return [name for name in COLORS if name in present] + sorted(present - set(COLORS))


def panels(rows: list[Row], value: Callable[[Row], float | None]) -> list[Panel]:
    """One for each dtype; cases in their order, each with its shares of ignored tokens."""
    cases = list(dict.fromkeys(row.case for row in rows))
    rows = sorted(rows, key=lambda row: (cases.index(row.case), row.ignored))
    made = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        here = [row for row in rows if row.dtype == dtype and row.provider != "floor"]
        cells = [(row.provider, place(row), value(row)) for row in here]
        note = "; below each case: tokens without a label" if any("M" in row.shape for row in here) else ""
        made.append(panel_of(f"{dtype}{note}", cells))
    return made


def place(row: Row) -> str:
    return f"{row.case}\n{row.ignored:.0%}" if "M" in row.shape else row.case


def panel_of(title: str, cells: Sequence[tuple[str, str, float | None]]) -> Panel:
    """From (provider, place, value); what has no value, or 0, has no bar."""
    values: dict[str, dict[str, float]] = {}
    for provider, where, value in cells:
        if value is not None and value > 0:
            values.setdefault(provider, {})[where] = value
    return Panel(title, list(dict.fromkeys(where for _, where, _ in cells)), values)


def save(shown: list[Panel], path: Path, title: str, unit: str, line: float | None = None) -> None:
    figure = Figure(figsize=(WIDTH, 3.2 * len(shown) + 1.1), dpi=110, layout="constrained")
    rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0].tolist()
    for axes, panel in zip(rows, shown, strict=True):
        bars(axes, panel)
        axes.set_ylabel(unit)
        if line is not None:
            axes.axhline(line, color="black", lw=1, ls="--", zorder=3)
    handles, names = legend(rows)
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)) or 1, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def bars(axes: Axes, panel: Panel) -> None:
    providers = ordered(panel.values)
    width = 0.84 / max(1, len(providers))
    for k, provider in enumerate(providers):
        values = panel.values[provider]
        places = [panel.places.index(where) - 0.42 + (k + 0.5) * width for where in values]
        drawn = axes.bar(places, list(values.values()), width, color=color(provider), label=provider, zorder=2)
        if provider == "fastft":
            behind = {"facecolor": "white", "alpha": 0.75, "pad": 0.4, "linewidth": 0}  # beside it are taller bars
            axes.bar_label(drawn, fmt="%.3g", fontsize=7, padding=2, zorder=4, bbox=behind)
    plainly(axes)
    axes.set_xticks(range(len(panel.places)), panel.places, fontsize=8)
    axes.set_title(panel.title, fontsize=9)
    axes.grid(axis="y", which="major", alpha=0.35, zorder=0)
    axes.margins(x=0.02, y=0.15)


def legend(panels: list[Axes]) -> tuple[list[Any], list[str]]:
    """One handle for each provider that is drawn anywhere."""
    found = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = ordered(found)
    return [found[name] for name in order], order
