"""The command line: commands, exit codes, and one line for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastft
from fastft import __main__ as command_line
from fastft.__main__ import main
from fastft.trainer.inspection import WouldFail

Captured = pytest.CaptureFixture[str]


def mistake(argv: list[str], capsys: Captured, code: int = 2) -> str:
    """The one line on stderr."""
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("fastft: ")
    assert err.count("\n") == 1
    return err


def test_info(capsys: Captured) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out.strip() == fastft.info().strip()
    assert "takes no options" in mistake(["info", "--x"], capsys)


def test_help_and_unknown_commands(capsys: Captured) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        assert "fastft <command>" in capsys.readouterr().out
    assert "unknown command 'trian': did you mean 'train'?" in mistake(["trian"], capsys)
    assert "the commands are train, inspect, export, demo, info" in mistake(["zzz"], capsys)


def test_mistakes_are_one_line(capsys: Captured, tmp_path: Path) -> None:
    data, config = tmp_path / "data.jsonl", tmp_path / "config.yaml"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": broken\n')
    config.write_text(f"model: {tmp_path / 'none'}\ntrain_data: {data}\noutput_dir: {tmp_path / 'out'}\n")
    assert "unknown key 'learing_rate': did you mean 'learning_rate'" in mistake(["train", "--learing_rate=1"], capsys)
    assert "config file none.yaml not found" in mistake(["train", "none.yaml"], capsys)
    assert "does not exist" in mistake(["inspect", str(config)], capsys)
    assert not (tmp_path / "out").exists()
    assert "does not exist" in mistake(["train", str(config)], capsys)
    assert "batch_size" in mistake(["demo", "--batch_size", "3"], capsys)
    assert "wanted: fastft export CHECKPOINT OUTPUT" in mistake(["export", "one"], capsys)
    assert "no-such-run not found" in mistake(["export", str(tmp_path / "no-such-run"), "x"], capsys)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped at once"),
        (
            torch.OutOfMemoryError("tried to get 9 GiB.\nand more"),
            1,
            "out of memory: tried to get 9 GiB. Lower per_device",
        ),
        (ArithmeticError("step 3: loss nan"), 1, "step 3: loss nan"),
        (WouldFail("the mask is empty. Look at mask"), 1, "the mask is empty. Look at mask"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (ImportError("model 'x': gguf not installed"), 2, "gguf not installed"),
    ],
)
def test_failures_have_their_codes(
    error: BaseException, code: int, words: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(argv: object) -> None:
        raise error

    monkeypatch.setitem(command_line.COMMANDS, "train", fails)
    assert words in mistake(["train"], capsys, code)
    monkeypatch.setenv("FASTFT_TRACEBACK", "1")
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            main(["train"])


def test_errors_of_the_program_itself_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setitem(command_line.COMMANDS, "train", fails)
    with pytest.raises(AttributeError):
        main(["train"])


def test_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastft", "train", "--seeed=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert "did you mean 'seed'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
