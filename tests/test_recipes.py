"""README's commands train: each as it stands there, but for a few steps on a few samples."""

import json
import math
import re
import shlex
from pathlib import Path

import pages
import pytest

from fastft.__main__ import main

README = pages.ROOT / "README.md"
SMALL = (
    "--max_steps 2 --logging_steps 1 --eval_steps 0 --max_train_samples 24 --max_eval_samples 6 --num_generations 1 "
    "--generation_max_new_tokens 4"
)


def commands() -> list[str]:
    """Those whose data everybody has."""
    shown = [words for words in pages.commands(README) if words[:2] == ["fastft", "train"]]
    return [shlex.join(words) for words in shown if any(word.startswith("builtin:") for word in words[4:])]


def files() -> list[str]:
    return [block.text for block in pages.blocks(README, "yaml")]


def test_every_objective_has_a_command() -> None:
    shown = " ".join(commands())
    assert {"mlm", "nsp", "seq2seq", "span_corruption", "prefix_lm"} <= set(re.findall(r"--objective (\w+)", shown))
    assert "--tasks" in shown


@pytest.mark.filterwarnings("ignore")
def test_the_file_of_several_objectives_trains(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(next(block for block in files() if "tasks:" in block), encoding="utf-8")
    assert main(["train", str(config), *shlex.split(SMALL), "--output_dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["objective"] == "mlm + clm"


@pytest.mark.filterwarnings("ignore")
def test_the_file_of_what_learns_when_trains_and_exports(tmp_path: Path) -> None:
    """Its steps are those of a longer run, so they are brought forward."""
    block = next(block for block in files() if "new_tokens:" in block)
    texts = [f"<think>{n} and {n + 1}</think>{2 * n + 1}" for n in range(30)]
    rows = [json.dumps({"prompt": f"{n} + {n + 1} =", "completion": text}) + "\n" for n, text in enumerate(texts)]
    (tmp_path / "data.jsonl").write_text("".join(rows), encoding="utf-8")
    block = block.replace("train_data: data.jsonl", f"train_data: {tmp_path}/data.jsonl").replace("{200:", "{1:")
    block = block.replace("400:", "2:").replace("eval_steps: 50", "eval_steps: 1")
    block += "max_steps: 3\nnum_generations: 0\n"
    (tmp_path / "config.yaml").write_text(block, encoding="utf-8")
    small = ["--max_length", "96", "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "run")]
    small += ["--save_only_model", "true", "--eval_on_start", "false"]
    assert main(["train", str(tmp_path / "config.yaml"), *small]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [record["tokens"]["<think>"]["nll"] for record in records if "tokens" in record]
    assert len(told) == 3
    assert min(told) < told[0]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert {"README.md", "config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("command", commands())
@pytest.mark.filterwarnings("ignore")
def test_a_command_trains(command: str, tmp_path: Path) -> None:
    compared = ["--eval_generations", "2"] if "--eval_generations" in command else []
    words = [*shlex.split(command)[1:], *shlex.split(SMALL), *compared, "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["step"] == 2
    assert math.isfinite(report["eval_loss_after"])
    assert report["supervised_tokens"] > 0
    assert (report["error_rate_after"] is not None) == bool(compared)
