#pragma once
#include <cstdint>

namespace fastft::cuda {

constexpr int kCompactTile = 2048;  // positions per block

// Positions of the targets that are not `ignore_index`, ascending. Those after `capacity` are dropped; what
// is left of it is -1.
struct Compaction {
  int64_t n;
  const int64_t* target;  // (n,)
  int64_t ignore_index;
  int64_t* counts;  // (ceil(n / kCompactTile),), at least (1,): scratch
  int64_t capacity;
  int64_t* valid;  // (capacity,)
  int64_t* count;  // (1,): of all supervised positions
};

// Rows of bytes, moved by an index. gather: to[i] = from[index[i]], or zeros where that is no row of `from`.
// scatter: to[index[k]] = from[k], zeros elsewhere; `index` ascends, -1 last.
struct RowMove {
  int64_t rows, width;             // of `to`; width in bytes
  const void* from;                // (from_rows, width)
  int64_t from_rows, from_stride;  // stride in bytes
  void* to;                        // (rows, width)
  const int64_t* index;            // gather: (rows,), scatter: (from_rows,)
};

// Launch on `stream` and give cudaSuccess or the launch's error; nothing waits.
int compact(const Compaction& a, void* stream);
int gather_rows(const RowMove& a, void* stream);
int scatter_rows(const RowMove& a, void* stream);

}  // namespace fastft::cuda
