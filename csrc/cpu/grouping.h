#pragma once
#include <cstdint>

namespace fastft::cpu {

// Positions by the id they hold: `touched` are the different ids, ascending, and the positions of touched[u]
// are order[ends[u - 1] .. ends[u]), ascending. The outputs have room for n each.
struct Grouping {
  int64_t n;           // below 2^32
  const int64_t* ids;  // (n,), each from 0 to below 2^32
  int64_t *touched, *order, *ends;
};

// Returns the number of different ids.
int64_t group(const Grouping& a);

}  // namespace fastft::cpu
