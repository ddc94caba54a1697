"""The loss curves of a run as a PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_losses(path: Path, train: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], title: str) -> None:
    """Write the training and evaluation loss over the optimizer steps, and below them the learning rate.

    Args:
        train: records with `step`, `loss`, `learning_rate`.
        evals: records with `step`, `eval_loss`.
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
    losses.set_title(title, fontsize=10)
    losses.set_ylabel("loss (nats per supervised token)")
    losses.margins(y=0.12)
    losses.grid(alpha=0.3)
    if train or evals:
        losses.legend()
    rates.set_ylabel("learning rate")
    rates.set_xlabel("optimizer step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.grid(alpha=0.3)
    figure.savefig(path)
