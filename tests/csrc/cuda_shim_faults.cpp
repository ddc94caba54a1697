// Kernels with one mistake each, which the shim must report: two blocks of two warps, in one cluster, with
// 256 bytes of shared memory.
#include "cuda_shim.h"

namespace {

alignas(16) const float source[8] = {1, 2, 3, 4, 5, 6, 7, 8};
float seen;
std::string error;

float* shared() { return static_cast<float*>(__dynamic_shared_memory()); }

void cluster_barrier() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

const char* run(const std::function<void()>& kernel) {
  error = shim::run(2, 64, 2, 256, {false, true}, kernel);
  return error.c_str();
}

}  // namespace

#define FAULT(name)                                         \
  void name();                                              \
  extern "C" const char* run_##name() { return run(name); } \
  void name()

FAULT(barrier_in_a_branch) {
  if (threadIdx.x < 32) __syncthreads();
}
FAULT(shuffle_in_a_branch) {
  if (threadIdx.x % 2 == 0) __shfl_xor_sync(0xffffffffu, 1, 1);
}
FAULT(shuffle_with_a_part) { __ballot_sync(0xffffu, true); }
FAULT(copy_not_waited_for) {
  __pipeline_memcpy_async(shared(), source, 16);
  __pipeline_commit();
}
FAULT(misaligned_copy) { __pipeline_memcpy_async(shared(), source + 1, 16); }
FAULT(write_past_shared_memory) { shared()[64] = 1.0f; }
FAULT(remote_before_start) { *static_cast<float*>(__cluster_map_shared_rank(shared(), 1)) = 1.0f; }
FAULT(remote_after_end) {
  cluster_barrier();
  const unsigned other = 1 - __clusterRelativeBlockRank();
  *static_cast<float*>(__cluster_map_shared_rank(shared(), other)) = 1.0f;
}
FAULT(arrives_twice) {
  __cluster_barrier_arrive();
  __cluster_barrier_arrive();
}
FAULT(does_not_wait) { __cluster_barrier_arrive(); }
FAULT(waits_without_arriving) { __cluster_barrier_wait(); }

// Not reported, but seen: what is read before it is there is NaN.
FAULT(reads_a_copy_early) {
  __pipeline_memcpy_async(shared(), source, 16);
  __pipeline_commit();
  seen = shared()[0];
  __pipeline_wait_prior(0);
}
FAULT(reads_what_nothing_wrote) { seen = shared()[32]; }

extern "C" float last_seen() { return seen; }
