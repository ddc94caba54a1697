#pragma once
#include <cstdint>

#include "../math/leap.h"

namespace fastft::cpu {

struct Leaps {
  double beta1, beta2;
  int64_t before;               // steps taken before the first of these
  int64_t count, reach;         // steps since; how many of them the last one's q reaches back
  double (*moments)[4];         // (count + 1,), of q
  math::Departure* departures;  // (count + 1,)
};

// The last step's departure, and what it adds to the moments of those before it and changes in theirs.
void advance(const Leaps& a, double shrink, double lr);

}  // namespace fastft::cpu
