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

constexpr int64_t kBlock = 64;        // elements that stay in registers or L1 through all their steps
constexpr int64_t kCached = 4 << 20;  // bytes: a core's own caches hold no more

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

FT_CLONES void step(Block& b, const float* g, float scale, const AdamWStep& s, const AdamWConstants& c) {
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) math::adamw_step(b.p[i], b.m[i], b.v[i], g[i] * scale, s, c);
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

// Where in the output a row goes: to out[order[i]], first <= i < end, or out[i] without an order.
template <class T>
struct Places {
  T* out;
  const int64_t* order;
  int64_t first, end, width;
  bool streams;
};

template <class T>
FT_HD void put(const Places<T>& to, int64_t start, const T* values, int64_t n) {
  for (int64_t i = to.first; i < to.end; ++i) {
    T* place = to.out + (to.order ? to.order[i] : i) * to.width + start;
    to.streams ? stream(place, values, n * static_cast<int64_t>(sizeof(T)))
               : void(std::copy_n(values, n, place));
  }
}

// Whether the output is too large to be in the caches when it is read.
template <class T>
bool streams(const AdamWRows& a) {
  const int64_t size = sizeof(T), places = a.order && a.rows ? a.ends[a.rows - 1] : a.rows;
  const bool whole_units = (reinterpret_cast<uintptr_t>(a.out) | a.width * size) % kStreamUnit == 0;
  return a.out && whole_units && places * a.width * size > kCached;
}

// A row of the table and what belongs to it, element by element.
template <class T>
struct Row {
  T* p;
  float *m, *v;
  const T* g;
  Places<T> places;  // where it is only read
};

template <class T>
Row<T> row_of(const AdamWRows& a, int64_t k) {
  const int64_t slot = a.slot[a.ids[k]];
  float *m = slot < 0 ? nullptr : a.m + slot * a.width, *v = slot < 0 ? nullptr : a.v + slot * a.width;
  const T* g = a.grad ? static_cast<const T*>(a.grad) + k * a.width : nullptr;
  const int64_t first = a.order ? (k ? a.ends[k - 1] : 0) : k, end = a.order ? a.ends[k] : k + 1;
  return {static_cast<T*>(a.table) + a.ids[k] * a.stride,
          m,
          v,
          g,
          {static_cast<T*>(a.out), a.order, first, end, a.width, streams<T>(a)}};
}

// The elements from `start` on that one iteration of the loops below takes.
template <class T>
void prefetch(const Row<T>& r, int64_t start) {
  prefetch_block<kBlock>(r.p + start);
  if (r.g) prefetch_block<kBlock>(r.g + start);
  if (r.m) prefetch_block<kBlock>(r.m + start), prefetch_block<kBlock>(r.v + start);
}

// n elements from `start` on after a leap and, with kStep, a step in place; else they go to `to`. False,
// nothing being written, where the leap is not good enough.
template <class T, bool kStep>
FT_HD bool leap_block(T* to, const Row<T>& r, int64_t start, int64_t n, float least, float scale,
                      const AdamWLeap& l, const AdamWStep& s, const AdamWConstants& c) {
  int below = 0;
#pragma omp simd reduction(| : below)
  for (int64_t i = start; i < start + n; ++i) below |= !(r.v[i] >= least) & (r.m[i] != 0.0f);
  if (below) return false;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float p = math::to_float(r.p[start + i]), m = r.m[start + i], v = r.v[start + i];
    math::adamw_leap(p, m, v, l, c);
    if (kStep) {
      math::adamw_step(p, m, v, math::to_float(r.g[start + i]) * scale, s, c);
      r.m[start + i] = m;
      r.v[start + i] = v;
    }
    to[i] = math::from_float<T>(p);
  }
  return true;
}

// Blocks of a row from `start` on, for as long as the leap is good enough, while the same of the next row is
// fetched; returns where it ended. Whole blocks have a count that the compiler knows.
template <class T, bool kStep>
FT_CLONES int64_t leap_row(int64_t start, const Row<T> r, const Row<T> next, int64_t n, float scale,
                           const AdamWLeap l, const AdamWStep s, const AdamWConstants c) {
  const float least = math::adamw_least_v(l, c);
  T read[kBlock];
  for (; start + kBlock <= n; start += kBlock) {
    prefetch(next, start);
    T* to = kStep ? r.p + start : read;
    if (!leap_block<T, kStep>(to, r, start, kBlock, least, scale, l, s, c)) return start;
    if (!kStep) put(r.places, start, read, kBlock);
  }
  T* to = kStep ? r.p + start : read;
  if (!leap_block<T, kStep>(to, r, start, n - start, least, scale, l, s, c)) return start;
  if (!kStep) put(r.places, start, read, n - start);
  return n;
}

