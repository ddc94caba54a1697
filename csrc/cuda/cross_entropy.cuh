#pragma once
#include <cfloat>

#include "../math/row.h"
#include "cross_entropy.h"
#include "reduce.cuh"
#include "slice.cuh"

// One row per cluster of blocks, one slice of it per block. Pass 1 copies the slice into shared memory and
// sums its softmax as the copies arrive; the cluster combines the sums; pass 2 turns the slice into the
// gradient: one read and one write of global memory. What shared memory does not hold is read a second
// time, the last part first, while L2 has it.
namespace fastft::cuda {

constexpr int kMaxThreads = 1024;
constexpr int kCopyGroups = 4;   // pass 1 starts when the first of them has arrived
constexpr float kFar = -200.0f;  // exp is 0 here

// exp of a difference of logits, to about 2^-22 relative; 0 where it would be subnormal.
inline __device__ float exp_difference(float d) {
#if defined(__CUDA_ARCH__)
  constexpr float kLog2e = 1.44269504088896341f;
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d * kLog2e));
  return y;
#else
  return math::exp_nonpositive(d);
#endif
}

struct Squashed {
  float t, slope;  // tanh(u), 1 - tanh(u)^2
};

// The tanh of 16-bit logits to about 1e-7, absolute, far below their own rounding.
template <class T>
__device__ Squashed squash(float u) {
  const float e = exp_difference(-2.0f * fabsf(u));
  const float r = __fdividef(1.0f, 1.0f + e);
  const float t = sizeof(T) == 4 ? math::hyperbolic_tangent(u) : copysignf((1.0f - e) * r, u);
  return {t, 4.0f * e * r * r};
}

// What is known of a part of a row. The target is left out of max, sum and moment, because its gradient
// comes from the sum of the others (math/row.h); dot_q includes it.
struct RowSum {
  math::SoftmaxSum others;
  float left_max;  // of the logits before the target

  static __device__ RowSum identity() { return {{-FLT_MAX, 0.0f, 0.0f, 0.0f}, -INFINITY}; }
  static __device__ RowSum combine(RowSum a, RowSum b) {
    return {math::combine(a.others, b.others), fmaxf(a.left_max, b.left_max)};
  }
};

// dx_v = (weight exp(z_v - max) - smooth q_v) dz/dx / scale, and the target's own.
struct Gradient {
  float max, weight, smooth, at_target;
};

// Shared memory is RowSum (blocks, warps) for cluster_reduce, then Vector (cached,). The former in Vectors:
FT_HD int scratch_size(int blocks, int threads) {
  const int bytes = blocks * (threads / kWarp) * static_cast<int>(sizeof(RowSum)), unit = sizeof(Vector);
  return (bytes + unit - 1) / unit;
}

// One thread's view of a row. Of the block's vectors, [slice.begin, kept) are copied to shared memory, in
// groups, and [kept, slice.end) are not; a thread has every blockDim.x-th.
template <class T, bool kCapped, bool kHasQ>
struct Row {
  static constexpr int N = kLanes<T>;
  static constexpr int kPair = kCapped ? 1 : 2;  // vectors that share a new maximum; tanh leaves no registers

  const T* x;            // (vocab,)
  T* dx;                 // (vocab,); may be x
  const float* q;        // (vocab,) where kHasQ
  float inner, softcap;  // z = softcap tanh(inner x) where kCapped, else inner x
  int vocab, target;
  Slice<T> slice;
  int kept, group;  // group: vectors
  Vector* copies;   // of vector slice.begin on

  __device__ Row(const CrossEntropyRows& a, int cached, int64_t row, int y)
      : x(static_cast<const T*>(a.logits) + row * a.logits_stride),
        dx(a.grad ? static_cast<T*>(a.grad) + row * a.grad_stride : nullptr),
        q(a.q),
        inner(kCapped ? a.scale / a.softcap : a.scale),
        softcap(a.softcap),
        vocab(a.vocab),
        target(y),
        slice(x, a.vocab),
        kept(min(slice.begin + cached, slice.end)),
        group(group_size(cached, kPair * static_cast<int>(blockDim.x))),
        copies(static_cast<Vector*>(shared_memory()) + scratch_size(cluster::size(), blockDim.x)) {}

