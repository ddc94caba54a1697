#include "launch.cuh"
#include "row_update.cuh"

namespace fastft::cuda {
namespace {

template <class T, int lanes>
__global__ void __launch_bounds__(kUpdateThreads) adamw_rows_kernel(const AdamWRows a, int group) {
  update_rows<T, lanes>(a, group);
}

// All but the table are whole rows without gaps.
template <class T>
bool all_in_vectors(const AdamWRows& a) {
  const auto rest = reinterpret_cast<uint64_t>(a.m) | reinterpret_cast<uint64_t>(a.v) |
                    reinterpret_cast<uint64_t>(a.master) | reinterpret_cast<uint64_t>(a.grad) |
                    reinterpret_cast<uint64_t>(a.out);
  return rest % sizeof(Vector) == 0 && in_vectors<T>(a.table, a.stride, a.width, kLanes<T>);
}

}  // namespace

template <class T>
int adamw_rows(const AdamWRows& a, void* stream) {
  if (a.rows == 0) return cudaSuccess;
  const bool vectors = all_in_vectors<T>(a);
  const int lanes = vectors ? kLanes<T> : 1;
  const int group = group_for(a.width / lanes, kUpdateThreads), per_block = kUpdateThreads / group;
  const Shape shape{ceil_div(a.rows, per_block), kUpdateThreads, 1, per_block * int64_t{sizeof(Row)}};
  return launch(vectors ? adamw_rows_kernel<T, kLanes<T>> : adamw_rows_kernel<T, 1>, shape, stream, a, group);
}

template int adamw_rows<float>(const AdamWRows&, void*);
template int adamw_rows<math::bf16>(const AdamWRows&, void*);
template int adamw_rows<math::fp16>(const AdamWRows&, void*);

}  // namespace fastft::cuda
