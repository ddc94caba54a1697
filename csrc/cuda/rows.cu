#include "launch.cuh"
#include "rows.cuh"

namespace fastft::cuda {
namespace {

__global__ void __launch_bounds__(kTileThreads) count_kernel(const Compaction a) { count_tile(a); }
__global__ void __launch_bounds__(kTileThreads) select_kernel(const Compaction a) { select_tile(a); }

template <class Unit>
__global__ void __launch_bounds__(kMoveThreads) gather_kernel(const RowMove a) {
  gather_tile<Unit>(a);
}
template <class Unit>
__global__ void __launch_bounds__(kMoveThreads) scatter_kernel(const RowMove a) {
  scatter_tile<Unit>(a);
}

using Kernel = void (*)(RowMove);

// The widest of `kernels` (for units of 16, 4, 2 and 1 bytes) that suits the addresses and strides.
int move(const Kernel (&kernels)[4], const RowMove& a, void* stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const uint64_t all = reinterpret_cast<uint64_t>(a.from) | reinterpret_cast<uint64_t>(a.to) |
                       static_cast<uint64_t>(a.from_stride) | static_cast<uint64_t>(a.width);
  const Kernel kernel = kernels[all % 16 == 0 ? 0 : all % 4 == 0 ? 1 : all % 2 == 0 ? 2 : 3];
  const Shape shape{ceil_div(a.rows, kMoveRows), kMoveThreads, 1, kMoveRows * int64_t{sizeof(int64_t)}};
  return launch(kernel, shape, stream, a);
}

}  // namespace

int compact(const Compaction& a, void* stream) {
  constexpr int warps = kTileThreads / kWarp;
  const int64_t tiles = a.n > kCompactTile ? ceil_div(a.n, kCompactTile) : 1;
  const Shape shape{tiles, kTileThreads, 1, warps * int64_t{sizeof(Counts) + sizeof(int)}};
  if (const auto error = launch(count_kernel, shape, stream, a)) return error;
  return launch(select_kernel, shape, stream, a);
}

int gather_rows(const RowMove& a, void* stream) {
  return move(
      {gather_kernel<Vector>, gather_kernel<uint32_t>, gather_kernel<uint16_t>, gather_kernel<uint8_t>}, a,
      stream);
}

int scatter_rows(const RowMove& a, void* stream) {
  return move(
      {scatter_kernel<Vector>, scatter_kernel<uint32_t>, scatter_kernel<uint16_t>, scatter_kernel<uint8_t>},
      a, stream);
}

}  // namespace fastft::cuda