  // Whole pairs for each thread.
  static __device__ int group_size(int cached, int unit) {
    return (cached + unit * kCopyGroups - 1) / (unit * kCopyGroups) * unit;
  }
  __device__ const Vector* vectors() const { return reinterpret_cast<const Vector*>(x + slice.head); }
  __device__ float z(float value) const {
    return kCapped ? softcap * squash<T>(inner * value).t : inner * value;
  }

  __device__ void start_copies() const {
    for (int g = 0; g < kCopyGroups; ++g) {
      const int start = slice.begin + g * group, stop = min(start + group, kept);
      for (int i = start + threadIdx.x; i < stop; i += blockDim.x) {
        copy_async(copies + (i - slice.begin), vectors() + i);
      }
      commit_copies();
    }
  }

  __device__ RowSum sum() const {
    RowSum total = RowSum::identity();
    if (const int v = slice.loose_element(vocab); v >= 0) {
      const float value[1] = {math::to_float(x[v])};
      float zs[1];
      extend(total, zs, look(total, value, v, zs));
    }
    add(total, vectors() + kept, kept, slice.end);
    for (int g = 0; g < kCopyGroups; ++g) {
      wait_for_copies(kCopyGroups - 1 - g);
      const int start = slice.begin + g * group;
      add(total, copies + g * group, start, min(start + group, kept));
    }
    return total;
  }

  // This thread's of the vectors [start, stop), which are at `from`.
  __device__ void add(RowSum& total, const Vector* from, int start, int stop) const {
    const int step = blockDim.x;
    from += threadIdx.x;
    int i = start + threadIdx.x;
    for (; i + (kPair - 1) * step < stop; i += kPair * step, from += kPair * step) add<kPair>(total, from, i);
    for (; i < stop; i += step, from += step) add<1>(total, from, i);
  }

  // `count` vectors, from[0], from[blockDim.x], ...; the first is vector `i` of the row.
  template <int count>
  __device__ void add(RowSum& total, const Vector* from, int i) const {
    const int step = blockDim.x;
    Vector packed[count];
#pragma unroll
    for (int k = 0; k < count; ++k) packed[k] = from[k * step];
    float zs[count * N];
    float largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      float value[N];
      unpack<T>(packed[k], value);
      float (&part)[N] = reinterpret_cast<float (&)[N]>(zs[k * N]);
      largest = fmaxf(largest, look(total, value, slice.element(i + k * step), part));
    }
    extend(total, zs, largest);
  }

  // Elements [v, v + n): z without the target, and its largest.
  template <int n>
  __device__ float look(RowSum& total, const float (&value)[n], int v, float (&zs)[n]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      zs[i] = z(value[i]);
      total.others.dot_q += kHasQ ? q[v + i] * zs[i] : zs[i];
    }
    const int offset = target - v;
    if (0 <= offset && offset < n) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i < offset) total.left_max = fmaxf(total.left_max, zs[i]);
        if (i == offset) zs[i] = -INFINITY;
      }
    }
    float largest = zs[0];
