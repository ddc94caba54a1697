"""The benchmark of data runs: one stage of it, as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ALONE

from fastft.hf.pretrained import load_tokenizer

ROOT = Path(__file__).parents[2]


def test_a_stage_says_its_rate() -> None:
    try:
        load_tokenizer("builtin:smollm2")
    except ImportError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "pytest", "bench/data.py", "-k", "batch-clm", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--benchmark-only"], cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (rate,) = re.findall(r"batch-clm: ([\d,]+) tokens/s", done.stdout)
    assert int(rate.replace(",", "")) > 0
