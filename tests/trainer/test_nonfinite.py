import math

import pytest
import torch

from fastft.trainer.nonfinite import NonFiniteLoss, refuse_non_finite


def test_numbers_pass() -> None:
    refuse_non_finite(torch.tensor([1.0, 0.0]), 3.0, [[1], [2]], 1, 1e-3)


@pytest.mark.parametrize(
    ("shares", "grad_norm", "samples"),
    [
        ([1.0, math.nan], math.nan, "samples 7, 8 of"),
        ([math.inf, 1.0], 1.0, "samples 5, 6 of"),
        ([1.0, 1.0], math.inf, "samples 5, 6, 7, 8 of"),
    ],
)
def test_names_the_samples_of_the_batches_at_fault(shares: list[float], grad_norm: float, samples: str) -> None:
    with pytest.raises(NonFiniteLoss, match=samples) as error:
        refuse_non_finite(torch.tensor(shares), grad_norm, [[5, 6], [7, 8]], 12, 1e-3)
    assert "step 12: loss" in str(error.value)
    assert "learning_rate (now 1.00e-03)" in str(error.value)


def test_a_long_list_is_cut() -> None:
    with pytest.raises(NonFiniteLoss, match=r"30, 31, \.\.\. of"):
        refuse_non_finite(torch.tensor([math.nan]), 1.0, [list(range(100))], 1, 1e-3)