#pragma unroll
    for (int i = 1; i < n; ++i) largest = fmaxf(largest, zs[i]);
    if (offset >= n) total.left_max = fmaxf(total.left_max, largest);
    return largest;
  }

  template <int n>
  static __device__ void extend(RowSum& total, const float (&zs)[n], float largest) {
    math::SoftmaxSum& s = total.others;
    const float max = fmaxf(s.max, largest);
    const float shift = fmaxf(s.max - max, kFar);
    const float factor = exp_difference(shift);
    s.moment = factor * (s.moment + shift * s.sum);
    s.sum *= factor;
    s.max = max;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float d = zs[i] - max;
      const float e = exp_difference(d);
      s.sum += e;
      s.moment += e * fmaxf(d, kFar);  // 0 * -inf is NaN
    }
  }

  __device__ void write(const Gradient& g) const {
    const int step = blockDim.x, thread = threadIdx.x;
    const int rest = (slice.end - kept - thread + step - 1) / step, last = kept + thread + (rest - 1) * step;
    if (rest > 0) write(g, vectors() + last, last, -step, rest);
    const int copied = (kept - slice.begin - thread + step - 1) / step;
    write(g, copies + thread, slice.begin + thread, step, copied);
    if (const int v = slice.loose_element(vocab); v >= 0) {
      float value[1] = {math::to_float(x[v])};
      differentiate(g, value, v);
      dx[v] = math::from_float<T>(value[0]);
    }
  }

  // `count` vectors, from[0], from[step], ...; the first is vector `i` of the row.
  __device__ void write(const Gradient& g, const Vector* from, int i, int step, int count) const {
    int v = slice.element(i);
    T* to = dx + v;
    const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(Vector) == 0;
    for (; count > 0; --count, from += step, v += step * N, to += step * N) {
      const Vector packed = *from;
      float value[N];
      unpack<T>(packed, value);
      differentiate(g, value, v);
      const Vector result = pack<T>(value);
      if (aligned) {
        *reinterpret_cast<Vector*>(to) = result;
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) to[k] = reinterpret_cast<const T*>(&result)[k];
      }
    }
  }

  // x to dx, elements [v, v + n).
  template <int n>
  __device__ void differentiate(const Gradient& g, float (&value)[n], int v) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const Squashed squashed = kCapped ? squash<T>(inner * value[i]) : Squashed{0.0f, 1.0f};
      const float d = kCapped ? softcap * squashed.t - g.max : inner * value[i] - g.max;
      const float dz = g.weight * exp_difference(d) - (kHasQ ? g.smooth * q[v + i] : g.smooth);
      value[i] = dz * squashed.slope;
    }
    const int offset = target - v;
    if (0 <= offset && offset < n) {
#pragma unroll
      for (int i = 0; i < n; ++i) value[i] = i == offset ? g.at_target : value[i];
    }
  }
};

template <class T, bool kCapped, bool kHasQ>
__device__ void supervised_row(const CrossEntropyRows& a, int cached, int64_t row, int64_t target) {
  cluster::arrive();
  const bool in_range = target < a.vocab;
  const int y = in_range ? static_cast<int>(target) : a.vocab - 1;
  const Row<T, kCapped, kHasQ> of(a, cached, row, y);
  of.start_copies();
  const float logit = math::to_float(of.x[y]), z_target = of.z(logit);
  RowSum total = cluster_reduce<RowSum>(of.sum(), static_cast<RowSum*>(shared_memory()));

  math::SoftmaxSum& others = total.others;
  if (others.sum == 0.0f) others.max = -INFINITY;
  const math::SoftmaxSum all = math::combine(others, {z_target, 1.0f, 0.0f, 0.0f});
  const float lse = math::lse(all), q_scale = kHasQ ? 1.0f : 1.0f / static_cast<float>(a.vocab);
  if (cluster::rank() == 0 && threadIdx.x == 0) {
    const bool correct = in_range && z_target > total.left_max && z_target >= others.max;
    float* stats = a.stats + row;
    stats[0] = in_range ? math::negative_log_likelihood(others, z_target, lse) : NAN;
    stats[a.rows] = lse;
    stats[2 * a.rows] = all.dot_q * q_scale;
    stats[3 * a.rows] = math::entropy(all);
    stats[4 * a.rows] = correct ? 1.0f : 0.0f;
  }
  if (!a.grad) return;

  const float* c = a.coefficients + 3 * row;
  const math::RowCoefficients coefficients{c[0], c[1], c[2]};
  const float q_target = kHasQ ? a.q[y] : q_scale;
  const float p_target = math::exp_nonpositive(z_target - all.max) / all.sum;
  const float p_others = others.sum * math::exp_nonpositive(others.max - all.max) / all.sum;
  const float slope = kCapped ? a.scale * squash<T>(of.inner * logit).slope : a.scale;
  of.write({all.max, a.scale * math::lse_weight(coefficients, lse) / all.sum,
            a.scale * coefficients.smooth * q_scale,
            slope * math::target_gradient(coefficients, q_target, lse, p_target, p_others)});
}

// The body of the kernel. Every thread of a cluster takes the same way.
template <class T, bool kCapped, bool kHasQ>
__device__ void cross_entropy_row(const CrossEntropyRows& a, int cached) {
  const int64_t row = cluster::index(), y = a.target[row];
  if (y >= 0) return supervised_row<T, kCapped, kHasQ>(a, cached, row, y);
  if (cluster::rank() == 0 && threadIdx.x < 5) a.stats[threadIdx.x * a.rows + row] = 0.0f;
  if (a.grad) fill_with_zeros(static_cast<T*>(a.grad) + row * a.grad_stride, a.vocab);
}

}  // namespace fastft::cuda
