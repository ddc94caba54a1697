#include "row_update.h"

#include <algorithm>

#include "../math/half.h"
#include "isa.h"
#include "parallel.h"
#include "prefetch.h"

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

// A row of the table and what belongs to it, element by element.
template <class T>
struct Row {
  T* p;
  float *m, *v;
  const T* g;
};

template <class T>
Row<T> row_of(const AdamWRows& a, int64_t k) {
  const int64_t slot = a.slot[a.ids[k]];
  float *m = slot < 0 ? nullptr : a.m + slot * a.width, *v = slot < 0 ? nullptr : a.v + slot * a.width;
  const T* g = a.grad ? static_cast<const T*>(a.grad) + k * a.width : nullptr;
  return {static_cast<T*>(a.table) + a.ids[k] * a.stride, m, v, g};
}

// Where row k of the output goes first.
template <class T>
T* place_of(const AdamWRows& a, int64_t k) {
  const int64_t first = a.order ? a.order[k ? a.ends[k - 1] : 0] : k;
  return static_cast<T*>(a.out) + first * a.width;
}

// Its other places.
template <class T>
void repeat(const AdamWRows& a, int64_t k) {
  if (!a.order) return;
  const T* from = place_of<T>(a, k);
  for (int64_t i = (k ? a.ends[k - 1] : 0) + 1; i < a.ends[k]; ++i) {
    std::copy_n(from, a.width, static_cast<T*>(a.out) + a.order[i] * a.width);
  }
}

void taken(const AdamWRows& a, int64_t k) {
  a.last[a.ids[k]] = static_cast<int32_t>(a.until + (a.grad != nullptr));
}

// The elements from `start` on that one iteration of the loops below takes.
template <class T>
void prefetch(const Row<T>& r, int64_t start) {
  prefetch_block<kBlock>(r.p + start);
  if (r.g) prefetch_block<kBlock>(r.g + start);
  if (r.m) prefetch_block<kBlock>(r.m + start), prefetch_block<kBlock>(r.v + start);
}

// Blocks of a row from `start` on, for as long as the leap is good enough, read or stepped in one pass while
// the same of the next row is fetched; returns where it ended. `to` may be r.p.
template <class T, bool kStep>
FT_CLONES int64_t leap_row(int64_t start, T* to, const Row<T> r, const Row<T> next, int64_t n,
                           const AdamWLeap l, const AdamWStep s, const AdamWConstants c) {
  const float least = math::adamw_least_v(l, c);
  for (; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    int below = 0;
    prefetch(next, start);
#pragma omp simd reduction(| : below)
    for (int64_t i = start; i < end; ++i) below |= (r.v[i] < least) & (r.m[i] != 0.0f);
    if (below) break;
#pragma omp simd
    for (int64_t i = start; i < end; ++i) {
      float p = math::to_float(r.p[i]), m = r.m[i], v = r.v[i];
      math::adamw_leap(p, m, v, l, c);
      if (kStep) {
        math::adamw_step(p, m, v, math::to_float(r.g[i]), s, c);
        r.m[i] = m;
        r.v[i] = v;
      }
      to[i] = math::from_float<T>(p);
    }
  }
  return start;
}

// A row whose missed steps are a factor: it has missed none, or has no state so far. With kFresh its m and v
// are written, not read.
template <class T, bool kStep, bool kFresh>
FT_CLONES void scale_row(T* to, const Row<T> r, const Row<T> next, int64_t n, float factor, const AdamWStep s,
                         const AdamWConstants c) {
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    prefetch(next, start);
#pragma omp simd
    for (int64_t i = start; i < end; ++i) {
      float p = math::to_float(r.p[i]) * factor;
      if (kStep) {
        float m = kFresh ? 0.0f : r.m[i], v = kFresh ? 0.0f : r.v[i];
        math::adamw_step(p, m, v, math::to_float(r.g[i]), s, c);
        r.m[i] = m;
        r.v[i] = v;
      }
      to[i] = math::from_float<T>(p);
    }
  }
}

// One block of any row.
template <class T>
void adamw_block(const AdamWRows& a, int64_t k, const Row<T>& r, int64_t start) {
  const int64_t n = std::min(kBlock, a.width - start), slot = a.slot[a.ids[k]];
  float* master = a.master && r.m ? a.master + slot * a.width : nullptr;
  const AdamWStep *from = a.steps + a.last[a.ids[k]], *to = a.steps + a.until;
  Block b{};
  master ? load(b.p, master + start, n) : load(b.p, r.p + start, n);
  if (r.m && slot < a.filled) load(b.m, r.m + start, n), load(b.v, r.v + start, n);
  catch_up(b, r.m, a.leap ? a.leap + k : nullptr, from, to, a.constants);
  if (a.out) return store(place_of<T>(a, k) + start, b.p, n);
  if (r.g) {
    float g[kBlock];
    load(g, r.g + start, n);
    step(b, g, *to, a.constants);
  }
  store(r.p + start, b.p, n);
  if (master) store(master + start, b.p, n);
  if (r.m) store(r.m + start, b.m, n), store(r.v + start, b.v, n);
}

// The common cases in one pass: the row up to where there was none.
template <class T, bool kStep>
int64_t fast_row(const AdamWRows& a, int64_t k, const Row<T>& row, int64_t start) {
  const AdamWLeap* l = a.leap ? a.leap + k : nullptr;
  const bool current = a.last[a.ids[k]] == a.until, fresh = kStep && a.slot[a.ids[k]] >= a.filled;
  if (a.master || (!l && !current)) return start;
  T* to = kStep ? row.p : place_of<T>(a, k);
  const Row<T> next = row_of<T>(a, std::min(k + 1, a.rows - 1));
  const AdamWStep s = kStep ? a.steps[a.until] : AdamWStep{};
  const float factor = current ? 1.0f : l->product;
  if (fresh) return scale_row<T, kStep, true>(to, row, next, a.width, factor, s, a.constants), a.width;
  if (current || !row.m)
    return scale_row<T, kStep, false>(to, row, next, a.width, factor, s, a.constants), a.width;
  return leap_row<T, kStep>(start, to, row, next, a.width, *l, s, a.constants);
}

template <class T>
void adamw_row(const AdamWRows& a, int64_t k) {
  const Row<T> row = row_of<T>(a, k);
  for (int64_t start = 0; start < a.width; start += kBlock) {
    if (a.out) start = fast_row<T, false>(a, k, row, start);
    if (a.grad) start = fast_row<T, true>(a, k, row, start);
    if (start < a.width) adamw_block<T>(a, k, row, start);
  }
}

}  // namespace

template <class T>
void adamw_rows(const AdamWRows& a) {
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, a.width));
  parallel_rows(a.rows, grain, a.threads, [&a](int64_t row) {
    adamw_row<T>(a, row);
    a.out ? repeat<T>(a, row) : taken(a, row);
  });
}

template void adamw_rows<float>(const AdamWRows&);
template void adamw_rows<math::bf16>(const AdamWRows&);
template void adamw_rows<math::fp16>(const AdamWRows&);

}  // namespace fastft::cpu
