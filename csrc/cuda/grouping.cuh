#pragma once
#include "grouping.h"
#include "rows.cuh"  // Sum

// An end is a position of the sorted pairs whose id is not that of the next. Tiles count their ends, then
// write theirs after those of the tiles before.
namespace fastft::cuda {

constexpr int kGroupThreads = 256;
constexpr int kPairsPerThread = 8;
constexpr int kGroupTile = kGroupThreads * kPairsPerThread;

// An id and where it stands, (n,) each.
struct Pairs {
  uint32_t *ids, *positions;
};

// Grid: tiles of kGroupThreads positions.
inline __device__ void make_pair(const Grouping& a, const Pairs& to) {
  const int64_t i = int64_t{blockIdx.x} * kGroupThreads + threadIdx.x;
  if (i >= a.n) return;
  to.ids[i] = static_cast<uint32_t>(a.ids[i]);
  to.positions[i] = static_cast<uint32_t>(i);
}

inline __device__ bool is_end(const uint32_t* ids, int64_t n, int64_t i) {
  return i < n && (i + 1 == n || ids[i] != ids[i + 1]);
}

// `counts` (tiles,). Grid: tiles of kGroupTile sorted pairs. Shared memory: int (warps,).
inline __device__ void count_ends(const Grouping& a, const Pairs& sorted, int* counts) {
  const int64_t start = int64_t{blockIdx.x} * kGroupTile + threadIdx.x;
  int ends = 0;
#pragma unroll
  for (int k = 0; k < kPairsPerThread; ++k) ends += is_end(sorted.ids, a.n, start + k * kGroupThreads);
  ends = cluster_reduce<Sum>(ends, static_cast<int*>(shared_memory()));
  if (threadIdx.x == 0) counts[blockIdx.x] = ends;
}

// After count_ends, with the same grid. A thread has kPairsPerThread neighbours. Shared memory: int (2,
// warps).
inline __device__ void write_groups(const Grouping& a, const Pairs& sorted, const int* counts) {
  int before = 0;  // ends in earlier tiles
  for (int i = threadIdx.x; i < static_cast<int>(blockIdx.x); i += blockDim.x) before += counts[i];
  int* scratch = static_cast<int*>(shared_memory());
  before = cluster_reduce<Sum>(before, scratch);

  const int64_t tile = int64_t{blockIdx.x} * kGroupTile, start = tile + threadIdx.x * kPairsPerThread;
  unsigned ends = 0;  // a bit per pair
#pragma unroll
  for (int k = 0; k < kPairsPerThread; ++k) ends |= unsigned{is_end(sorted.ids, a.n, start + k)} << k;
  int64_t to = before + block_scan<Sum>(__popc(ends), 0, scratch + kGroupThreads / kWarp);
#pragma unroll
  for (int k = 0; k < kPairsPerThread; ++k) {
    if (!(ends >> k & 1u)) continue;
    a.touched[to] = sorted.ids[start + k];
    a.ends[to] = start + k + 1;
    ++to;
  }
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x + 1 == kGroupThreads) *a.count = to;

#pragma unroll
  for (int k = 0; k < kPairsPerThread; ++k) {
    const int64_t i = tile + k * kGroupThreads + threadIdx.x;
    if (i < a.n) a.order[i] = sorted.positions[i];
  }
}

}  // namespace fastft::cuda
