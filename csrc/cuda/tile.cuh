#pragma once
#include "reduce.cuh"
#include "vector.cuh"

// A tile of neighbouring positions for each block, some of them chosen: tiles count theirs, then take them
// one after the other, behind those of the tiles before.
namespace fastft::cuda {

constexpr int kTileThreads = 256;
constexpr int kTilePerThread = 8;
constexpr int kTile = kTileThreads * kTilePerThread;

struct Sum {
  template <class T>
  static __device__ T combine(T a, T b) {
    return a + b;
  }
};

inline __device__ int64_t tile_start() { return int64_t{blockIdx.x} * kTile; }

// For how many i of the tile `chosen(i)` holds; i may be beyond the last. Shared memory: int (warps,).
template <class Chosen>
__device__ int count_chosen(const Chosen& chosen) {
  int count = 0;
#pragma unroll
  for (int k = 0; k < kTilePerThread; ++k) count += chosen(tile_start() + k * kTileThreads + threadIdx.x);
  return cluster_reduce<Sum>(count, static_cast<int*>(shared_memory()));
}

// `take(to, i)` for each of those i, ascending, with `to` from `before` on; returns the `to` behind this
// thread's. A thread has kTilePerThread neighbours. `scratch`: int (warps,), in shared memory.
template <class Chosen, class Take>
__device__ int64_t take_chosen(int64_t before, int* scratch, const Chosen& chosen, const Take& take) {
  const int64_t start = tile_start() + threadIdx.x * kTilePerThread;
  unsigned bits = 0;  // one for each position
#pragma unroll
  for (int k = 0; k < kTilePerThread; ++k) bits |= unsigned{chosen(start + k)} << k;
  int64_t to = before + block_scan<Sum>(__popc(bits), 0, scratch);
#pragma unroll
  for (int k = 0; k < kTilePerThread; ++k) {
    if (bits >> k & 1u) take(to++, start + k);
  }
  return to;
}

}  // namespace fastft::cuda
