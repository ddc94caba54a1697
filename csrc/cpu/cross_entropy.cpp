#include "cross_entropy.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../math/half.h"
#include "../math/logit.h"
#include "../math/row.h"
#include "isa.h"
#include "parallel.h"

namespace fastft::cpu {
namespace {

using math::LogitTransform;
using math::RowCoefficients;
using math::SoftmaxSum;

constexpr int64_t kBlock = 2048;  // logits per block: 8 KiB of fp32 stay in L1 between max and sum

// exp(z - block max) of a stretch of a row, kept from the sum for the gradient.
struct Exponentials {
  float* values;     // one per logit
  float* block_max;  // one per kBlock logits
};

// Softmax sum over x[0..n), read from memory once; with kKeep `kept` receives its exponentials.
template <class T, bool kCapped, bool kHasQ, bool kKeep>
FT_CLONES SoftmaxSum softmax_sum(const T* x, const float* q, int64_t n, LogitTransform f, Exponentials kept) {
  SoftmaxSum total;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    const T* block = x + start;
    float z[kBlock];
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < size; ++i) {
      z[i] = f.apply<kCapped>(math::to_float(block[i]));
      max = z[i] > max ? z[i] : max;
    }
    max = max == -INFINITY ? -FLT_MAX : max;  // -inf - -inf is NaN
    float sum = 0.0f, moment = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, moment, dot)
    for (int64_t i = 0; i < size; ++i) {
      const float d = z[i] - max;
      const float e = math::exp_nonpositive(d);
      if (kKeep) kept.values[start + i] = e;
      sum += e;
      moment += e * (d < -87.3f ? -87.3f : d);  // 0 * -inf is NaN
      dot += kHasQ ? q[start + i] * z[i] : z[i];
    }
    if (kKeep) kept.block_max[start / kBlock] = max;
    total = math::combine(total, {max, sum, moment, dot});
  }
  return total;
}

// dx[i] = (weight exp(z - max) - smooth q) scale over a stretch whose exponentials were kept, maybe in dx.
template <class T, bool kHasQ>
FT_CLONES void gradient(Exponentials kept, T* dx, const float* q, int64_t n, float max, float weight,
                        float smooth) {
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    const float block_weight = weight * math::exp_nonpositive(kept.block_max[start / kBlock] - max);
    const float* e = kept.values + start;
    T* out = dx + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      out[i] = math::from_float<T>(block_weight * e[i] - (kHasQ ? smooth * q[start + i] : smooth));
    }
  }
}

// The same with a softcap, whose slope needs x, which may be dx.
template <class T, bool kHasQ>
FT_CLONES void capped_gradient(const T* x, T* dx, const float* q, int64_t n, LogitTransform f, float max,
                               float weight, float smooth) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float logit = math::to_float(x[i]);
    const float z = f.apply<true>(logit);
    const float dz = weight * math::exp_nonpositive(z - max) - (kHasQ ? smooth * q[i] : smooth);
    dx[i] = math::from_float<T>(dz * f.slope<true>(logit));
  }
}

// Room for one row's exponentials: in the gradient row itself where that holds fp32, else of this thread.
template <class T>
Exponentials exponentials_for(T* dx, int64_t vocab) {
  static thread_local std::vector<float> values, block_max;
  block_max.resize(vocab / kBlock + 2);
  if constexpr (std::is_same_v<T, float>) return {dx, block_max.data()};
  values.resize(vocab);
  return {values.data(), block_max.data()};
}

