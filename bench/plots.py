"""Pictures of benchmark rows: bars by share ignored, a panel for each shape and dtype; or lines against one axis of it,
a panel for each of what else differs."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.rows import COUNTED, Row

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


def scope(beyond: str) -> str:
    """Of which memory a peak is: beyond what is named, or, where nothing is, of a whole process."""
    return f"beyond {beyond}" if beyond else "of its process, with everything in it"


def draw(rows: list[Row], time: Path, memory: Path, *, floor: str, beyond: str, about: str) -> None:
    """Time as a multiple of the floor, and memory beyond what `beyond` names, both on logarithmic axes."""
    save(rows, time, f"Time over the measured floor (1 = {floor})\n{about}",
         "time / floor", lambda row: 1 / row.floor_share, line=1.0)  # fmt: skip
    save(rows, memory, f"Peak memory {scope(beyond)}\n{about}", "MiB", lambda row: row.peak_mib)


def draw_against(axis: str, rows: list[Row], time: Path, memory: Path, *, beyond: str, about: str) -> None:
    """The same against an axis of the shape; time in ms, the floor's too."""
    save_against(axis, rows, time, f"Median time of a call\n{about}", "ms", lambda row: row.ms_median)
    rows = [row for row in rows if row.provider != "floor"]
    save_against(axis, rows, memory, f"Peak memory {scope(beyond)}\n{about}", "MiB", lambda row: row.peak_mib)


def save_against(
    axis: str, rows: list[Row], path: Path, title: str, unit: str, value: Callable[[Row], float | None]
) -> None:
    def panel_of(row: Row) -> str:
        return ", ".join([f"{a} = {n}" for a, n in row.shape.items() if a not in (axis, *COUNTED)] + [row.dtype])

    names = list(dict.fromkeys(map(panel_of, rows)))
    figure = Figure(figsize=(max(5.2 * len(names), 7.5), 4.9), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0].tolist()
    for axes, name in zip(panels, names, strict=True):
        chosen = sorted((row for row in rows if panel_of(row) == name), key=lambda row: row.shape[axis])
        for provider in ordered(chosen):
            points = [(row.shape[axis], value(row)) for row in chosen if row.provider == provider]
            points = [(x, y) for x, y in points if y is not None and y > 0]
            style = "--" if provider == "floor" else "-"
            if points:
                axes.plot(*zip(*points, strict=True), f"o{style}", color=COLORS.get(provider, OTHER), label=provider)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(axis)
        axes.grid(alpha=0.35)
    panels[0].set_ylabel(unit)
    handles, labels = legend(panels)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5) or 1, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def ordered(rows: list[Row]) -> list[str]:
    """Their providers, in the colours' order."""
    present = {row.provider for row in rows}
    return [name for name in COLORS if name in present] + sorted(present - set(COLORS))


def save(
    rows: list[Row], path: Path, title: str, unit: str, value: Callable[[Row], float | None], line: float | None = None
) -> None:
    rows = [row for row in rows if row.provider != "floor"]
    axes = [axis for axis in rows[0].shape if axis not in COUNTED]
    cases = list(dict.fromkeys((row.case, tuple(row.shape[axis] for axis in axes)) for row in rows))
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    providers = ordered(rows)
    figure = Figure(figsize=(max(4.4 * len(cases), 7.5), 3.4 * len(dtypes) + 0.9), dpi=110, layout="constrained")
    panels = figure.subplots(len(dtypes), len(cases), squeeze=False, sharey=True)
    for i, dtype in enumerate(dtypes):
        for j, (name, size) in enumerate(cases):
            chosen = [r for r in rows if (r.dtype, r.case) == (dtype, name)]
            if not chosen:  # a shape that is measured in another dtype only
                panels[i][j].set_axis_off()
                continue
            panel(panels[i][j], chosen, providers, value)
            panels[i][j].set_title(f"{name}: {' x '.join(axes)} = {' x '.join(map(str, size))}, {dtype}", fontsize=9)
            if line is not None:
                panels[i][j].axhline(line, color="black", lw=1, ls="--", zorder=3)
        panels[i][0].set_ylabel(unit)
    for lowest in panels[-1]:
        lowest.set_xlabel("tokens without a label")
    handles, names = legend(panels.ravel().tolist())
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def panel(axes: Axes, rows: list[Row], providers: list[str], value: Callable[[Row], float | None]) -> None:
    shares = sorted({row.ignored for row in rows})
    width = 0.84 / len(providers)
    for k, provider in enumerate(providers):
        points = [(shares.index(row.ignored), value(row)) for row in rows if row.provider == provider]
        points = [(x, y) for x, y in points if y is not None and y > 0]
        if not points:  # bars of nothing have a colour of their own, and the legend would take it
            continue
        bars = axes.bar(
            [x - 0.42 + (k + 0.5) * width for x, _ in points], [y or 0.0 for _, y in points], width,
            color=COLORS.get(provider, OTHER), label=provider, zorder=2,
        )  # fmt: skip
        if provider == "fastft":
            axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
    axes.grid(axis="y", which="major", alpha=0.35, zorder=0)
    axes.margins(y=0.15)


def legend(panels: list[Axes]) -> tuple[list[object], list[str]]:
    """One handle for each provider that is drawn anywhere."""
    found = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [name for name in COLORS if name in found] + sorted(set(found) - set(COLORS))
    return [found[name] for name in order], order
