#pragma once
#include <cuda_runtime.h>
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#endif

#include "../math/half.h"

// Sixteen bytes, what a thread moves at a time: from global to shared memory without passing through
// registers, and between memory and fp32. Names with two underscores are CUDA's built-ins.
namespace fastft::cuda {

struct alignas(16) Vector {
  uint32_t word[4];
};

template <class T>
constexpr int kLanes = 16 / sizeof(T);

// Dynamic shared memory of this block.
inline __device__ void* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ Vector memory[];
  return memory;
#else
  return __dynamic_shared_memory();
#endif
}

// Copies in the background, in groups closed by commit_copies. A thread sees what it copied itself after
// it has waited until at most `pending` (0..8) of its groups are under way.
inline __device__ void copy_async(Vector* shared, const Vector* global) {
  __pipeline_memcpy_async(shared, global, sizeof(Vector));
}
inline __device__ void commit_copies() { __pipeline_commit(); }
inline __device__ void wait_for_copies(int pending) { __pipeline_wait_prior(pending); }

// Two 16-bit floats in a word, the first in its low half.
struct Pair {
  float first, second;
};

template <class T>
__device__ Pair unpack(uint32_t word);
template <class T>
__device__ uint32_t pack(Pair x);

template <>
inline __device__ Pair unpack<math::bf16>(uint32_t word) {
  return {math::float_of(word << 16), math::float_of(word & 0xffff0000u)};
}

#if defined(__CUDACC__)

template <>
inline __device__ Pair unpack<math::fp16>(uint32_t word) {
  const float2 x = __half22float2(reinterpret_cast<const __half2&>(word));
  return {x.x, x.y};
}
template <>
inline __device__ uint32_t pack<math::bf16>(Pair x) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x.first, x.second);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
inline __device__ uint32_t pack<math::fp16>(Pair x) {
  const __half2 pair = __floats2half2_rn(x.first, x.second);
  return reinterpret_cast<const uint32_t&>(pair);
}

#else

template <>
inline Pair unpack<math::fp16>(uint32_t word) {
  return {math::to_float(math::fp16{static_cast<uint16_t>(word)}),
          math::to_float(math::fp16{static_cast<uint16_t>(word >> 16)})};
}
template <>
inline uint32_t pack<math::bf16>(Pair x) {
  return math::from_float<math::bf16>(x.first).bits | uint32_t{math::from_float<math::bf16>(x.second).bits}
                                                          << 16;
}
template <>
inline uint32_t pack<math::fp16>(Pair x) {
  return math::from_float<math::fp16>(x.first).bits | uint32_t{math::from_float<math::fp16>(x.second).bits}
                                                          << 16;
}

#endif

template <class T>
__device__ void unpack(const Vector& v, float (&x)[kLanes<T>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = math::float_of(v.word[i]);
    } else {
      const Pair pair = unpack<T>(v.word[i]);
      x[2 * i] = pair.first, x[2 * i + 1] = pair.second;
    }
  }
}

template <class T>
__device__ Vector pack(const float (&x)[kLanes<T>]) {
  Vector v;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      v.word[i] = math::bits_of(x[i]);
    } else {
      v.word[i] = pack<T>(Pair{x[2 * i], x[2 * i + 1]});
    }
  }
  return v;
}

}  // namespace fastft::cuda
