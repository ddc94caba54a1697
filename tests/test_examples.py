"""Each example trains, and its 20 losses are those of the library as it is."""

import importlib
import runpy
from pathlib import Path
from typing import Any

import pytest

from fastft.hf import terms

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "tiny")
NEEDS = {
    "trl_sft": ("accelerate", "datasets", "trl"),
    "lightning_module": ("lightning",),
    "accelerate_loop": ("accelerate",),
    "peft_lora": ("accelerate", "peft"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_losses_are_the_unpatched_ones(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDS.get(name, ("accelerate",)):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(importlib.import_module("tiny"), "LENGTH", 32)  # a quarter of the time
    calls, original = [], terms.linear_cross_entropy

    def counted(*args: Any, **options: Any) -> Any:
        calls[-1] += 1
        return original(*args, **options)

    monkeypatch.setattr(terms, "linear_cross_entropy", counted)
    example = runpy.run_path(str(FOLDER / f"{name}.py"))

    def train(fused: bool) -> list[float]:
        calls.append(0)
        losses: list[float] = example["train"](fused)
        return losses

    plain, fused = example["compare"](train)
    assert len(plain) == len(fused) >= 20
    assert len(set(plain[:20])) == 20  # it learns
    assert fused == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert calls[1] == 0
    assert calls[2] >= 20, "the loss was not fused"
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(":")[0].strip() for line in shown] == ["as it is", "fastft"]


def test_examples_are_short() -> None:
    assert len(EXAMPLES) >= 8
    assert not [name for name in EXAMPLES if len((FOLDER / f"{name}.py").read_text().splitlines()) > 60]
