"""Trained rows as a PEFT adapter on disk: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
        tensors = load_file(folder / WEIGHTS)
        names = {f"{paths[0]}.token_adapter": values for paths, values in rows.items()}
    else:
        config = {
            "peft_type": "TRAINABLE_TOKENS", "base_model_name_or_path": base_model, "inference_mode": True,
            "target_modules": [paths[0] for paths in rows], "token_indices": token_ids,
        }  # fmt: skip
        names = {path: values for paths, values in rows.items() for path in paths}
    for name, values in names.items():
        # A copy for each name: safetensors refuses tensors that share memory.
        tensors[f"base_model.model.{name}.trainable_tokens_delta"] = values.detach().to("cpu", copy=True).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
