#pragma once
#include "elements.cuh"
#include "row_update.h"

namespace fastft::cuda {

constexpr int kUpdateThreads = 128;

// What is known of a row before its elements: its place in the state (or -1), and the steps it has taken.
struct Row {
  int64_t id;
  int32_t slot, last;
};

// Elements of a row, from `start` on, that stay in registers through all their steps.
template <int lanes>
struct Elements {
  float p[lanes], m[lanes], v[lanes];
};

// One access of 16 bytes.
inline __device__ math::AdamWStep step_at(const AdamWRows& a, int j) {
  static_assert(sizeof(math::AdamWStep) == sizeof(Vector));
  const Vector v = reinterpret_cast<const Vector*>(a.steps)[j];
  return {math::float_of(v.word[0]), math::float_of(v.word[1]), math::float_of(v.word[2]),
          math::float_of(v.word[3])};
}

template <int lanes>
__device__ void replay(Elements<lanes>& x, const AdamWRows& a, int from, int to) {
#pragma unroll 1
  for (int j = from; j < to; ++j) {
    const math::AdamWStep step = step_at(a, j);
#pragma unroll
    for (int i = 0; i < lanes; ++i) math::adamw_step(x.p[i], x.m[i], x.v[i], 0.0f, step, a.constants);
  }
}

// Those elements for which the leap is not good enough go step by step.
template <int lanes>
__device__ void leap(Elements<lanes>& x, const AdamWRows& a, const math::AdamWLeap& l, int from, int to) {
  Elements<lanes> exact = x;
  unsigned far = 0;
#pragma unroll
  for (int i = 0; i < lanes; ++i) {
    if (!math::adamw_leap(x.p[i], x.m[i], x.v[i], l, a.constants)) far |= 1u << i;
  }
  if (far == 0) return;
  replay(exact, a, from, to);
#pragma unroll
  for (int i = 0; i < lanes; ++i) x.p[i] = far >> i & 1u ? exact.p[i] : x.p[i];
}

template <int lanes>
__device__ void catch_up(Elements<lanes>& x, const AdamWRows& a, bool has_state, int64_t row, int from,
                         int to) {
  if (from == to) return;
  if (has_state && a.leap) {
    leap(x, a, a.leap[row], from, to);
  } else if (has_state) {
    replay(x, a, from, to);
  } else {
    float product = a.leap ? a.leap[row].product : 1.0f;
    for (int j = a.leap ? to : from; j < to; ++j) product *= a.steps[j].shrink;
#pragma unroll
    for (int i = 0; i < lanes; ++i) x.p[i] *= product;
  }
}

// Grid: tiles of blockDim.x / group rows. Shared memory: Row (blockDim.x / group,).
template <class T, int lanes>
__device__ void update_rows(const AdamWRows& a, int group) {
  if (a.found_inf && *a.found_inf != 0.0f) return;
  const float scale = a.scale ? *a.scale : 1.0f;
  const int rows_per_block = blockDim.x / group, mine = threadIdx.x / group;
  const int64_t first = int64_t{blockIdx.x} * rows_per_block;
  const int until = static_cast<int>(a.until);
  Row* rows = static_cast<Row*>(shared_memory());
  if (static_cast<int>(threadIdx.x) < rows_per_block && first + threadIdx.x < a.rows) {
    const int64_t id = a.ids[first + threadIdx.x];
    rows[threadIdx.x] = {id, a.slot[id], a.last[id]};
    if (!a.out) a.last[id] = until + (a.grad != nullptr);
  }
  __syncthreads();
  const int64_t row = first + mine;
  if (row >= a.rows) return;
  const auto [id, slot, last] = rows[mine];
  const bool has_state = slot >= 0, has_master = has_state && a.master != nullptr;
  for (int64_t column = threadIdx.x % group * lanes; column < a.width; column += group * lanes) {
    T* table = static_cast<T*>(a.table) + id * a.stride + column;
    const int64_t in_state = slot * a.width + column, in_rows = row * a.width + column;
    Elements<lanes> x{};
    if (has_master) {
      load_elements(a.master + in_state, x.p);
    } else {
      load_elements(table, x.p);
    }
    if (has_state) {
      load_elements(a.m + in_state, x.m);
      load_elements(a.v + in_state, x.v);
    }
    float g[lanes] = {};
    if (a.grad) load_elements(static_cast<const T*>(a.grad) + in_rows, g);
    catch_up(x, a, has_state, row, last, until);
    if (a.out) {
      store_elements(static_cast<T*>(a.out) + in_rows, x.p);
      continue;
    }
    if (a.grad) {
      const math::AdamWStep step = step_at(a, until);
#pragma unroll
      for (int i = 0; i < lanes; ++i)
        math::adamw_step(x.p[i], x.m[i], x.v[i], g[i] * scale, step, a.constants);
    }
    store_elements(table, x.p);
    if (has_master) store_elements(a.master + in_state, x.p);
    if (has_state) {
      store_elements(a.m + in_state, x.m);
      store_elements(a.v + in_state, x.v);
    }
  }
}

}  // namespace fastft::cuda
