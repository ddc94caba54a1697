#pragma once
#include <cuda_runtime.h>

#include <climits>
#include <cstdint>

namespace fastft::cuda {

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

struct Shape {
  int64_t blocks;
  int threads;
  int cluster = 1;     // blocks of a cluster
  int64_t shared = 0;  // bytes of dynamic shared memory
};

// Launches and gives cudaSuccess or the error. Nothing waits, allocates or touches another stream, so it can
// be captured in a graph.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, void* stream, Arguments... arguments) {
  constexpr int kWithoutAsking = 48 << 10;
  if (shape.blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (shape.shared > kWithoutAsking) {
    const cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaFuncAttribute carveout = cudaFuncAttributePreferredSharedMemoryCarveout;
    if (const auto error = cudaFuncSetAttribute(kernel, limit, static_cast<int>(shape.shared))) return error;
    if (const auto error = cudaFuncSetAttribute(kernel, carveout, cudaSharedmemCarveoutMaxShared))
      return error;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(shape.blocks);
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace fastft::cuda
