#pragma once
#include "vector.cuh"

// `n` consecutive elements of T between memory and fp32: one, or as many as make whole 16-byte accesses, and
// then at a multiple of 16 bytes.
namespace fastft::cuda {

template <class T, int n>
__device__ void load_elements(const T* from, float (&to)[n]) {
  if constexpr (n == 1) {
    to[0] = math::to_float(*from);
  } else {
    constexpr int lanes = kLanes<T>;
    static_assert(n % lanes == 0);
#pragma unroll
    for (int k = 0; k < n / lanes; ++k) {
      float part[lanes];
      const Vector v = reinterpret_cast<const Vector*>(from)[k];
      unpack<T>(v, part);
#pragma unroll
      for (int i = 0; i < lanes; ++i) to[k * lanes + i] = part[i];
    }
  }
}

template <class T, int n>
__device__ void store_elements(T* to, const float (&from)[n]) {
  if constexpr (n == 1) {
    *to = math::from_float<T>(from[0]);
  } else {
    constexpr int lanes = kLanes<T>;
    static_assert(n % lanes == 0);
#pragma unroll
    for (int k = 0; k < n / lanes; ++k) {
      float part[lanes];
#pragma unroll
      for (int i = 0; i < lanes; ++i) part[i] = from[k * lanes + i];
      reinterpret_cast<Vector*>(to)[k] = pack<T>(part);
    }
  }
}

// Whether rows of `width` elements, `stride` apart from `rows` on, can be taken `lanes` elements at a time.
template <class T>
bool in_vectors(const void* rows, int64_t stride, int64_t width, int lanes) {
  const auto bytes = reinterpret_cast<uint64_t>(rows) | static_cast<uint64_t>(stride) * sizeof(T);
  return width % lanes == 0 && bytes % sizeof(Vector) == 0;
}

// Threads, a power of two up to `most`, that share a row of `pieces`; a block has as many rows as fit. Down
// to a warp, fewer take several pieces each where otherwise more than an eighth would have none to take.
inline int group_for(int64_t pieces, int most) {
  constexpr int warp = 32;
  int group = 1;
  while (group < most && group < pieces) group *= 2;
  while (group > warp && 8 * ((group - pieces % group) % group) > pieces) group /= 2;
  return group;
}

}  // namespace fastft::cuda
