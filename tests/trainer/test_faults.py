"""A training process that is killed at fifty moments, inside saving too, always resumes, and ends as if it were not."""

import io
import itertools
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastft.trainer import TrainConfig, Trainer
from fastft.trainer.saving import checkpoint, whole

from .conftest import MakeConfig

KILLS = 50
PLACES = ("mkdir", "save_model", "save_file", "write_json", "fsync", "rename", "rmtree")  # of what `save` calls


def train(config: TrainConfig, place: str | None = None, turn: int = 0) -> None:
    """Run to the end or to a kill of one's own: at the `turn`-th call of what is at `place`, half done if need be."""
    torch.set_num_threads(1)
    if place is not None:
        counter = itertools.count()
        owner: Any = {"mkdir": Path, "rename": Path, "rmtree": whole.shutil, "fsync": whole}.get(place, checkpoint)
        real = getattr(owner, place)

        def deadly(*args: Any, **kwargs: Any) -> Any:
            saving = any("checkpoint-" in str(arg) for arg in args)
            if saving and next(counter) == turn:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, place, deadly)
    Trainer(config, Console(file=io.StringIO(), width=100)).train()


def ended(folder: Path) -> dict[str, Any]:
    """What a finished run left: weights and optimizer state byte by byte, losses of the log."""
    last = checkpoint.checkpoints(folder)[-1]
    assert checkpoint.read_state(last)["step"] == 9
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    assert set(files) == {"model.safetensors", "optimizer.safetensors"}
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [(r["step"], r.get("loss", r.get("eval_loss"))) for r in records if "loss" in r or "eval_loss" in r]
    return {**files, "losses": losses}


@pytest.mark.timeout(900)
def test_fifty_kills_change_nothing(make_config: MakeConfig, untied_dir: str, tmp_path: Path) -> None:
    """With dropout, accumulation, packing, rows stepped by themselves, layers thawed on the way, and evaluations."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastft.trainer", "torch._dynamo"])
    course: dict[str, Any] = {
        "model": untied_dir, "max_steps": 9, "save_steps": 1, "save_total_limit": 2, "eval_fraction": 0.2,
        "eval_steps": 3, "freeze": ["layers.0"], "unfreeze": {4: ["layers.0"]}, "packing": True, "weight_decay": 0.1,
        "logging_steps": 1,
    }  # fmt: skip

    def run(folder: Path, seconds: float | None, *fault: Any) -> int | None:
        """Exit code of a process that goes on in a folder, and may be killed after so many seconds."""
        config = make_config(**course, output_dir=str(folder), resume_from_checkpoint=True)
        process = context.Process(target=train, args=(config, *fault))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode

    assert run(tmp_path / "whole", None) == 0
    truth = ended(tmp_path / "whole")
    dice, kills, attempt = random.Random(0), {"anywhere": 0, "saving": 0}, 0
    while sum(kills.values()) < KILLS:
        attempt += 1
        folder = tmp_path / f"killed{attempt}"
        code: int | None = None
        while code != 0 and sum(kills.values()) < KILLS:
            if sum(kills.values()) % 2:
                code = run(folder, dice.uniform(0.05, 2.0))
                kills["anywhere"] += code == -signal.SIGKILL
            else:
                code = run(folder, None, dice.choice(PLACES), dice.randrange(8))
                kills["saving"] += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL)
        if code != 0:
            assert run(folder, None) == 0
        assert ended(folder) == truth
    assert min(kills.values()) >= KILLS // 3, kills
