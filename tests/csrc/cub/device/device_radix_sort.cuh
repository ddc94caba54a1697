#pragma once
// The part of CUB that csrc/cuda calls, on the CPU. It spoils all of the storage it is given, before and
// after it sorts, and the buffers that do not hold the result; which those are depends on n and the bits.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

namespace cub {

template <class T>
struct DoubleBuffer {
  T* d_buffers[2] = {};
  int selector = 0;

  T* Current() { return d_buffers[selector]; }
  T* Alternate() { return d_buffers[selector ^ 1]; }
};

struct DeviceRadixSort {
  static constexpr size_t kStorage = 300;
  static constexpr int kDigit = 8,
                       kOneBlock = 500;  // bits of a pass; pairs sorted in one pass whatever the bits

  // Stable, by bits [begin_bit, end_bit) of the keys alone.
  template <class Key, class Value>
  static cudaError_t SortPairs(void* storage, size_t& bytes, DoubleBuffer<Key>& keys,
                               DoubleBuffer<Value>& values, int n, int begin_bit, int end_bit, cudaStream_t) {
    if (begin_bit < 0 || begin_bit >= end_bit || end_bit > static_cast<int>(8 * sizeof(Key))) {
      return shim::report(cudaErrorInvalidConfiguration, "no such bits");
    }
    if (storage == nullptr) return bytes = kStorage, cudaSuccess;
    if (bytes < kStorage) return shim::report(cudaErrorInvalidConfiguration, "too little storage");
    std::memset(storage, shim::kPoison, bytes);
    const auto digits = [=](Key key) {
      return static_cast<uint64_t>(key) >> begin_bit & ((uint64_t{1} << (end_bit - begin_bit)) - 1);
    };
    std::vector<int> from(n);
    std::iota(from.begin(), from.end(), 0);
    std::stable_sort(from.begin(), from.end(),
                     [&, key = keys.Current()](int a, int b) { return digits(key[a]) < digits(key[b]); });
    const int passes = n <= kOneBlock ? 1 : (end_bit - begin_bit + kDigit - 1) / kDigit;
    permute(keys, from, passes);
    permute(values, from, passes);
    std::memset(storage, shim::kPoison, bytes);
    return cudaSuccess;
  }

 private:
  template <class T>
  static void permute(DoubleBuffer<T>& buffer, const std::vector<int>& from, int passes) {
    std::vector<T> sorted;
    for (const int i : from) sorted.push_back(buffer.Current()[i]);
    buffer.selector = (buffer.selector + passes) % 2;
    std::copy(sorted.begin(), sorted.end(), buffer.Current());
    std::memset(buffer.Alternate(), shim::kPoison, sorted.size() * sizeof(T));
  }
};

}  // namespace cub
