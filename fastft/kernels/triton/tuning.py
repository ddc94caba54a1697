"""How launches are shaped. Every number stands here.

None is measured yet. They follow from published tables (8 to 16 warps, blocks of 4 to 16 thousand elements), from
registers per thread as compiled ahead of time (at most 128, so that 16 warps of a processor run at once: two vectors
per thread, and four where there are no more warps) and from the traffic model of `plan_for`, for an H100: 132
processors, 50 MB of L2, device copy 3.0 TB/s (2026-11-13).
"""

import functools
from typing import NamedTuple

import torch

VECTOR = 16  # bytes per load or store


class Block(NamedTuple):
    lanes: int  # vectors
    warps: int
    programs: int  # per processor


BLOCKS = (  # for rows of up to so many bytes
    (2 << 10, Block(lanes=128, warps=4, programs=8)),
    (16 << 10, Block(lanes=256, warps=4, programs=4)),
    (128 << 10, Block(lanes=512, warps=8, programs=2)),
    (1 << 62, Block(lanes=2048, warps=16, programs=1)),
)
SPLIT_BLOCK = Block(lanes=512, warps=8, programs=2)
LANES_BESIDE = 64  # per warp at most where q, a softcap or a gradient that is aligned differently takes registers too
MAX_PARTS = 64  # of a split row
WAVES = 4  # programs of a split launch per processor
L2_SHARE = 0.8  # what may wait in L2 for its second pass
RESIDENT_RATE = 0.9  # bandwidth of resident rows by that of split ones: a processor idles while a row's sums are joined
SECOND_LAUNCH = 64 << 10  # bytes that a processor moves in the time of one launch
SCAN_BLOCK = 1024  # tokens per program of a compaction
TILE = 8 << 10  # bytes of rows that a program gathers or scatters at once
SEGMENT_CHUNK = 32  # positions summed in order before sums are summed
IN_FLIGHT = 4  # rows of them loaded before any is added
ROW_COLUMNS = 1024  # of a row that a program has in registers at once
WARP_COLUMNS = 256  # of these per warp


class Device(NamedTuple):
    processors: int
    l2_bytes: int


class Plan(NamedTuple):
    block: Block
    programs: int
    parts: int  # of a split row; 0 for resident rows


@functools.cache
def device_facts(device: torch.device) -> Device:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Device(properties.multi_processor_count, properties.L2_cache_size)
    if device.type == "xpu":
        return Device(torch.xpu.get_device_properties(device).gpu_subslice_count, 0)
    return Device(4, 1 << 20)


def plan_for(rows: int, row_bytes: int, with_grad: bool, device: Device) -> Plan:
    """The cheaper way through the rows (one at least), by the bytes that the busiest processor moves for a gradient.

    Both ways read and write each row once, and read again what L2 has lost by then: of resident rows what does not
    fit L2_SHARE of L2 at a time, of split rows what does not fit of all. Without a gradient rows go the same way,
    for the same bits, in as many programs as there is room for.
    """
    block = next(block for limit, block in BLOCKS if row_bytes <= limit)
    blocks = -(-row_bytes // (SPLIT_BLOCK.lanes * VECTOR))
    room = int(L2_SHARE * device.l2_bytes)
    fitting = max(1, min(block.programs, room // (device.processors * row_bytes)))

    def traffic(rows_each: float, bytes_waiting: int) -> float:
        return rows_each * row_bytes * (2.0 + max(0.0, 1.0 - room / bytes_waiting))

    resident = traffic(-(-rows // device.processors), min(rows, fitting * device.processors) * row_bytes)
    split = traffic(rows / device.processors, rows * row_bytes) + SECOND_LAUNCH
    if blocks > 1 and split < resident / RESIDENT_RATE:
        parts = min(blocks, MAX_PARTS, -(-WAVES * device.processors // rows))
        return Plan(SPLIT_BLOCK, rows * parts, parts)
    return Plan(block, min(rows, (fitting if with_grad else block.programs) * device.processors), 0)


def row_tile(width: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns, powers of two, of a tile of TILE bytes."""
    columns = min(1 << (width - 1).bit_length(), TILE // 4 // itemsize)
    return TILE // itemsize // columns, columns


def row_block(width: int) -> tuple[int, int]:
    """Columns, a power of two, of one row that a program has at once, and its warps."""
    columns = min(1 << (width - 1).bit_length(), ROW_COLUMNS)
    return columns, max(1, columns // WARP_COLUMNS)
