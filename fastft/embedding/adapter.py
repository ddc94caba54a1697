"""Trained rows as a PEFT adapter on disk: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = {torch.float32: "F32", torch.float64: "F64"}
Tensors = dict[str, tuple[str, list[int], bytes]]  # name: dtype, shape, data


def save_peft_adapter(
    folder: str | os.PathLike[str],
    rows: Mapping[tuple[str, ...], Tensor],
    token_ids: list[int],
    base_model: str | None,
) -> None:
    """Write rows (R, D) by the paths of the modules that share them; into the LoRA adapter there, if there is one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = {}, {}
    if (folder / CONFIG).exists():
        config = json.loads((folder / CONFIG).read_text())
        if config.get("peft_type") != "LORA" or not (folder / WEIGHTS).exists():
            kind = config.get("peft_type")
            raise ValueError(f"{folder} holds a {kind} adapter; expected LoRA in safetensors, or no adapter")
        config["trainable_token_indices"] = {paths[0]: token_ids for paths in rows}
        tensors = read(folder / WEIGHTS)
        names = {f"{paths[0]}.token_adapter": values for paths, values in rows.items()}
    else:
        config = {
            "peft_type": "TRAINABLE_TOKENS", "base_model_name_or_path": base_model, "inference_mode": True,
            "target_modules": [paths[0] for paths in rows], "token_indices": token_ids,
        }  # fmt: skip
        names = {path: values for paths, values in rows.items() for path in paths}
    for name, values in names.items():
        data = values.cpu().contiguous().numpy().tobytes()
        tensors[f"base_model.model.{name}.trainable_tokens_delta"] = DTYPES[values.dtype], list(values.shape), data
    write(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read(path: Path) -> Tensors:
    """A safetensors file: the header's length in 8 bytes, the header in JSON, data."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            tensors[name] = entry["dtype"], entry["shape"], raw[start + first : start + end]
    return tensors


def write(path: Path, tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data is aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))
