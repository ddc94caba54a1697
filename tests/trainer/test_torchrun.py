"""`torchrun -m fastft train` for real: two processes, one voice; one that dies takes the other along."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastft.trainer.saving.checkpoint import checkpoints, read_state

from .conftest import MakeConfig

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "-m",
    "fastft",
    "train",
]


def started(config_file: Path, output: Path) -> "subprocess.Popen[str]":
    with output.open("w") as file:
        return subprocess.Popen(
            [*TORCHRUN, str(config_file)], stdout=file, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def test_one_voice_and_a_checkpoint(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(make_config(eval_fraction=0.2, eval_steps=3).to_yaml())
    process = started(tmp_path / "run.yaml", tmp_path / "out")
    assert process.wait(timeout=120) == 0, (tmp_path / "out").read_text()
    said = (tmp_path / "out").read_text()
    assert said.count("step 6/6") == 1
    assert "2 processes, ddp" in said
    assert read_state(checkpoints(tmp_path / "run")[-1])["processes"] == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_gone_ends_the_run(make_config: MakeConfig, tmp_path: Path, number: signal.Signals) -> None:
    """Killed without a word, or asked to stop: then all stop at the same step and save."""
    (tmp_path / "run.yaml").write_text(make_config(max_steps=100_000, logging_steps=1, save_steps=10).to_yaml())
    process = started(tmp_path / "run.yaml", tmp_path / "out")
    end = time.monotonic() + 120
    while "step  " not in (tmp_path / "out").read_text() or not checkpoints(tmp_path / "run"):
        assert time.monotonic() < end, (tmp_path / "out").read_text()
        time.sleep(0.2)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[1]), number)
    code = process.wait(timeout=120)
    said = (tmp_path / "out").read_text()
    if number == signal.SIGKILL:
        assert code != 0
        assert re.search(r"rank\s+: 1 .*\n.*exitcode\s+: -9", said)
    else:
        assert code == 0, said
        assert "stopped by SIGTERM" in said
    assert read_state(checkpoints(tmp_path / "run")[-1])["step"] > 0
