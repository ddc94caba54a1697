"""A folder is whole or it is not there."""

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fastft.trainer.saving.checkpoint import checkpoints, save
from fastft.trainer.saving.whole import whole_or_absent

from .conftest import MakeTrainer


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit on the size of files stands for a full disk: it fails in the same place."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_or_absent(tmp_path / "deep" / "folder") as draft:
            (draft / "file").write_text(text)
            (draft / text).mkdir()
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == ["file", "folder", "new"]
    assert (tmp_path / "deep" / "folder" / "file").read_text() == "new"


def test_what_was_there_outlives_a_failure(tmp_path: Path) -> None:
    with whole_or_absent(tmp_path / "folder") as draft:
        (draft / "file").write_text("old")

    def fail(error: type[BaseException]) -> None:
        with whole_or_absent(tmp_path / "folder") as draft:
            (draft / "file").write_text("new")
            raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            fail(error)
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_safetensors_on_a_full_disk_are_an_oserror(tmp_path: Path, small_files: None) -> None:
    limit(1000)
    with pytest.raises(OSError, match="File too large") as raised, whole_or_absent(tmp_path / "folder") as draft:
        save_file({"x": torch.zeros(1000)}, draft / "x.safetensors")
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    with pytest.raises(SafetensorError, match="header"), whole_or_absent(tmp_path / "folder"):
        raise SafetensorError("bad header")


def test_a_disk_that_is_full_by_the_optimizer_is_one_too(
    make_trainer: MakeTrainer, tmp_path: Path, small_files: None
) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.train()
    (file,) = tmp_path.rglob("model.safetensors")
    limit(file.stat().st_size * 3 // 2)  # the optimizer's is twice the model's
    with pytest.raises(OSError, match="File too large"):
        save(trainer.output_dir, 2, trainer.model, trainer.tokenizer, trainer.optimizers, {})
    assert [path.name for path in checkpoints(trainer.output_dir)] == ["checkpoint-1"]
    assert not list(trainer.output_dir.glob(".checkpoint*"))
