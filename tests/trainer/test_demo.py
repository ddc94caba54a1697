import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fastft.trainer.config import TrainConfig
from fastft.trainer.demo import DEFAULTS, ON_CPU, ON_GPU, demo_defaults, run_demo


@pytest.mark.parametrize("size", [ON_CPU, ON_GPU])
def test_defaults_are_a_valid_config(size: dict[str, object]) -> None:
    assert TrainConfig(**{**DEFAULTS, **size})


def test_each_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo_defaults()["output_dir"] == "runs/demo-1"
    for name in ("demo-1", "demo-3"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert demo_defaults()["output_dir"] == "runs/demo-2"


def test_runs_with_another_model_and_prints_its_facts(
    model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=140)
    words = (
        f"--model {model_dir} --max_steps 4 --eval_steps 0 --max_length 128 --max_train_samples 40 --learning_rate 0.01"
    )
    report = run_demo([*words.split(), "--max_eval_samples", "24", "--generation_max_new_tokens", "5"], console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert report.eval_loss_before is not None
    assert report.eval_loss_after is not None
    assert report.eval_loss_after < report.eval_loss_before
    assert report.head is not None
    assert report.head.fused.seconds is not None
    assert len(report.generations) == 2
    for fact in ("supervised share", "evaluation loss", "tokens/s", "peak memory", "unfused", "checkpoint", "loss.png"):
        assert fact in shown, fact
    assert json.loads((tmp_path / "runs" / "demo-1" / "report.json").read_text())["head"]["vocab"] == 320