template <class T, bool kStep, bool kFresh>
FT_HD void scale_block(T* to, const Row<T>& r, int64_t start, int64_t n, float factor, float scale,
                       const AdamWStep& s, const AdamWConstants& c) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float p = math::to_float(r.p[start + i]);
    if (kStep) {
      float m = kFresh ? 0.0f : r.m[start + i], v = kFresh ? 0.0f : r.v[start + i];
      math::adamw_step(p, m, v, math::to_float(r.g[start + i]) * scale, s, c);
      r.m[start + i] = m;
      r.v[start + i] = v;
    } else {
      p *= factor;
    }
    to[i] = math::from_float<T>(p);
  }
}

// A row whose missed steps are a factor: it has missed none, or has no state so far. With kFresh its m and v
// are written, not read.
template <class T, bool kStep, bool kFresh>
FT_CLONES void scale_row(const Row<T> r, const Row<T> next, int64_t n, float factor, float scale, AdamWStep s,
                         const AdamWConstants c) {
  s.shrink *= factor;
  T read[kBlock];
  int64_t start = 0;
  for (; start + kBlock <= n; start += kBlock) {
    prefetch(next, start);
    scale_block<T, kStep, kFresh>(kStep ? r.p + start : read, r, start, kBlock, factor, scale, s, c);
    if (!kStep) put(r.places, start, read, kBlock);
  }
  scale_block<T, kStep, kFresh>(kStep ? r.p + start : read, r, start, n - start, factor, scale, s, c);
  if (!kStep) put(r.places, start, read, n - start);
}

// One block of any row.
template <class T>
void adamw_block(const AdamWRows& a, int64_t k, const Row<T>& r, int64_t start, const AdamWLeap* l,
                 float scale) {
  const int64_t n = std::min(kBlock, a.width - start), slot = a.slot[a.ids[k]];
  float* master = a.master && r.m ? a.master + slot * a.width : nullptr;
  const AdamWStep *from = a.steps + a.last[a.ids[k]], *to = a.steps + a.until;
  Block b{};
  master ? load(b.p, master + start, n) : load(b.p, r.p + start, n);
  if (r.m && slot < a.filled) load(b.m, r.m + start, n), load(b.v, r.v + start, n);
  catch_up(b, r.m, l, from, to, a.constants);
  if (a.out) {
    T read[kBlock];
    store(read, b.p, n);
    return put(r.places, start, read, n);
  }
  if (r.g) {
    float g[kBlock];
    load(g, r.g + start, n);
    step(b, g, scale, *to, a.constants);
  }
  store(r.p + start, b.p, n);
  if (master) store(master + start, b.p, n);
  if (r.m) store(r.m + start, b.m, n), store(r.v + start, b.v, n);
}

// The common cases in one pass: the row up to where there was none.
template <class T, bool kStep>
int64_t fast_row(const AdamWRows& a, int64_t k, const Row<T>& row, int64_t start, const AdamWLeap* l,
                 float scale) {
  const bool current = a.last[a.ids[k]] == a.until, fresh = kStep && a.slot[a.ids[k]] >= a.filled;
  if (a.master || (!l && !current)) return start;
  const Row<T> next = row_of<T>(a, std::min(k + 1, a.rows - 1));
  const AdamWStep s = kStep ? a.steps[a.until] : AdamWStep{};
  const float factor = current ? 1.0f : l->product;
  if (fresh) return scale_row<T, kStep, true>(row, next, a.width, factor, scale, s, a.constants), a.width;
  if (current || !row.m)
    return scale_row<T, kStep, false>(row, next, a.width, factor, scale, s, a.constants), a.width;
  return leap_row<T, kStep>(start, row, next, a.width, scale, *l, s, a.constants);
}

template <class T>
void adamw_row(const AdamWRows& a, int64_t k, float scale) {
  const Row<T> row = row_of<T>(a, k);
  const int32_t last = a.last[a.ids[k]];
  AdamWLeap leap{}, *l = a.departures ? &leap : nullptr;
  if (l && last < a.until) leap = math::leap_between(a.departures[last], a.departures[a.until]);
  for (int64_t start = 0; start < a.width; start += kBlock) {
    if (a.out) start = fast_row<T, false>(a, k, row, start, l, scale);
    if (a.grad) start = fast_row<T, true>(a, k, row, start, l, scale);
    if (start < a.width) adamw_block<T>(a, k, row, start, l, scale);
  }
}

}  // namespace

template <class T>
void adamw_rows(const AdamWRows& a) {
  if (a.found_inf && *a.found_inf != 0.0f) return;
  const float scale = a.scale ? *a.scale : 1.0f;
  parallel_rows(a.rows, rows_at_once(a.rows, a.width, a.threads), a.threads, [&a, scale](int64_t row) {
    adamw_row<T>(a, row, scale);
    if (!a.out) a.last[a.ids[row]] = static_cast<int32_t>(a.until + (a.grad != nullptr));
  });
}

template void adamw_rows<float>(const AdamWRows&);
template void adamw_rows<math::bf16>(const AdamWRows&);
template void adamw_rows<math::fp16>(const AdamWRows&);

}  // namespace fastft::cpu
