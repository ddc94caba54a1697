#pragma once
#include <cstdint>

#include "../math/adamw.h"

namespace fastft::cuda {

// Rows of a table (V, width) of T under AdamW, those that have missed steps caught up with; see
// fastft/kernels/reference/row_update.py.
struct AdamWRows {
  int64_t rows, width;
  const int64_t* ids;  // (rows,), each once unless `out` is given
  void* table;         // rows `stride` elements apart
  int64_t stride;
  int32_t* last;                 // (V,) steps taken
  const int32_t* slot;           // (V,) row of m, v and master, or -1
  float *m, *v;                  // (slots, width)
  float* master;                 // (slots, width), or null
  const math::AdamWStep* steps;  // at a multiple of 16 bytes
  int64_t until;                 // steps of g = 0 to have been taken
  const math::AdamWLeap* leap;   // (rows,), or null
  const void* grad;              // (rows, width) of T for step `until`, or null
  void* out;                     // (rows, width) of T: where the rows go, nothing else being written; or null
  const float* scale;            // a factor of `grad`, or null
  const float* found_inf;        // where it is not 0 nothing is written; or null
  math::AdamWConstants constants;
};

// Launches on `stream` and gives cudaSuccess or the launch's error; nothing waits.
template <class T>
int adamw_rows(const AdamWRows& a, void* stream);

}  // namespace fastft::cuda
