#include "segment_sum.h"

#include <algorithm>

#include "../math/half.h"
#include "isa.h"
#include "parallel.h"

namespace fastft::cpu {
namespace {

template <class T, bool kFirst>
FT_CLONES void add(float* sum, const T* values, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] = (kFirst ? 0.0f : sum[i]) + math::to_float(values[i]);
}

}  // namespace

template <class T>
void segment_sum(const SegmentSum& a) {
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, a.width));
  const T* values = static_cast<const T*>(a.values);
  parallel_rows(a.segments, grain, a.threads, [&a, values](int64_t u) {
    float* sum = a.out + u * a.width;
    int64_t i = u ? a.ends[u - 1] : 0;
    add<T, true>(sum, values + a.order[i] * a.stride, a.width);
    for (++i; i < a.ends[u]; ++i) add<T, false>(sum, values + a.order[i] * a.stride, a.width);
  });
}

template void segment_sum<float>(const SegmentSum&);
template void segment_sum<math::bf16>(const SegmentSum&);
template void segment_sum<math::fp16>(const SegmentSum&);

}  // namespace fastft::cpu
