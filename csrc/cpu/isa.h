#pragma once
// One function, several instruction sets, chosen at load time by the dynamic linker. This file is the
// only mention of an instruction set: the library itself is compiled for the baseline.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define FT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FT_CLONES
#endif

#if defined(__SSE2__)
#include <emmintrin.h>
#else
#include <cstring>
#endif
#include <cstdint>

namespace fastft::cpu {

inline const char* instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2)";
#endif
  return "baseline";
}

constexpr int64_t kStreamUnit = 16;  // bytes

// A copy past the caches, where the processor has one: without reading first what is overwritten, and without
// pushing out what is in use. `to` and `bytes` are multiples of kStreamUnit. Other threads see it after the
// next barrier or lock.
inline void stream(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  const auto* source = static_cast<const __m128i*>(from);
  auto* target = static_cast<__m128i*>(to);
  for (int64_t i = 0; i < bytes / kStreamUnit; ++i) _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

}  // namespace fastft::cpu
