#include "segment_sum.h"

#include <algorithm>

#include "../math/half.h"
#include "isa.h"
#include "parallel.h"
#include "prefetch.h"

namespace fastft::cpu {
namespace {

constexpr int64_t kBlock = 64;

// While a row is added, the next one to add is fetched.
template <class T, bool kFirst>
FT_CLONES void add(float* sum, const T* values, const T* next, int64_t n) {
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    prefetch_block<kBlock>(next + start);
#pragma omp simd
    for (int64_t i = start; i < end; ++i) sum[i] = (kFirst ? 0.0f : sum[i]) + math::to_float(values[i]);
  }
}

}  // namespace

template <class T>
void segment_sum(const SegmentSum& a) {
  if (!a.segments) return;
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, a.width)),
                n = a.ends[a.segments - 1];
  const auto row = [&a, n](int64_t i) {
    return static_cast<const T*>(a.values) + a.order[std::min(i, n - 1)] * a.stride;
  };
  parallel_rows(a.segments, grain, a.threads, [&a, &row](int64_t u) {
    float* sum = a.out + u * a.width;
    int64_t i = u ? a.ends[u - 1] : 0;
    add<T, true>(sum, row(i), row(i + 1), a.width);
    for (++i; i < a.ends[u]; ++i) add<T, false>(sum, row(i), row(i + 1), a.width);
  });
}

template void segment_sum<float>(const SegmentSum&);
template void segment_sum<math::bf16>(const SegmentSum&);
template void segment_sum<math::fp16>(const SegmentSum&);

}  // namespace fastft::cpu
