#include "cross_entropy.cuh"
#include "launch.cuh"

namespace fastft::cuda {
namespace {

template <class T, bool kCapped, bool kHasQ>
__global__ void __launch_bounds__(kMaxThreads, 1) cross_entropy_kernel(const CrossEntropyRows a, int cached) {
  cross_entropy_row<T, kCapped, kHasQ>(a, cached);
}

template <class T>
auto kernel_for(const CrossEntropyRows& a) {
  if (a.softcap != 0.0f)
    return a.q ? cross_entropy_kernel<T, true, true> : cross_entropy_kernel<T, true, false>;
  return a.q ? cross_entropy_kernel<T, false, true> : cross_entropy_kernel<T, false, false>;
}

}  // namespace

template <class T>
int cross_entropy(const CrossEntropyRows& a, const CrossEntropyPlan& plan, void* stream) {
  if (a.rows == 0) return cudaSuccess;
  const int64_t vectors = scratch_size(plan.cluster, plan.threads) + plan.cached;
  const Shape shape{a.rows * plan.cluster, plan.threads, plan.cluster, vectors * int64_t{sizeof(Vector)}};
  return launch(kernel_for<T>(a), shape, stream, a, plan.cached);
}

template int cross_entropy<float>(const CrossEntropyRows&, const CrossEntropyPlan&, void*);
template int cross_entropy<math::bf16>(const CrossEntropyRows&, const CrossEntropyPlan&, void*);
template int cross_entropy<math::fp16>(const CrossEntropyRows&, const CrossEntropyPlan&, void*);

}  // namespace fastft::cuda
