#pragma once
#include <cstdint>

namespace fastft::cuda {

// Rows of logits to per-row statistics and, where `grad` is given, to the gradient by the untransformed
// logits; math/row.h has the formulas. Strides count elements; the innermost one is 1. `grad` may be
// `logits` itself.
struct CrossEntropyRows {
  int64_t rows;
  int vocab;
  const void* logits;  // (rows, vocab)
  int64_t logits_stride;
  void* grad;  // (rows, vocab) or null
  int64_t grad_stride;
  const int64_t* target;      // (rows,); negative: the row is not read, its statistics and gradient are 0
  const float* coefficients;  // (rows, 3): label, smooth, lse_square
  const float* q;             // (vocab,), sums to 1; null for 1 / vocab
  float scale, softcap;       // softcap 0: none
  float* stats;               // (5, rows): nll, lse, q.z, entropy, correct
};

// How the rows run; fastft/kernels/cuda/tuning.py chooses.
struct CrossEntropyPlan {
  int cluster;  // blocks per row: 1, 2, 4 or 8; 1 below compute capability 9.0
  int threads;  // per block: a power of two from 32 to 1024
  int cached;   // 16-byte vectors per block that shared memory keeps; what is beyond is read twice
};

// Launches on `stream` and gives cudaSuccess or the launch's error; nothing waits.
template <class T>  // float, math::bf16 or math::fp16
int cross_entropy(const CrossEntropyRows& rows, const CrossEntropyPlan& plan, void* stream);

}  // namespace fastft::cuda
