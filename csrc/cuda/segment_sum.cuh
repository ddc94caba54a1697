#pragma once
#include "elements.cuh"
#include "search.cuh"
#include "segment_sum.h"

// Chunk 0 of segment u, from position s to e, goes to out[u], its chunk k to partials[s / 32 + k - 1]: places
// that no other segment has, as s + 32 k < e, and the next one's start at e / 32. So the grid and the scratch
// follow from n and the number of segments. Then partials are added to out[u].
namespace fastft::cuda {

constexpr int kSegmentThreads = 128;
constexpr int kRowsInFlight = 4;  // loaded before any is added

// A chunk: of which segment, its number there, and its positions [start, start + count), none if count <= 0.
struct Chunk {
  int64_t segment, number, start, count, end;  // end: of the segment
};

inline __device__ __host__ int64_t later_chunks(const SegmentSum& a) {
  return a.n > 0 ? (a.n - 1) / kSegmentChunk : 0;
}

inline __device__ Chunk chunk_of(int64_t segment, int64_t number, int64_t begin, int64_t end) {
  const int64_t start = begin + number * kSegmentChunk, rest = end - start;
  return {segment, number, start, rest < kSegmentChunk ? rest : kSegmentChunk, end};
}

inline __device__ int64_t begin_of(const SegmentSum& a, int64_t segment) {
  return segment > 0 ? a.ends[segment - 1] : 0;
}

inline __device__ Chunk first_chunk(const SegmentSum& a, int64_t segment) {
  return chunk_of(segment, 0, begin_of(a, segment), a.ends[segment]);
}

// The chunk whose sum is partials[place], if there is one. By whole warps.
inline __device__ Chunk later_chunk(const SegmentSum& a, int64_t place) {
  const int64_t segment = lower_bound(a.ends, a.segments, (place + 1) * kSegmentChunk);
  const int64_t begin = begin_of(a, segment);
  return chunk_of(segment, place + 1 - begin / kSegmentChunk, begin, a.ends[segment]);
}

// sum += the rows at row(0), ..., row(count - 1), in that order.
template <int lanes, class Row>
__device__ void add_rows(float (&sum)[lanes], int count, Row row) {
#pragma unroll 1
  for (int i = 0; i < count; i += kRowsInFlight) {
    decltype(row(0)) from[kRowsInFlight];
    float x[kRowsInFlight][lanes];
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) from[k] = i + k < count ? row(i + k) : nullptr;
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
      if (i + k < count) load_elements(from[k], x[k]);
    }
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
#pragma unroll
      for (int j = 0; j < lanes; ++j) sum[j] = i + k < count ? sum[j] + x[k][j] : sum[j];
    }
  }
}

// This block's `blockDim.x / group` places, by tiles of columns, and this thread's of them.
struct Tile {
  int group, row, places;
  int64_t first, column;

  __device__ Tile(int64_t width, int group, int lanes) : group(group) {
    const int columns = static_cast<int>((width + group * lanes - 1) / (group * lanes));
    const int tile = blockIdx.x / columns;
    row = threadIdx.x / group;
    places = blockDim.x / group;
    first = int64_t{tile} * places;
    column = (int64_t{blockIdx.x} - int64_t{tile} * columns) * group * lanes + threadIdx.x % group * lanes;
  }
};

// Places: the segments' first chunks, then the later ones. Grid: tiles of places by tiles of columns. Shared
// memory: Chunk (blockDim.x / group,).
template <class T, int lanes>
__device__ void sum_chunks(const SegmentSum& a, int group) {
  const Tile tile(a.width, group, lanes);
  const int64_t all = a.segments + later_chunks(a);
  Chunk* chunks = static_cast<Chunk*>(shared_memory());
  for (int i = threadIdx.x / kWarp; i < tile.places; i += blockDim.x / kWarp) {
    const int64_t place = tile.first + i;
    Chunk chunk{};
    if (place < a.segments) {
      chunk = first_chunk(a, place);
    } else if (place < all) {
      chunk = later_chunk(a, place - a.segments);
    }
    if (threadIdx.x % kWarp == 0) chunks[i] = chunk;
  }
  __syncthreads();
  const Chunk& chunk = chunks[tile.row];
  if (chunk.count <= 0 || tile.column >= a.width) return;
  const T* values = static_cast<const T*>(a.values) + tile.column;
  const int64_t* order = a.order + chunk.start;
  float sum[lanes] = {};
  add_rows(sum, static_cast<int>(chunk.count),
           [=, stride = a.stride](int i) { return values + order[i] * stride; });
  const int64_t place = tile.first + tile.row;
  float* to = place < a.segments ? a.out + place * a.width : a.partials + (place - a.segments) * a.width;
  store_elements(to + tile.column, sum);
}

// After sum_chunks. Places: those of partials; who has a segment's first one adds them all to its row of
// out. Grid and shared memory as for sum_chunks.
template <int lanes>
__device__ void add_partials(const SegmentSum& a, int group) {
  const Tile tile(a.width, group, lanes);
  Chunk* chunks = static_cast<Chunk*>(shared_memory());
  for (int i = threadIdx.x / kWarp; i < tile.places; i += blockDim.x / kWarp) {
    const int64_t place = tile.first + i;
    const Chunk chunk = place < later_chunks(a) ? later_chunk(a, place) : Chunk{};
    if (threadIdx.x % kWarp == 0) chunks[i] = chunk;
  }
  __syncthreads();
  const Chunk& chunk = chunks[tile.row];
  if (chunk.number != 1 || chunk.count <= 0 || tile.column >= a.width) return;
  const float* partials = a.partials + (tile.first + tile.row) * a.width + tile.column;
  float* to = a.out + chunk.segment * a.width + tile.column;
  float sum[lanes];
  load_elements(to, sum);
  const int count = static_cast<int>((chunk.end - chunk.start + kSegmentChunk - 1) / kSegmentChunk);
  add_rows(sum, count, [=, width = a.width](int i) { return partials + i * width; });
  store_elements(to, sum);
}

}  // namespace fastft::cuda
