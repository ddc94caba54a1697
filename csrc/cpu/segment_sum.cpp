#include "segment_sum.h"

#include <algorithm>

#include "../math/half.h"
#include "isa.h"
#include "parallel.h"
#include "prefetch.h"

namespace fastft::cpu {
namespace {

constexpr int64_t kBlock = 64;

template <class T, bool kFirst>
FT_HD void add_block(float* sum, const T* values, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] = (kFirst ? 0.0f : sum[i]) + math::to_float(values[i]);
}

// While a row is added, the next one to add is fetched. Whole blocks have a count that the compiler knows.
template <class T, bool kFirst>
FT_CLONES void add(float* sum, const T* values, const T* next, int64_t n) {
  int64_t start = 0;
  for (; start + kBlock <= n; start += kBlock) {
    prefetch_block<kBlock>(next + start);
    add_block<T, kFirst>(sum + start, values + start, kBlock);
  }
  add_block<T, kFirst>(sum + start, values + start, n - start);
}

}  // namespace

template <class T>
void segment_sum(const SegmentSum& a) {
  if (!a.segments) return;
  const int64_t n = a.ends[a.segments - 1];
  const auto row = [&a, n](int64_t i) {
    return static_cast<const T*>(a.values) + a.order[std::min(i, n - 1)] * a.stride;
  };
  parallel_rows(a.segments, rows_at_once(a.segments, a.width, a.threads), a.threads, [&a, &row](int64_t u) {
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
