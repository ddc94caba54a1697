#pragma once
#include <cstdint>

namespace fastft::cpu {

// out (segments, width) fp32: row u is the sum of the rows order[ends[u - 1] .. ends[u]) of `values`, in that
// order.
struct SegmentSum {
  int64_t segments, width;
  const void* values;  // of T, rows `stride` elements apart
  int64_t stride;
  const int64_t* order;
  const int64_t* ends;  // (segments,)
  float* out;
  int threads;
};

template <class T>
void segment_sum(const SegmentSum& a);

}  // namespace fastft::cpu
