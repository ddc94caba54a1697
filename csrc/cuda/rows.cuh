#pragma once
#include "rows.h"
#include "search.cuh"
#include "tile.cuh"
#include "vector.cuh"

namespace fastft::cuda {

static_assert(kCompactTile == kTile, "rows.h tells the host");
constexpr int kMoveRows = 8;  // of the result, per block
constexpr int kMoveThreads = 256;

// Of the blocks before this one, and of all.
struct Counts {
  int64_t before, all;

  static __device__ Counts combine(Counts a, Counts b) { return {a.before + b.before, a.all + b.all}; }
};

inline __device__ auto supervised(const Compaction& a) {
  return [&a](int64_t i) { return i < a.n && a.target[i] != a.ignore_index; };
}

// Grid: tiles. Shared memory: int (warps,).
inline __device__ void count_tile(const Compaction& a) {
  const int count = count_chosen(supervised(a));
  if (threadIdx.x == 0) a.counts[blockIdx.x] = count;
}

// After count_tile, with the same grid. Shared memory: Counts (warps,), then int (warps,).
inline __device__ void select_tile(const Compaction& a) {
  Counts counts{0, 0};
  for (int i = threadIdx.x; i < static_cast<int>(gridDim.x); i += blockDim.x) {
    const int64_t count = a.counts[i];
    counts = Counts::combine(counts, {i < static_cast<int>(blockIdx.x) ? count : 0, count});
  }
  Counts* scratch = static_cast<Counts*>(shared_memory());
  counts = cluster_reduce<Counts>(counts, scratch);
  int* warp_totals = reinterpret_cast<int*>(scratch + kTileThreads / kWarp);
  take_chosen(counts.before, warp_totals, supervised(a), [&a](int64_t to, int64_t i) {
    if (to < a.capacity) a.valid[to] = i;
  });
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = counts.all + thread; i < a.capacity; i += int64_t{gridDim.x} * blockDim.x) a.valid[i] = -1;
  if (thread == 0) *a.count = counts.all;
}

// Rows [first, first + kMoveRows) of the result, each from row source[i] or, where that is -1, zeros.
// Unit: an unsigned type that all addresses and strides are multiples of.
template <class Unit>
__device__ void move_tile(const RowMove& a, int64_t first, const int64_t* source) {
  const int width = static_cast<int>(a.width / sizeof(Unit));
  const int rows = static_cast<int>(a.rows - first < kMoveRows ? a.rows - first : kMoveRows);
#pragma unroll 4
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
    const int row = i / width, column = i - row * width;
    Unit value{};
    if (source[row] >= 0) {
      const char* from = static_cast<const char*>(a.from) + source[row] * a.from_stride;
      value = reinterpret_cast<const Unit*>(from)[column];
    }
    reinterpret_cast<Unit*>(static_cast<char*>(a.to) + (first + row) * a.width)[column] = value;
  }
}

// Grid: tiles of kMoveRows rows. Shared memory: int64_t (kMoveRows,).
template <class Unit>
__device__ void gather_tile(const RowMove& a) {
  const int64_t first = int64_t{blockIdx.x} * kMoveRows;
  int64_t* source = static_cast<int64_t*>(shared_memory());
  if (threadIdx.x < kMoveRows && first + threadIdx.x < a.rows) {
    const int64_t row = a.index[first + threadIdx.x];
    source[threadIdx.x] = row < a.from_rows ? row : -1;
  }
  __syncthreads();
  move_tile<Unit>(a, first, source);
}

// Grid and shared memory as for gather_tile.
template <class Unit>
__device__ void scatter_tile(const RowMove& a) {
  const int64_t first = int64_t{blockIdx.x} * kMoveRows;
  int64_t* source = static_cast<int64_t*>(shared_memory());
  if (threadIdx.x < kWarp) {
    const int64_t k = lower_bound(a.index, a.from_rows, first) + threadIdx.x;
    if (threadIdx.x < kMoveRows) source[threadIdx.x] = -1;
    __syncwarp();
    if (k < a.from_rows) {
      const uint64_t row = static_cast<uint64_t>(a.index[k]) - static_cast<uint64_t>(first);
      if (row < kMoveRows) source[row] = k;
    }
  }
  __syncthreads();
  move_tile<Unit>(a, first, source);
}

}  // namespace fastft::cuda
