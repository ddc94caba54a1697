"""State that is spread over processes, in and out of files: each process writes its part, any number of them reads it.

torch.distributed.checkpoint, with safetensors for files: nothing is pickled.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, some of them sharded; all processes call it."""
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_shards(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a folder, whole; those that have the shape of `like` of their name in the way that one is spread.

    Args:
        like: by name up to the last "/".
    """
    reader = HuggingFaceStorageReader(str(folder))
    known: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {}
    for name, facts in known.items():
        model = like.get(name.rpartition("/")[0])
        dtype = facts.properties.dtype
        alike = model is not None and model.shape == facts.size
        tensors[name] = (
            torch.zeros_like(model, dtype=dtype)
            if model is not None and alike
            else torch.zeros(facts.size, dtype=dtype)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
        load(tensors, storage_reader=reader)
    return tensors


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is spread, if it is and has its shape."""
    if isinstance(like, DTensor) and not isinstance(value, DTensor) and value.shape == like.shape:
        value = value.to(like.device_mesh.device_type)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def gathered(model: nn.Module) -> dict[str, Any]:
    """The whole state of a sharded model on the CPU of the leading process; {} elsewhere. All processes call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def restore(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a whole state into a model, sharded or not."""
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
