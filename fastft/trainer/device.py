"""Where a run computes, and in which precision."""

import torch


def training_device() -> torch.device:
    """The current GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(wanted: bool | None, device: torch.device) -> bool:
    """Whether matmuls run in bf16; None means on a GPU that can.

    Raises:
        ValueError: wanted, but the GPU has no bf16.
    """
    can = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted and not can:
        raise ValueError(f"bf16 is true, but {describe(device)} has no bf16: set it to false")
    return device.type == "cuda" and can if wanted is None else wanted


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
