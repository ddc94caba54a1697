"""Sums of rows by segment in Triton, the same bits each time: chunks of positions, then a segment's chunks in order.

Values (N, WIDTH), Order (N,), Ends (U,); a chunk is CHUNK positions from the start of its segment on. Chunk 0 of
segment u, from position s on, goes to Out[u]; its chunk k > 0 to Partials[s // CHUNK + k - 1], which is below the first
place of the next segment: the grid and the scratch memory follow from N and U.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastft.kernels.triton import on_device, refusal
from fastft.kernels.triton.rows import with_unit_stride
from fastft.kernels.triton.tuning import IN_FLIGHT, SEGMENT_CHUNK, row_block

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COUNTS = ["segments", "steps"]  # from batch to batch: they do not recompile


@triton.jit
def start_of(Ends, u):
    return tl.load(Ends + u - 1, mask=u > 0, other=0)


@triton.jit
def later_chunk(Ends, place, segments, steps, CHUNK: tl.constexpr):
    """(u, start, end) of the chunk whose sum is Partials[place], and of its segment's end; if start >= end, none.

    It starts less than CHUNK after position (place + 1) CHUNK, in the same segment, found in `steps` halvings.
    """
    position = (place + 1).to(tl.int64) * CHUNK
    low = tl.zeros((), tl.int32)
    high = low + segments
    for _ in range(steps):
        middle = (low + high) // 2
        before = (low < high) & (tl.load(Ends + middle, mask=low < high, other=0) <= position)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    start = start_of(Ends, low)
    end = tl.load(Ends + low)
    return low, start + (place + 1 - start // CHUNK) * CHUNK, end


@triton.jit(do_not_specialize=COUNTS)
def sum_kernel(
    Values, Order, Ends, Out, Partials, segments, steps, stride, WIDTH, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """A chunk's sum: the first ones of all segments, then the later ones."""
    program = tl.program_id(0)
    if program < segments:
        start = start_of(Ends, program)
        end = tl.load(Ends + program)
        To = Out + program.to(tl.int64) * WIDTH
    else:
        _, start, end = later_chunk(Ends, program - segments, segments, steps, CHUNK)
        To = Partials + (program - segments).to(tl.int64) * WIDTH
    end = tl.minimum(end, start + CHUNK)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for i in range(start, end, UNROLL):
        for j in tl.static_range(UNROLL):
            there = i + j < end
            row = tl.load(Order + i + j, mask=there, other=0)
            total += tl.load(Values + row * stride + c, mask=there & (c < WIDTH), other=0.0).to(tl.float32)
    tl.store(To + c, total, mask=(start < end) & (c < WIDTH))


@triton.jit(do_not_specialize=COUNTS)
def add_kernel(
    Ends, Out, Partials, segments, steps, WIDTH, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, UNROLL: tl.constexpr
):
    """After `sum_kernel`: the program of a segment's first place adds its partial sums to its row of Out."""
    place = tl.program_id(0)
    u, start, end = later_chunk(Ends, place, segments, steps, CHUNK)
    if (start < end) & (start == start_of(Ends, u) + CHUNK):
        c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        To = Out + u.to(tl.int64) * WIDTH + c
        total = tl.load(To, mask=c < WIDTH, other=0.0)
        count = (end - start + CHUNK - 1) // CHUNK
        for i in range(0, count, UNROLL):
            for j in tl.static_range(UNROLL):
                From = Partials + (place + i + j) * WIDTH + c
                total += tl.load(From, mask=(i + j < count) & (c < WIDTH), other=0.0)
        tl.store(To, total, mask=c < WIDTH)


def why_not(values: Tensor) -> str | None:
    return refusal(values) or (None if values.dtype in DTYPES else f"dtype is {values.dtype}")


def segment_sum(values: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """(U, D) fp32: row u sums `values` (N, D) at `order` (N,)[ends[u - 1] : ends[u]]; no segment is empty."""
    values, order, ends = with_unit_stride(values), order.contiguous(), ends.contiguous()
    n, segments, width = len(order), len(ends), values.shape[1]
    out = torch.empty(segments, width, dtype=torch.float32, device=values.device)
    if not out.numel():
        return out
    places = (n - 1) // SEGMENT_CHUNK
    partials = torch.empty(places, width, dtype=torch.float32, device=values.device)
    columns, warps = row_block(width)
    shape = {"CHUNK": SEGMENT_CHUNK, "COLUMNS": columns, "UNROLL": IN_FLIGHT, "num_warps": warps}
    blocks, steps = triton.cdiv(width, columns), segments.bit_length()
    with on_device(values):
        sum_kernel[(segments + places, blocks)](
            values, order, ends, out, partials, segments, steps, values.stride(0), width, **shape
        )
        if places:
            add_kernel[(places, blocks)](ends, out, partials, segments, steps, width, **shape)
    return out
