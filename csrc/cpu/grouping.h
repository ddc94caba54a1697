#pragma once
#include <cstdint>

namespace fastft::cpu {

// The first position of an id that is not in [0, rows), or n.
int64_t first_outside(const int64_t* ids, int64_t n, int64_t rows);

// Positions by the id they hold: `touched` (U,) are the different ids, ascending, and the positions of
// touched[u] are order[ends[u - 1] .. ends[u]), ascending.
struct Grouping {
  int64_t n;           // below 2^32
  const int64_t* ids;  // (n,), each from 0 to below 2^32
  int64_t* out;        // room for 3 n: touched (U,), ends (U,), order (n,)
};

// Returns U.
int64_t group(const Grouping& a);

}  // namespace fastft::cpu
