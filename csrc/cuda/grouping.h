#pragma once
#include <cstdint>

namespace fastft::cuda {

// Positions by the id they hold: `touched` are the different ids, ascending, and the positions of touched[u]
// are order[ends[u - 1] .. ends[u]), ascending. There are `count` different ids; what follows them in
// `touched` and `ends` is left as it was.
struct Grouping {
  int64_t n;                        // below 2^31
  const int64_t* ids;               // (n,), each from 0 to below 2^bits
  int bits;                         // from 1 to 32
  void* scratch;                    // 4-byte aligned
  int64_t scratch_bytes;            // as many as grouping_scratch asks for
  int64_t *touched, *order, *ends;  // (n,)
  int64_t* count;                   // (1,)
};

// Both give cudaSuccess or an error. group launches on `stream`, nothing where n is 0; nothing waits.
int grouping_scratch(int64_t n, int bits, int64_t* bytes);
int group(const Grouping& a, void* stream);

}  // namespace fastft::cuda
