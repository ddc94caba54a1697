#pragma once
#include <cstring>

#include "cluster.cuh"

// Reductions and scans over a warp, a block and a cluster of blocks. A monoid is a type with a static
// `T combine(T, T)`; T is trivially copyable, in whole 32-bit words. The order is fixed, so every run and
// every thread gets the same bits. All threads take part, in whole warps.
namespace fastft::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// `value` through `exchange`, a shuffle of one word.
template <class T, class Exchange>
__device__ T shuffle(T value, Exchange exchange) {
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = exchange(word);
  std::memcpy(&value, words, sizeof(T));
  return value;
}

// Every lane gets the total of its group of `width` lanes, a power of two. The monoid commutes.
template <class Monoid, class T>
__device__ T warp_reduce(T value, int width = kWarp) {
  for (int mask = width / 2; mask > 0; mask /= 2) {
    value = Monoid::combine(
        value, shuffle(value, [mask](uint32_t word) { return __shfl_xor_sync(kAllLanes, word, mask); }));
  }
  return value;
}

// Every thread of the cluster gets the total, after one barrier. `scratch` holds size * warps values in the
// shared memory of each block, at one place; both counts are powers of two. Once per kernel, after
// cluster::arrive(), and before it nothing in `scratch` is used.
template <class Monoid, class T>
__device__ T cluster_reduce(T value, T* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int size = cluster::size(), count = size * warps;
  value = warp_reduce<Monoid>(value);
  cluster::wait();
  if (lane < size) *cluster::at(&scratch[cluster::rank() * warps + warp], lane) = value;
  cluster::sync();
  value = scratch[lane % count];
#pragma unroll 1
  for (int i = lane + kWarp; i < count; i += kWarp) value = Monoid::combine(value, scratch[i]);
  return warp_reduce<Monoid>(value, count < kWarp ? count : kWarp);
}

// The total of the threads before this one in the block, from `identity` on. `scratch`: (warps,), in shared
// memory. The monoid need not commute.
template <class Monoid, class T>
__device__ T block_scan(T value, T identity, T* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto lane_before = [](T mine, int distance) {
    return shuffle(mine, [distance](uint32_t word) { return __shfl_up_sync(kAllLanes, word, distance); });
  };
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T before = lane_before(value, distance);
    if (lane >= distance) value = Monoid::combine(before, value);
  }
  if (lane == kWarp - 1) scratch[warp] = value;
  __syncthreads();
  T total = identity;
  for (int i = 0; i < warp; ++i) total = Monoid::combine(total, scratch[i]);
  const T before = lane_before(value, 1);
  return lane == 0 ? total : Monoid::combine(total, before);
}

}  // namespace fastft::cuda
