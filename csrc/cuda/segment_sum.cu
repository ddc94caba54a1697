#include "launch.cuh"
#include "segment_sum.cuh"

namespace fastft::cuda {
namespace {

template <class T, int lanes>
__global__ void __launch_bounds__(kSegmentThreads) chunk_sum_kernel(const SegmentSum a, int group) {
  sum_chunks<T, lanes>(a, group);
}
template <int lanes>
__global__ void __launch_bounds__(kSegmentThreads) partial_sum_kernel(const SegmentSum a, int group) {
  add_partials<lanes>(a, group);
}

using Kernel = void (*)(SegmentSum, int);

int launch_over(Kernel kernel, int64_t places, int lanes, const SegmentSum& a, void* stream) {
  const int group = group_for(a.width / lanes, kSegmentThreads), per_block = kSegmentThreads / group;
  const int64_t columns = ceil_div(a.width, group * lanes);
  const Shape shape{ceil_div(places, per_block) * columns, kSegmentThreads, 1,
                    per_block * int64_t{sizeof(Chunk)}};
  return launch(kernel, shape, stream, a, group);
}

}  // namespace

template <class T>
int segment_sum(const SegmentSum& a, void* stream) {
  if (a.segments == 0 || a.width == 0) return cudaSuccess;
  const bool vectors = in_vectors<T>(a.values, a.stride, a.width, kLanes<T>);
  const Kernel sum = vectors ? chunk_sum_kernel<T, kLanes<T>> : chunk_sum_kernel<T, 1>;
  const int64_t later = later_chunks(a);
  if (const auto error = launch_over(sum, a.segments + later, vectors ? kLanes<T> : 1, a, stream))
    return error;
  if (later == 0) return cudaSuccess;
  constexpr int lanes = kLanes<float>;
  return a.width % lanes == 0 ? launch_over(partial_sum_kernel<lanes>, later, lanes, a, stream)
                              : launch_over(partial_sum_kernel<1>, later, 1, a, stream);
}

template int segment_sum<float>(const SegmentSum&, void*);
template int segment_sum<math::bf16>(const SegmentSum&, void*);
template int segment_sum<math::fp16>(const SegmentSum&, void*);

}  // namespace fastft::cuda
