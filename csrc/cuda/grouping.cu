#include <cub/device/device_radix_sort.cuh>

#include "grouping.cuh"
#include "launch.cuh"

namespace fastft::cuda {
namespace {

__global__ void __launch_bounds__(kTileThreads) make_pairs_kernel(const Grouping a, const Pairs to) {
  make_pair(a, to);
}
__global__ void __launch_bounds__(kTileThreads)
    count_ends_kernel(const Grouping a, const Pairs sorted, int* counts) {
  count_ends(a, sorted, counts);
}
__global__ void __launch_bounds__(kTileThreads)
    write_groups_kernel(const Grouping a, const Pairs sorted, const int* counts) {
  write_groups(a, sorted, counts);
}

// Of the scratch: two buffers of ids and two of positions; the sort has the rest.
int64_t pair_bytes(int64_t n) { return 4 * n * int64_t{sizeof(uint32_t)}; }

struct Sort {
  cub::DoubleBuffer<uint32_t> ids, positions;

  // From the current buffers to those that are current afterwards. Without `temporary` it only sets `bytes`.
  cudaError_t run(void* temporary, size_t& bytes, int64_t n, int bits, void* stream) {
    return cub::DeviceRadixSort::SortPairs(temporary, bytes, ids, positions, static_cast<int>(n), 0, bits,
                                           static_cast<cudaStream_t>(stream));
  }
};

}  // namespace

int grouping_scratch(int64_t n, int bits, int64_t* bytes) {
  size_t sorting = 0;
  const auto error = Sort{}.run(nullptr, sorting, n, bits, nullptr);
  *bytes = pair_bytes(n) + static_cast<int64_t>(sorting);
  return error;
}

int group(const Grouping& a, void* stream) {
  if (a.n == 0) return cudaSuccess;
  uint32_t* words = static_cast<uint32_t*>(a.scratch);
  Sort sort{{words, words + a.n}, {words + 2 * a.n, words + 3 * a.n}};
  size_t bytes = static_cast<size_t>(a.scratch_bytes - pair_bytes(a.n));

  const Shape places{ceil_div(a.n, kTileThreads), kTileThreads};
  const Pairs unsorted{sort.ids.Current(), sort.positions.Current()};
  if (const auto error = launch(make_pairs_kernel, places, stream, a, unsorted)) return error;
  if (const auto error = sort.run(words + 4 * a.n, bytes, a.n, a.bits, stream)) return error;

  const Pairs sorted{sort.ids.Current(), sort.positions.Current()};
  int* counts = reinterpret_cast<int*>(sort.ids.Alternate());  // no longer needed
  const Shape tiles{ceil_div(a.n, kTile), kTileThreads, 1, 2 * kTileThreads / kWarp * int64_t{sizeof(int)}};
  if (const auto error = launch(count_ends_kernel, tiles, stream, a, sorted, counts)) return error;
  return launch(write_groups_kernel, tiles, stream, a, sorted, counts);
}

}  // namespace fastft::cuda
