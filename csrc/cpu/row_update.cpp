#include "row_update.h"

#include <algorithm>

#include "../math/half.h"
#include "isa.h"
#include "parallel.h"

namespace fastft::cpu {
namespace {

using math::AdamWConstants;
using math::AdamWLeap;
using math::AdamWStep;

constexpr int64_t kBlock = 64;  // elements that stay in registers or L1 through all their steps

struct Block {
  float p[kBlock], m[kBlock], v[kBlock];
};

FT_CLONES void replay(Block& b, const AdamWStep* from, const AdamWStep* to, const AdamWConstants& c) {
  for (; from < to; ++from) {
    const AdamWStep s = *from;
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) math::adamw_step(b.p[i], b.m[i], b.v[i], 0.0f, s, c);
  }
}

FT_CLONES void shrink(Block& b, const AdamWStep* from, const AdamWStep* to) {
  for (; from < to; ++from) {
    const float factor = from->shrink;
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) b.p[i] *= factor;
  }
}

// The number of elements for which the leap is not good enough; `close` tells which.
FT_CLONES int leap(Block& b, int* close, const AdamWLeap& l, const AdamWConstants& c) {
  int far = 0;
#pragma omp simd reduction(+ : far)
  for (int64_t i = 0; i < kBlock; ++i) {
    close[i] = math::adamw_leap(b.p[i], b.m[i], b.v[i], l, c);
    far += !close[i];
  }
  return far;
}

FT_CLONES void step(Block& b, const float* g, const AdamWStep& s, const AdamWConstants& c) {
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) math::adamw_step(b.p[i], b.m[i], b.v[i], g[i], s, c);
}

template <class T>
FT_CLONES void load(float* to, const T* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = math::to_float(from[i]);
  for (int64_t i = n; i < kBlock; ++i) to[i] = 0.0f;
}

template <class T>
FT_CLONES void store(T* to, const float* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = math::from_float<T>(from[i]);
}

void catch_up(Block& b, bool has_state, const AdamWLeap* l, const AdamWStep* from, const AdamWStep* to,
              const AdamWConstants& c) {
  if (from == to) return;
  if (!has_state && l) {
    for (float& p : b.p) p *= l->product;
  } else if (!has_state) {
    shrink(b, from, to);
  } else if (!l) {
    replay(b, from, to, c);
  } else {
    int close[kBlock];
    Block exact = b;
    if (!leap(b, close, *l, c)) return;
    replay(exact, from, to, c);
    for (int64_t i = 0; i < kBlock; ++i) b.p[i] = close[i] ? b.p[i] : exact.p[i];
  }
}

FT_CLONES bool any_below(const float* v, const float* m, int64_t n, float least) {
  int below = 0;
#pragma omp simd reduction(| : below)
  for (int64_t i = 0; i < n; ++i) below |= (v[i] < least) & (m[i] != 0.0f);
  return below;
}

// A row for which the leap is good enough, read or stepped in one pass; `to` may be `from`.
template <class T, bool kStep>
FT_CLONES void leap_row(T* to, const T* from, float* m, float* v, const T* g, int64_t n, const AdamWLeap l,
                        const AdamWStep s, const AdamWConstants c) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float p = math::to_float(from[i]), m_i = m[i], v_i = v[i];
    math::adamw_leap(p, m_i, v_i, l, c);
    if (kStep) {
      math::adamw_step(p, m_i, v_i, math::to_float(g[i]), s, c);
      m[i] = m_i;
      v[i] = v_i;
    }
    to[i] = math::from_float<T>(p);
  }
}

// The common case: true where it was one and is done.
template <class T>
bool leapt(const AdamWRows& a, int64_t row) {
  const int64_t id = a.ids[row], slot = a.slot[id];
  if (!a.leap || slot < 0 || a.master || !(a.out || a.grad)) return false;
  const AdamWLeap& l = a.leap[row];
  float *m = a.m + slot * a.width, *v = a.v + slot * a.width;
  const float least = math::adamw_least_v(l, a.constants);
  if (least > 0.0f && any_below(v, m, a.width, least)) return false;
  T* table = static_cast<T*>(a.table) + id * a.stride;
  if (a.out) {
    T* out = static_cast<T*>(a.out) + row * a.width;
    leap_row<T, false>(out, table, m, v, nullptr, a.width, l, {}, a.constants);
  } else {
    const T* g = static_cast<const T*>(a.grad) + row * a.width;
    leap_row<T, true>(table, table, m, v, g, a.width, l, a.steps[a.until], a.constants);
    a.last[id] = static_cast<int32_t>(a.until + 1);
  }
  return true;
}

template <class T>
void adamw_row(const AdamWRows& a, int64_t row) {
  if (leapt<T>(a, row)) return;
  const int64_t id = a.ids[row], slot = a.slot[id];
  const bool has_state = slot >= 0;
  T* table = static_cast<T*>(a.table) + id * a.stride;
  float* master = a.master && has_state ? a.master + slot * a.width : nullptr;
  const AdamWStep* from = a.steps + a.last[id];
  const AdamWStep* to = a.steps + a.until;
  for (int64_t start = 0; start < a.width; start += kBlock) {
    const int64_t n = std::min(kBlock, a.width - start);
    Block b{};
    master ? load(b.p, master + start, n) : load(b.p, table + start, n);
    float* m = a.m + slot * a.width + start;
    float* v = a.v + slot * a.width + start;
    if (has_state) load(b.m, m, n), load(b.v, v, n);
    catch_up(b, has_state, a.leap ? a.leap + row : nullptr, from, to, a.constants);
    if (a.out) {
      store(static_cast<T*>(a.out) + row * a.width + start, b.p, n);
      continue;
    }
    if (a.grad) {
      float g[kBlock];
      load(g, static_cast<const T*>(a.grad) + row * a.width + start, n);
      step(b, g, *to, a.constants);
    }
    store(table + start, b.p, n);
    if (master) store(master + start, b.p, n);
    if (has_state) store(m, b.m, n), store(v, b.v, n);
  }
  if (!a.out) a.last[id] = static_cast<int32_t>(a.until + (a.grad != nullptr));
}

}  // namespace

template <class T>
void adamw_rows(const AdamWRows& a) {
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, a.width));
  parallel_rows(a.rows, grain, a.threads, [&a](int64_t row) { adamw_row<T>(a, row); });
}

template void adamw_rows<float>(const AdamWRows&);
template void adamw_rows<math::bf16>(const AdamWRows&);
template void adamw_rows<math::fp16>(const AdamWRows&);

}  // namespace fastft::cpu
