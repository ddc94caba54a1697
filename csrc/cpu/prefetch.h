#pragma once
#include <cstdint>

namespace fastft::cpu {

constexpr int64_t kCacheLine = 64;  // bytes

// Asks for kCount elements before they are needed, into L2: rows lie apart, and hardware fetches ahead within
// a row only.
template <int64_t kCount, class T>
inline void prefetch_block(const T* from) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < kCount; i += kCacheLine / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(from + i, 0, 2);
#else
  (void)from;
#endif
}

}  // namespace fastft::cpu
