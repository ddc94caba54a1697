#pragma once
// The part of CUDA's runtime that csrc/cuda calls, over cuda_shim.h. The device is an H100 as far as limits
// go, and refuses what it would refuse. A stream is a schedule: bit 0 for descending threads, bit 1 for late
// copies.
#include <map>

#include "cuda_shim.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrL2CacheSize,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
enum { cudaSharedmemCarveoutMaxShared = 100 };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

using cudaStream_t = struct Stream*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace shim {

constexpr int kLimits[] = {9,         0,       132,     227 << 10,
                           228 << 10, 1 << 10, 50 << 20};  // in the order of cudaDeviceAttr
constexpr int kMaxThreads = 1024, kMaxCluster = 8;

inline std::string message;                      // of the last failure
inline std::map<const void*, int> shared_limit;  // by kernel, where it was asked for

inline cudaError_t report(cudaError_t error, const std::string& why) {
  message = why;
  return error;
}

}  // namespace shim

inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  if (device != 0) return shim::report(cudaErrorInvalidDevice, "invalid device ordinal");
  return *value = shim::kLimits[which], cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return shim::message.c_str(); }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > shim::kLimits[cudaDevAttrMaxSharedMemoryPerBlockOptin]) {
    return shim::report(cudaErrorInvalidConfiguration, "more shared memory than a block can have");
  }
  return shim::shared_limit[reinterpret_cast<const void*>(kernel)] = value, cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned cluster = config->numAttrs ? config->attrs[0].val.clusterDim.x : 1;
  const auto asked = shim::shared_limit.find(reinterpret_cast<const void*>(kernel));
  const size_t allowed = asked == shim::shared_limit.end() ? 48 << 10 : std::max(asked->second, 48 << 10);
  if (config->gridDim.x == 0 || config->blockDim.x > shim::kMaxThreads || cluster > shim::kMaxCluster ||
      config->dynamicSmemBytes > allowed) {
    return shim::report(cudaErrorInvalidConfiguration, "invalid configuration argument");
  }
  const auto schedule = reinterpret_cast<uintptr_t>(config->stream);
  const std::string error =
      shim::run(config->gridDim.x, config->blockDim.x, cluster, config->dynamicSmemBytes,
                {(schedule & 1) != 0, (schedule & 2) != 0}, [=] { kernel(arguments...); });
  return error.empty() ? cudaSuccess : shim::report(cudaErrorLaunchFailure, error);
}
