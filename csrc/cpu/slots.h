#pragma once
#include <cstdint>

namespace fastft::cpu {

// Gives the places used, used + 1, ... to those of `ids` (n,), each once, whose slot is -1, in their order;
// returns how many are used then.
int64_t assign_slots(int32_t* slot, const int64_t* ids, int64_t n, int64_t used);

}  // namespace fastft::cpu