template <class T, bool kCapped, bool kHasQ, bool kKeep>
void cross_entropy_row(const CrossEntropyRows& a, int64_t row) {
  const int64_t y = a.target[row];
  const T* x = static_cast<const T*>(a.logits) + row * a.logits_stride;
  T* dx = a.grad ? static_cast<T*>(a.grad) + row * a.grad_stride : nullptr;
  float* stats = a.stats + row;
  if (y < 0) {
    for (int k = 0; k < 5; ++k) stats[k * a.rows] = 0.0f;
    if (dx && y == -1) std::memset(dx, 0, a.vocab * sizeof(T));
    return;
  }
  // The target is kept apart: [0, y), y, (y, V).
  const int64_t after = y + 1, right_size = a.vocab - after;
  const float* q_right = kHasQ ? a.q + after : nullptr;
  const float q_scale = kHasQ ? 1.0f : 1.0f / static_cast<float>(a.vocab);
  const float q_target = kHasQ ? a.q[y] : q_scale;
  const LogitTransform f{a.scale, a.softcap};
  const float logit_target = math::to_float(x[y]), z_target = f.apply<kCapped>(logit_target);
  const Exponentials kept_left = kKeep ? exponentials_for(dx, a.vocab) : Exponentials{};
  Exponentials kept_right{};
  if (kKeep) kept_right = {kept_left.values + after, kept_left.block_max + (y + kBlock - 1) / kBlock};
  const SoftmaxSum left = softmax_sum<T, kCapped, kHasQ, kKeep>(x, a.q, y, f, kept_left);
  const SoftmaxSum right =
      softmax_sum<T, kCapped, kHasQ, kKeep>(x + after, q_right, right_size, f, kept_right);
  const SoftmaxSum others = math::combine(left, right);
  const SoftmaxSum all =
      math::combine(others, {z_target, 1.0f, 0.0f, kHasQ ? q_target * z_target : z_target});
  const float lse = math::lse(all);
  stats[0] = math::negative_log_likelihood(others, z_target, lse);
  stats[a.rows] = lse;
  stats[2 * a.rows] = all.dot_q * q_scale;
  stats[3 * a.rows] = math::entropy(all);
  stats[4 * a.rows] = z_target > left.max && z_target >= right.max ? 1.0f : 0.0f;
  if (!dx) return;

  const float* c = a.coefficients + 3 * row;
  const RowCoefficients coefficients{c[0], c[1], c[2]};
  const float weight = math::lse_weight(coefficients, lse) / all.sum;
  const float smooth = coefficients.smooth * q_scale;
  if constexpr (kCapped) {
    capped_gradient<T, kHasQ>(x, dx, a.q, y, f, all.max, weight, smooth);
    capped_gradient<T, kHasQ>(x + after, dx + after, q_right, right_size, f, all.max, weight, smooth);
  } else {
    gradient<T, kHasQ>(kept_left, dx, a.q, y, all.max, weight * a.scale, smooth * a.scale);
    gradient<T, kHasQ>(kept_right, dx + after, q_right, right_size, all.max, weight * a.scale,
                       smooth * a.scale);
  }
  const float p_target = math::exp_nonpositive(z_target - all.max) / all.sum;
  const float p_others = others.sum * math::exp_nonpositive(others.max - all.max) / all.sum;
  const float dz = math::target_gradient(coefficients, q_target, lse, p_target, p_others);
  dx[y] = math::from_float<T>(dz * f.slope<kCapped>(logit_target));
}

template <class T, bool kCapped, bool kHasQ>
void cross_entropy_rows(const CrossEntropyRows& a) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.vocab));
  parallel_rows(a.rows, grain, a.threads, [&a](int64_t row) {
    if (!kCapped && a.grad) return cross_entropy_row<T, kCapped, kHasQ, !kCapped>(a, row);
    cross_entropy_row<T, kCapped, kHasQ, false>(a, row);
  });
}

}  // namespace

template <class T>
void cross_entropy(const CrossEntropyRows& a) {
  const bool capped = a.softcap != 0.0f, has_q = a.q != nullptr;
  if (capped && has_q) return cross_entropy_rows<T, true, true>(a);
  if (capped) return cross_entropy_rows<T, true, false>(a);
  if (has_q) return cross_entropy_rows<T, false, true>(a);
  cross_entropy_rows<T, false, false>(a);
}

template void cross_entropy<float>(const CrossEntropyRows&);
template void cross_entropy<math::bf16>(const CrossEntropyRows&);
template void cross_entropy<math::fp16>(const CrossEntropyRows&);

}  // namespace fastft::cpu
