import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastft.hf.lazy_logits import LazyLogits
from fastft.trainer import setup
from fastft.trainer.saving import checkpoint

from .conftest import RECORDS, MakeTrainer, printed, write_records


@pytest.mark.parametrize("patch", [True, False])
def test_the_head_is_patched_if_wanted(make_trainer: MakeTrainer, patch: bool) -> None:
    model = make_trainer(patch=patch).model
    assert isinstance(model(input_ids=torch.tensor([[1, 2]])).logits, LazyLogits) is patch


def test_a_head_that_cannot_be_patched_names_the_way_out(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd_head(*args: Any, **options: Any) -> nn.Module:
        model: nn.Module = load_model(*args, **options)
        model.set_output_embeddings(nn.Bilinear(32, 32, 320))
        return model

    load_model = setup.load_model
    monkeypatch.setattr(setup, "load_model", odd_head)
    with pytest.raises(ValueError, match=r"cannot patch LlamaForCausalLM.*--patch false"):
        make_trainer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": "no.jsonl"}, "no.jsonl"),
        ({"max_length": 2, "on_empty": "error"}, "max_length=2 cuts off all of its target"),
        ({"objective": "mlm"}, "cannot be loaded: Unrecognized configuration class"),
        ({"objective": "seq2seq"}, "cannot be loaded"),
    ],
)
def test_data_and_kinds_are_refused_before_weights_are_loaded(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    def too_early(*args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(setup, "load_model", too_early)
    with pytest.raises((ValueError, OSError), match=message):
        make_trainer(**changes)


def test_held_out_data_by_file_or_by_fraction(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(output_dir=str(tmp_path / "a"))
    assert whole.tasks[0].eval is None
    divided = make_trainer(output_dir=str(tmp_path / "b"), eval_fraction=0.25)
    assert divided.tasks[0].eval is not None
    assert len(divided.tasks[0].train.samples) + len(divided.tasks[0].eval.samples) == len(whole.tasks[0].train.samples)
    own = tmp_path / "own.jsonl"
    write_records(own, RECORDS[:7])
    other = make_trainer(output_dir=str(tmp_path / "c"), eval_data=str(own), max_eval_samples=5, max_train_samples=9)
    assert other.tasks[0].eval is not None
    assert (len(other.tasks[0].train.samples), len(other.tasks[0].eval.samples)) == (9, 5)
    another = make_trainer(output_dir=str(tmp_path / "d"), eval_data=str(own), max_eval_samples=5, seed=3)
    assert another.tasks[0].eval is not None
    assert another.tasks[0].eval.samples == other.tasks[0].eval.samples  # of every seed, so that runs compare


def test_samples_longer_than_the_model_takes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    write_records(long, [{"prompt": "a " * 100, "completion": "xyz " * 100}])
    with pytest.raises(ValueError, match=r"a sample has \d+ tokens, but .* takes 128: lower max_length \(now 1000\)"):
        make_trainer(train_data=str(long), max_length=1000)


def test_says_what_is_going_to_happen(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_fraction=0.25)
    told = "\n".join(trainer.describe())
    assert "training data: 18 samples" in told
    assert "held-out data: 6 samples" in told
    assert "6 steps of 6 samples, 2.00 epochs" in told
    assert "loading" in printed(trainer)


def test_a_full_disk_is_seen_before_training(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=150_000))
    with pytest.raises(OSError, match=r"a checkpoint takes 0\.0 GB, and .*run has 0\.0 GB left.*save_only_model"):
        make_trainer()


def test_fsdp_wants_processes(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"distributed is fsdp, but this is one process: torchrun"):
        make_trainer(distributed="fsdp")


def test_a_missing_tracker_is_told_before_data_are_read(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="report_to: tensorboard needs tensorboard: pip install tensorboard"):
        make_trainer(report_to=["tensorboard"], train_data="not/there.jsonl")
