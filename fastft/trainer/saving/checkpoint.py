"""Checkpoints that are whole or absent: `checkpoint-<step>/` in `save_pretrained` layout, plus what resume needs.

    model.safetensors, config.json, ...     the model, loads in plain transformers
    tokenizer.json, ...                     its tokenizer
    optimizer.safetensors                   "<parameter>/<state>" tensors. Of a sharded run: optimizer/, safetensors as
                                            well; with tensors of a kind of its own: optimizer.pt, read as weights only
    trainer_state.json                      step, counters, config, fingerprint of the data
    manifest.json                           size and SHA-256 of each of the above

No generator state is kept: the trainer seeds every batch from (seed, step, batch).
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from fastft.trainer.adapt import is_adapted, save_model
from fastft.trainer.distributed import World
from fastft.trainer.saving.shards import gathered, is_sharded, load_shards, save_shards, spread
from fastft.trainer.saving.whole import whole_or_absent

STATE, OPTIMIZER, MANIFEST = "trainer_state.json", "optimizer.safetensors", "manifest.json"
OTHER_TENSORS = "optimizer.pt"  # in place of the file, where an optimizer has tensors of a kind of its own
SHARDS = "optimizer"  # in place of the file, where several processes hold the state


class DamagedCheckpoint(ValueError):
    """A checkpoint that is incomplete or was changed after it was written."""


def save(
    output_dir: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    optimizers: Sequence[Optimizer],
    state: Mapping[str, Any],
    world: World | None = None,
    learners: Iterable[str] = (),
) -> Path:
    """Write `output_dir/checkpoint-<step>` and return its path; one that is already there is replaced.

    Args:
        model, tokenizer: anything with `save_pretrained(folder)`; the model is an `nn.Module` too.
        optimizers: none leaves their state out.
        state: what goes into trainer_state.json.
        world: the processes of the run, all of which call it and see the same folder.
        learners: names of parameters that learn at some step of the run, where adapters are on the model.

    Raises:
        OSError: it cannot be written (disk full, no permission). Other checkpoints are as they were.
    """
    world = world or World()
    final = output_dir / f"checkpoint-{step}"
    sharded = is_sharded(model)
    if world.leads:
        for rest in output_dir.glob(".checkpoint-*"):  # of a killed process
            shutil.rmtree(rest, ignore_errors=True)
    with whole_or_absent(final, world) as draft:
        whole = {"state_dict": gathered(model)} if sharded else {}
        tensors = optimizer_tensors(model, optimizers)
        if sharded and optimizers:
            save_shards(draft / SHARDS, tensors)
        if world.leads:
            save_model(model, draft, learners, **whole)
            tokenizer.save_pretrained(draft)
            if optimizers and not sharded:
                _save_tensors(tensors, draft)
            write_json(draft / STATE, {"step": step, **state})
            write_json(draft / MANIFEST, {file: _facts(draft / file) for file in _files(draft)})
    return final


def check_space(output_dir: Path, model: nn.Module, learners: Iterable[nn.Parameter], *, optimizer: bool) -> None:
    """Refuse a run whose first checkpoint would not find room: the model, and two moments of what learns.

    Raises:
        OSError: with the room there is and what is wanted.
    """
    learners = list(learners)
    kept = learners if is_adapted(model) else model.parameters()
    wanted = sum(p.numel() * p.element_size() for p in kept)
    wanted += sum(2 * p.numel() * p.element_size() for p in learners) if optimizer else 0
    free = shutil.disk_usage(output_dir).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint takes {wanted / 1e9:.1f} GB, and {output_dir} has {free / 1e9:.1f} GB left: choose another "
            "--output_dir, or --save_only_model true",
        )


def checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` folders, oldest first."""
    found = output_dir.glob("checkpoint-*") if output_dir.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """By its name, or, where it was copied to another one, by what is in it."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number if number.isdecimal() else json.loads((checkpoint / STATE).read_text())["step"])


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


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by parameter name: "<parameter>/<state>"."""
    return {
        f"{name}/{key}": value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for optimizer in optimizers
        for name, held in zip(_order(model, optimizer), _held(optimizer), strict=True)
        for key, value in held.items()
    }


def load_optimizers(checkpoint: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put the saved state into fresh optimizers over the same model. A parameter that has none, as it never had a
    gradient, starts without. Whether state or model are spread over processes, then or now, does not matter.

    Raises:
        ValueError: the checkpoint holds the model only, or other parameters.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if (checkpoint / SHARDS).is_dir():
        tensors = load_shards(checkpoint / SHARDS, parameters)
    elif (checkpoint / OPTIMIZER).is_file():
        tensors = load_file(checkpoint / OPTIMIZER)
    elif (checkpoint / OTHER_TENSORS).is_file():
        tensors = torch.load(checkpoint / OTHER_TENSORS, map_location="cpu", weights_only=True)
    else:
        raise ValueError(
            f"{checkpoint} holds the model without the optimizer (save_only_model): it cannot be resumed. "
            f"To train it further as a new run: --model {checkpoint}"
        )
    saved: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        saved.setdefault(name, {})[key] = spread(value, parameters.get(name, value))
    orders = [_order(model, optimizer) for optimizer in optimizers]
    unlike = sorted(set(saved).difference(*orders))
    if unlike:
        raise ValueError(f"{checkpoint}: the optimizer's parameters are not the model's, which has no {unlike[:3]}")
    for order, optimizer in zip(orders, optimizers, strict=True):
        state = {place: saved[name] for place, name in enumerate(order) if name in saved}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _save_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """safetensors know plain tensors; 8-bit ones of torchao go where torch reads them as weights only."""
    if all(type(tensor) is Tensor for tensor in tensors.values()):
        save_file(tensors, folder / OPTIMIZER)
    else:
        torch.save(tensors, folder / OTHER_TENSORS)


def _order(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of an optimizer's parameters, in the order by which its state is numbered."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _held(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The state of each of its parameters, {} where there is none."""
    state = optimizer.state_dict()["state"]
    return [state.get(place, {}) for place in range(sum(len(group["params"]) for group in optimizer.param_groups))]


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
