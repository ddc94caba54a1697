"""What the documentation shows runs as it stands; what it says of files and settings is so.

That its pages are in the navigation and its links lead somewhere is what `make docs` tells.
"""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pages import ROOT, Block, blocks, commands, run_python
from torch.distributed.run import get_args_parser

from fastft.trainer.arguments import parse_config
from fastft.trainer.config import FIELDS
from fastft.trainer.inspection import command as inspection
from fastft.trainer.saving import export

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
LONGEST = 200
INSTALLED_ELSEWHERE = {"datasets", "trl", "lightning", "accelerate", "peft"}  # of extra `examples`


def with_blocks(language: str) -> list[str]:
    return [name for name, path in PAGES.items() if blocks(path, language)]


def yaml_blocks() -> list[tuple[str, Block]]:
    return [(name, block) for name, path in PAGES.items() for block in blocks(path, "yaml")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", with_blocks("python"))
def test_python_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in INSTALLED_ELSEWHERE:
        if re.search(rf"^from {package} |^import {package}\b", PAGES[name].read_text(encoding="utf-8"), re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_python(PAGES[name])


@pytest.mark.parametrize(("name", "block"), yaml_blocks(), ids=lambda value: getattr(value, "line", value))
def test_yaml_is_a_run(name: str, block: Block, tmp_path: Path) -> None:
    if not block.runs:
        assert isinstance(yaml.safe_load(block.text), dict)
        return
    (tmp_path / "config.yaml").write_text(block.text, encoding="utf-8")
    config = parse_config([str(tmp_path / "config.yaml")])
    assert set(yaml.safe_load(block.text)) <= {key for key in FIELDS if getattr(config, key) is not None}


def parse_train(words: list[str]) -> None:
    parse_config(words)


def parse_inspect(words: list[str]) -> None:
    parse_config(inspection._split(words)[1])


def parse_export(words: list[str]) -> None:
    export._read_words(words)


def parse_nothing(words: list[str]) -> None:
    assert not words


PARSERS: dict[str, Callable[[list[str]], None]] = {
    "train": parse_train,
    "inspect": parse_inspect,
    "export": parse_export,
    "info": parse_nothing,
}


def try_command(program: str, words: list[str]) -> None:
    if program == "fastft":
        PARSERS[words[0]](words[1:])
    elif program == "torchrun":
        parsed = get_args_parser().parse_args(words)
        assert (parsed.module, parsed.training_script) == (True, "fastft")
        try_command("fastft", parsed.training_script_args)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words) <= set(targets)
    elif program == "pip":
        assert words[0] == "install"
        extra = re.search(r"\[(\w+)\]", words[-1])
        assert not extra or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    else:
        raise AssertionError(f"nobody checks {program!r}")


@pytest.mark.parametrize("name", with_blocks("bash"))
def test_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`config.yaml` is any run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("model: builtin:smollm2\ntrain_data: data.jsonl\n", encoding="utf-8")
    shown = commands(PAGES[name])
    assert shown
    for program, *words in shown:
        try_command(program, words)


@pytest.mark.parametrize("name", ["migrate/llama-factory.md", "migrate/litgpt.md", "objectives.md", "train.md"])
def test_settings_on_a_page_exist(name: str) -> None:
    """`key: value` in a line of text is a setting of ours; in a table, only in its right column."""
    text = re.sub(r"^```.*?^```$", "", PAGES[name].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    theirs = r"^\| .*? \|" if name.startswith("migrate/") else r"^$"
    keys = re.findall(r"`(\w+): ?[^`]+`", re.sub(theirs, "", text, flags=re.MULTILINE))
    assert keys
    assert set(keys) <= set(FIELDS) | {"train", "hf"}  # a message's own key, and a source


@pytest.mark.parametrize("name", PAGES)
def test_files_on_a_page_exist(name: str) -> None:
    paths = re.findall(r"`((?:examples|bench|fastft|tests|csrc)/[\w./-]*)`", PAGES[name].read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists() and path != "bench/results"] == []
    assert len(PAGES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_pictures_are_what_their_script_draws() -> None:
    pictures = runpy.run_path(str(DOCS / "pictures" / "draw.py"))["PICTURES"]
    drawn = {f"{name}.svg": draw() for name, draw in pictures.items()}
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "pictures").glob("*.svg")}


def test_figures_stand_on_one_page() -> None:
    """Benchmarks takes them from README, whose figures a test holds to bench/results; no other page measures."""
    measured = r"\d(\.\d+)? (times as fast|ms\b|GB/s|tokens/s)|\d x faster"
    text = {
        name: re.sub(r"^```.*?^```$", "", p.read_text(), flags=re.DOTALL | re.MULTILINE) for name, p in PAGES.items()
    }
    assert [name for name in text if re.search(measured, text[name])] == []
    assert "<!-- measured -->" in text["benchmarks.md"]
