#pragma once
#include <cstdint>

namespace fastft::cpu {

// Rows of logits to per-row statistics and, where `grad` is given, to the gradient by the untransformed
// logits. Strides count elements; the innermost one is 1. `grad` may be `logits` itself.
struct CrossEntropyRows {
  int64_t rows, vocab;
  const void* logits;  // (rows, vocab)
  int64_t logits_stride;
  void* grad;  // (rows, vocab) or null
  int64_t grad_stride;
  const int64_t* target;  // (rows,); negative: the row is not read, its statistics are 0, and so is its
                          // gradient for -1; below, that is left as it is: zeros, as the system gives them
  const float* coefficients;  // (rows, 3): label, smooth, lse_square; see math/row.h
  const float* q;             // (vocab,), sums to 1; null for 1 / vocab
  float scale, softcap;       // softcap 0: none
  float* stats;               // (5, rows): nll, lse, q.z, entropy, correct
  int threads;
};

template <class T>  // float, math::bf16 or math::fp16
void cross_entropy(const CrossEntropyRows& rows);

}  // namespace fastft::cpu
