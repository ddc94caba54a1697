#pragma once
#include <cstdint>

#include "../math/leap.h"

namespace fastft::cpu {

// Rows of a table (V, width) of T under AdamW, those that have missed steps caught up with; see
// fastft/kernels/reference/row_update.py.
struct AdamWRows {
  int64_t rows, width;
  const int64_t* ids;  // (rows,)
  void* table;         // rows `stride` elements apart
  int64_t stride;
  int32_t* last;        // (V,) steps taken
  const int32_t* slot;  // (V,) row of m, v and master, or -1
  float *m, *v;         // (slots, width)
  int64_t filled;  // slots from here on hold no m and v yet, which are 0: with a gradient they are written
  float* master;   // (slots, width), or null
  const math::AdamWStep* steps;
  int64_t until;                      // steps of g = 0 to have been taken
  const math::Departure* departures;  // (until + 1,), or null: missed steps are replayed
  const void* grad;                   // (rows, width) of T for step `until`, or null
  void* out;                    // (rows, width) of T: where the rows go, nothing else being written; or null
  const int64_t *order, *ends;  // row k goes to rows order[ends[k - 1] .. ends[k]) of `out` instead; or null
  const float* scale;           // a factor of `grad`, or null
  const float* found_inf;       // where it is not 0 nothing is written; or null
  math::AdamWConstants constants;
  int threads;
};

template <class T>
void adamw_rows(const AdamWRows& a);

}  // namespace fastft::cpu
