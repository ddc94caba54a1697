"""Places in the state for rows that have none, in plain torch, on any device."""

import torch
from torch import Tensor


def why_not(slot: Tensor) -> str | None:
    return None


def assigned(slot: Tensor, ids: Tensor, used: int) -> int:
    """In slot (V,), int32: the places `used`, used + 1, ... for those of ids (K,), each once, that have -1, in their
    order. Returns how many are used then.
    """
    new = ids[slot[ids] < 0]
    slot[new] = torch.arange(used, used + len(new), dtype=slot.dtype, device=slot.device)
    return used + len(new)
