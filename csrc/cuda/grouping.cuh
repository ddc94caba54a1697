#pragma once
#include "grouping.h"
#include "tile.cuh"

// An end is a position of the sorted pairs whose id is not that of the next.
namespace fastft::cuda {

// An id and where it stands, (n,) each.
struct Pairs {
  uint32_t *ids, *positions;
};

// Grid: kTileThreads positions a block.
inline __device__ void make_pair(const Grouping& a, const Pairs& to) {
  const int64_t i = int64_t{blockIdx.x} * kTileThreads + threadIdx.x;
  if (i >= a.n) return;
  to.ids[i] = static_cast<uint32_t>(a.ids[i]);
  to.positions[i] = static_cast<uint32_t>(i);
}

inline __device__ auto is_end(const uint32_t* ids, int64_t n) {
  return [ids, n](int64_t i) { return i < n && (i + 1 == n || ids[i] != ids[i + 1]); };
}

// `counts` (tiles,). Grid: tiles of sorted pairs. Shared memory: int (warps,).
inline __device__ void count_ends(const Grouping& a, const Pairs& sorted, int* counts) {
  const int ends = count_chosen(is_end(sorted.ids, a.n));
  if (threadIdx.x == 0) counts[blockIdx.x] = ends;
}

// After count_ends, with the same grid. Shared memory: int (2, warps).
inline __device__ void write_groups(const Grouping& a, const Pairs& sorted, const int* counts) {
  int before = 0;  // ends in earlier tiles
  for (int i = threadIdx.x; i < static_cast<int>(blockIdx.x); i += blockDim.x) before += counts[i];
  int* scratch = static_cast<int*>(shared_memory());
  before = cluster_reduce<Sum>(before, scratch);
  const auto write = [&a, &sorted](int64_t to, int64_t i) {
    a.touched[to] = sorted.ids[i];
    a.ends[to] = i + 1;
  };
  const int64_t to = take_chosen(before, scratch + kTileThreads / kWarp, is_end(sorted.ids, a.n), write);
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x + 1 == kTileThreads) *a.count = to;

#pragma unroll
  for (int k = 0; k < kTilePerThread; ++k) {
    const int64_t i = tile_start() + k * kTileThreads + threadIdx.x;
    if (i < a.n) a.order[i] = sorted.positions[i];
  }
}

}  // namespace fastft::cuda
