#pragma once

namespace fastft::cuda {

int runtime_version();        // of the statically linked cudart, as 1000 major + 10 minor
const char* why_no_device();  // null where there is one; a driver older than the runtime is none

// What a launch is shaped by; memory in bytes.
struct DeviceLimits {
  int capability;  // 10 major + minor
  int multiprocessors;
  int shared_per_block;
  int shared_per_multiprocessor;
  int shared_reserved;  // per block, by the system
  int l2;
};
DeviceLimits device_limits(int device);

// Throws std::runtime_error, which names `what`, where `error` is not cudaSuccess.
void check(const char* what, int error);

}  // namespace fastft::cuda
