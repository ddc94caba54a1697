#include "slots.h"

namespace fastft::cpu {

int64_t assign_slots(int32_t* slot, const int64_t* ids, int64_t n, int64_t used) {
  for (int64_t k = 0; k < n; ++k) {
    if (slot[ids[k]] < 0) slot[ids[k]] = static_cast<int32_t>(used++);
  }
  return used;
}

}  // namespace fastft::cpu
