#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.h"

namespace fastft::cuda {

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* why_no_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error == cudaSuccess && count > 0 ? nullptr : cudaGetErrorString(error ? error : cudaErrorNoDevice);
}

DeviceLimits device_limits(int device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check("device attributes", cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrReservedSharedMemoryPerBlock),
          attribute(cudaDevAttrL2CacheSize)};
}

void check(const char* what, int error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, not again by a later launch
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
}

}  // namespace fastft::cuda
