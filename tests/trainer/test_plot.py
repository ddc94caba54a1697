from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from fastft.trainer.reporting.plot import Curve, loss_unit, plot_losses, svg

TRAIN = [{"step": step, "loss": 3.0 - step / 20, "learning_rate": 1e-4} for step in range(5, 41, 5)]
EVALS = [{"step": step, "eval_loss": 3.1 - step / 25} for step in (0, 20, 40)]


@pytest.mark.parametrize(("train", "evals"), [(TRAIN, EVALS), (TRAIN, []), ([], EVALS[:1]), ([], [])])
def test_draws_what_there_is(tmp_path: Path, train: list[dict[str, Any]], evals: list[dict[str, Any]]) -> None:
    plot_losses(tmp_path / "loss.png", train, evals, "model on data")
    image = imread(tmp_path / "loss.png")
    assert image.shape == (660, 960, 4)

    def share(red: float, green: float, blue: float) -> float:
        return float((np.abs(image[..., :3] - (red, green, blue)).max(-1) < 0.1).mean())

    assert (share(0.12, 0.47, 0.71) > 0.001) is bool(train)
    assert (share(1.0, 0.5, 0.05) > 0.0005) is bool(evals)


def test_the_unit_is_told_as_it_is() -> None:
    assert loss_unit([*TRAIN, *EVALS]) == "loss (nats per supervised token)"
    for record in ({"step": 1, "losses": {"a": 1.0}}, {"step": 1, "eval_losses": {"a": 1.0}}):
        assert loss_unit([*TRAIN, record]) == "loss (nats, all tasks and outputs)"


def test_a_title_is_no_mathematics(tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.png", TRAIN, EVALS, r"a$\nonsense{$b on _data")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_svg_is_the_same_every_time_and_shows_every_curve() -> None:
    curves = [Curve("a", [1, 2, 3], [1.0, 2.0, 1.5]), Curve("b", [1, 3], [0.5, 0.7], marked=True)]
    text = svg("first", curves)
    assert text == svg("first", curves)
    assert text.startswith("<svg")
    assert "var(--c0)" in text
    assert "var(--c1)" in text
    assert "var(--c2)" not in text
    assert "optimizer step" in text
    assert 'id="first-' in text
    assert "first-" not in svg("second", curves)
