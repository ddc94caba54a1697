#pragma once
#include "cluster.cuh"
#include "vector.cuh"

namespace fastft::cuda {

// One block's part of a row of `size` elements, at any alignment: `head` elements up to a 16-byte boundary,
// then whole vectors, then the rest. This block has vectors [begin, end); the first threads of the cluster's
// first block have one of the loose elements each.
template <class T>
struct Slice {
  int head, loose, begin, end;

  __device__ Slice(const T* row, int size) {
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % sizeof(Vector) / sizeof(T));
    head = past == 0 ? 0 : min(kLanes<T> - past, size);
    const int vectors = (size - head) / kLanes<T>, blocks = cluster::size();
    const int share = (vectors + blocks - 1) >> __popc(blocks - 1);  // a power of two of blocks
    loose = size - vectors * kLanes<T>;
    begin = min(share * static_cast<int>(cluster::rank()), vectors);
    end = min(begin + share, vectors);
  }

  __device__ int element(int vector) const { return head + vector * kLanes<T>; }

  // This thread's loose element, or -1.
  __device__ int loose_element(int size) const {
    const int i = threadIdx.x;
    if (cluster::rank() != 0 || i >= loose) return -1;
    return i < head ? i : size - loose + i;
  }
};

template <class T>
__device__ void fill_with_zeros(T* row, int size) {
  const Slice<T> slice(row, size);
  Vector* vectors = reinterpret_cast<Vector*>(row + slice.head);
  for (int i = slice.begin + threadIdx.x; i < slice.end; i += blockDim.x) vectors[i] = Vector{};
  if (const int i = slice.loose_element(size); i >= 0) row[i] = T{};
}

}  // namespace fastft::cuda
