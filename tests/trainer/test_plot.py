from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from fastft.trainer.plot import plot_losses

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
