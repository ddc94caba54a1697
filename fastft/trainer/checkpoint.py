"""Checkpoints that are whole or absent: `checkpoint-<step>/` in `save_pretrained` layout, plus what resume needs.

    model.safetensors, config.json, ...     the model, loads in plain transformers
    tokenizer.json, ...                     its tokenizer
    optimizer.safetensors                   "<parameter>/<state>" tensors; no pickle
    trainer_state.json                      step, counters, config, fingerprint of the data
    manifest.json                           size and SHA-256 of each of the above

A folder is written under a hidden name, each file fsynced, and renamed when it is whole. No generator state is
kept: the trainer seeds every step from (seed, step).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

STATE, OPTIMIZER, MANIFEST = "trainer_state.json", "optimizer.safetensors", "manifest.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint that is incomplete or was changed after it was written."""


def save(
    output_dir: Path, step: int, model: Any, tokenizer: Any, optimizer: Optimizer | None, state: Mapping[str, Any]
) -> Path:
    """Write `output_dir/checkpoint-<step>` and return its path; one that is already there is replaced.

    Args:
        model, tokenizer: anything with `save_pretrained(folder)`; the model is an `nn.Module` too.
        optimizer: None leaves its state out.
        state: what goes into trainer_state.json.

    Raises:
        OSError: it cannot be written (disk full, no permission). Other checkpoints are as they were.
    """
    final = output_dir / f"checkpoint-{step}"
    draft = output_dir / f".checkpoint-{step}.draft"
    output_dir.mkdir(parents=True, exist_ok=True)
    for rest in output_dir.glob(".checkpoint-*"):  # of a killed process
        shutil.rmtree(rest, ignore_errors=True)
    try:
        draft.mkdir()
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if optimizer is not None:
            save_file(optimizer_tensors(model, optimizer), draft / OPTIMIZER)
        write_json(draft / STATE, {"step": step, **state})
        write_json(draft / MANIFEST, {file: _facts(draft / file) for file in _files(draft)})
        for file in (*_files(draft), "."):
            _fsync(draft / file)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    remove(final)
    draft.rename(final)
    _fsync(output_dir)
    return final


def checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` folders, oldest first."""
    found = output_dir.glob("checkpoint-*") if output_dir.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint in such a way that half of one is never seen under its name."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer_state.json of a checkpoint that was first checked file by file.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedCheckpoint: a file is missing, cut or changed; the message names it.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"checkpoint folder {checkpoint} not found")
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        wanted = {str(file): (facts["bytes"], facts["sha256"]) for file, facts in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(
            f"{checkpoint}: {MANIFEST} is missing or damaged, so this is not a whole checkpoint"
        ) from error
    for file, (size, digest) in wanted.items():
        path = checkpoint / file
        if not path.is_file():
            raise DamagedCheckpoint(f"{checkpoint}: {file} is missing")
        if path.stat().st_size != size:
            raise DamagedCheckpoint(f"{checkpoint}: {file} has {path.stat().st_size} bytes; wanted {size}")
        if _facts(path)["sha256"] != digest:
            raise DamagedCheckpoint(f"{checkpoint}: {file} was changed after it was written")
    if STATE not in wanted:
        raise DamagedCheckpoint(f"{checkpoint}: {STATE} is missing")
    return dict(json.loads((checkpoint / STATE).read_text()))


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "<parameter>/<state>"."""
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put the saved state into a fresh optimizer over the same model. A parameter that has none, as it never had a
    gradient, starts without.

    Raises:
        ValueError: the checkpoint holds the model only, or other parameters.
    """
    if not (checkpoint / OPTIMIZER).is_file():
        raise ValueError(
            f"{checkpoint} holds the model without the optimizer (save_only_model): it cannot be resumed. "
            f"To train it further as a new run: --model {checkpoint}"
        )
    saved: dict[str, dict[str, Tensor]] = {}
    for path, value in load_file(checkpoint / OPTIMIZER).items():
        name, _, key = path.rpartition("/")
        saved.setdefault(name, {})[key] = value
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    unlike = sorted(set(saved) - set(order))
    if unlike:
        raise ValueError(f"{checkpoint}: the optimizer's parameters are not the model's, which has no {unlike[:3]}")
    state = {place: saved[name] for place, name in enumerate(order) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
