"""The benchmark of data runs: one stage of it, as it stands."""

import re

import pytest
from runs import benchmarked

from fastft.hf.pretrained import load_tokenizer


def test_a_stage_says_its_rate() -> None:
    try:
        load_tokenizer("builtin:smollm2")
    except ImportError as error:
        pytest.skip(str(error))
    (rate,) = re.findall(r"batch-clm: ([\d,]+) tokens/s", benchmarked("data", "-k", "batch-clm"))
    assert int(rate.replace(",", "")) > 0
