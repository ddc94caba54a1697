"""Checks, pointers and outputs of csrc/cuda/grouping.cu; contract: kernels/reference/grouping.py."""

import torch
from torch import Tensor

from fastft import _cuda
from fastft.kernels.cuda import launching_on, refusal

MOST_IDS, MOST_ROWS = 1 << 31, 1 << 32


def why_not(ids: Tensor, rows: int) -> str | None:
    if ids.dtype != torch.int64:
        return f"dtype is {ids.dtype}; expected torch.int64"
    if len(ids) >= MOST_IDS or rows > MOST_ROWS:
        return f"{len(ids)} ids of {rows}; expected fewer than {MOST_IDS} of at most {MOST_ROWS}"
    return refusal(ids)


def grouped(ids: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference; waits once, for the number of different ids, as the shapes follow from it."""
    if len(ids) == 0:
        touched, order, ends = ids.new_empty(3, 0).unbind()
        return touched, order, ends
    touched, order, ends, count = launched(ids, rows)
    different = int(count)
    return touched[:different], order, ends[:different]


def launched(ids: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(touched, order, ends), (N,) each, and (1,) how many of touched and ends are set. N > 0.

    On the current stream, waiting for nothing: a kernel that makes 32-bit pairs of id and position; CUB's radix sort
    of those by the bits that an id below `rows` has (one kernel for a few thousand; else a histogram, its sums, and one
    pass for each 8 bits, with what it clears); a kernel that counts groups, and one that writes them.
    """
    ids, n, bits = ids.contiguous(), len(ids), max(1, (rows - 1).bit_length())
    out = ids.new_empty(3 * n + 1)
    touched, order, ends = out[:-1].view(3, n).unbind()
    with launching_on(ids) as stream:
        scratch = torch.empty(_cuda.grouping_scratch(n, bits), dtype=torch.uint8, device=ids.device)
        _cuda.group(
            n, ids.data_ptr(), bits, scratch.data_ptr(), len(scratch), touched.data_ptr(), order.data_ptr(),
            ends.data_ptr(), out[-1:].data_ptr(), stream,
        )  # fmt: skip
    return touched, order, ends, out[-1:]
