#pragma once
#include "reduce.cuh"

namespace fastft::cuda {

// The first place in index (n,), ascending, whose value is not below `value`; -1 counts as the largest. A
// warp narrows the range 32 times with each load.
inline __device__ int64_t lower_bound(const int64_t* index, int64_t n, int64_t value) {
  const int lane = threadIdx.x % kWarp;
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t step = (high - low + kWarp - 1) / kWarp, i = low + lane * step;
    const bool below = i < high && static_cast<uint64_t>(index[i]) < static_cast<uint64_t>(value);
    const int lanes_below = __popc(__ballot_sync(kAllLanes, below));
    if (lanes_below == 0) break;
    const int64_t end = low + lanes_below * step;
    low = end - step + 1;
    high = end < high ? end : high;
  }
  return low;
}

}  // namespace fastft::cuda
