#pragma once
#include <cuda_runtime.h>

// A thread-block cluster: blocks that run at once and reach each other's shared memory. Below compute
// capability 9.0, and in a launch without clusters, a cluster is one block. Names with two underscores are
// CUDA's built-ins.
namespace fastft::cuda::cluster {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900

inline __device__ unsigned size() { return 1; }
inline __device__ unsigned rank() { return 0; }
inline __device__ unsigned index() { return blockIdx.x; }
inline __device__ void arrive() {}
inline __device__ void wait() {}
inline __device__ void sync() { __syncthreads(); }
template <class T>
__device__ T* at(T* shared, unsigned) {
  return shared;
}

#else

inline __device__ unsigned size() { return __clusterSizeInBlocks(); }
inline __device__ unsigned rank() { return __clusterRelativeBlockRank(); }
inline __device__ unsigned index() { return __clusterIdx().x; }

// Arriving says that this block runs, waiting that all do: no block may reach into another's shared memory
// before. Split, so that work fits between the two.
inline __device__ void arrive() {
  if (size() > 1) __cluster_barrier_arrive_relaxed();
}
inline __device__ void wait() {
  if (size() > 1) __cluster_barrier_wait();
}

// A barrier that also makes writes to shared memory, here and in other blocks, visible.
inline __device__ void sync() {
  if (size() == 1) return __syncthreads();
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

// The same place in the shared memory of block `rank`.
template <class T>
__device__ T* at(T* shared, unsigned rank) {
  return size() > 1 ? static_cast<T*>(__cluster_map_shared_rank(shared, rank)) : shared;
}

#endif

}  // namespace fastft::cuda::cluster
