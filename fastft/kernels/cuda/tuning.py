"""How a launch of cross_entropy is shaped: blocks per row, threads, shared memory. Every number stands here.

Not yet measured: the numbers follow from what a multiprocessor of an H100 holds (228 KiB of shared memory, 64 Ki
registers at 64 per thread) and from 3.0 TB/s of device copy, measured on 2026-11-13. Several blocks on each
multiprocessor keep memory busy: while one waits for its cluster or computes, others load and store.
"""

from typing import NamedTuple

VECTOR = 16  # bytes per load, copy or store
CLUSTERS = (1, 2, 4, 8)  # 8: the most that every device with clusters can run
VECTORS = 4  # per thread at least, so that summing over threads does not cost more than reading
WORTH_SHARING = 1024  # vectors of a block, of which another can take half when rows are few
L2_SHARE = 0.5  # of L2 that parts of rows waiting for their second pass may fill
WARP = 32
ROW_SUM = 20  # bytes per warp of the cluster: RowSum in csrc/cuda/cross_entropy.cuh


class Blocks(NamedTuple):
    per_multiprocessor: int
    threads: int  # of each, at most


BLOCKS = (Blocks(3, 256), Blocks(2, 512), Blocks(1, 1024))  # best first


class Device(NamedTuple):
    """Memory in bytes; csrc/cuda/launch.h."""

    capability: int  # 10 major + minor
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    shared_reserved: int  # per block
    l2: int


class Plan(NamedTuple):
    cluster: int  # blocks per row
    threads: int  # per block
    cached: int  # vectors per block in shared memory; a row's others are read twice


def plan_for(rows: int, row_bytes: int, with_grad: bool, device: Device) -> Plan:
    """The smallest cluster whose blocks hold the row in shared memory, several blocks per multiprocessor.

    A row that no such cluster holds is kept in part: by as many blocks per multiprocessor as leave the rest of
    their rows in L2. Few rows go to larger clusters, so that each multiprocessor has work.
    """
    vectors = -(-row_bytes // VECTOR)
    clusters = CLUSTERS if device.capability >= 90 else CLUSTERS[:1]
    fitting = (c for c in clusters if not with_grad or lacking(vectors, c, BLOCKS[0], device) == 0)
    cluster = next(fitting, clusters[-1])
    while rows * cluster < device.multiprocessors and cluster < clusters[-1] and vectors > cluster * WORTH_SHARING:
        cluster *= 2
    for blocks in BLOCKS:
        waiting = (
            blocks.per_multiprocessor * device.multiprocessors * lacking(vectors, cluster, blocks, device) * VECTOR
        )
        if not with_grad or waiting <= L2_SHARE * device.l2:
            break
    share = -(-vectors // cluster)
    threads = min(blocks.threads, max(WARP, share // VECTORS))
    threads = 1 << (threads.bit_length() - 1)
    return Plan(cluster, threads, min(share, room(cluster, blocks, device)) if with_grad else 0)


def lacking(vectors: int, cluster: int, blocks: Blocks, device: Device) -> int:
    """Vectors of a block's share of the row that it cannot keep."""
    return max(0, -(-vectors // cluster) - room(cluster, blocks, device))


def room(cluster: int, blocks: Blocks, device: Device) -> int:
    """Vectors that each of these blocks can keep in shared memory."""
    most = min(
        device.shared_per_block, device.shared_per_multiprocessor // blocks.per_multiprocessor - device.shared_reserved
    )
    sums = -(-cluster * blocks.threads // WARP * ROW_SUM // VECTOR)
    return most // VECTOR - sums
