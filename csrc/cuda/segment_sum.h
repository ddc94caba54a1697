#pragma once
#include <cstdint>

namespace fastft::cuda {

constexpr int kSegmentChunk = 32;  // positions of a segment that one partial sum takes, from its start on

// out (segments, width) fp32: row u is the sum of the rows order[ends[u - 1] .. ends[u]) of `values`. A chunk
// is summed in order, and so are a segment's chunks: the bits depend on the segment alone.
struct SegmentSum {
  int64_t n, segments, width;
  const void* values;  // of T, rows `stride` elements apart
  int64_t stride;
  const int64_t* order;  // (n,)
  const int64_t* ends;   // (segments,), the last one n
  float* partials;       // ((n - 1) / kSegmentChunk, width): scratch
  float* out;
};

// Launches on `stream` and gives cudaSuccess or the launch's error; nothing waits.
template <class T>
int segment_sum(const SegmentSum& a, void* stream);

}  // namespace fastft::cuda
