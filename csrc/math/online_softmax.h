#pragma once
#include <cmath>

#include "exponential.h"

// What one pass over a set of logits knows of its softmax: the same struct serves a block of a row,
// the two sides of the target, SIMD lanes, and later warps and vocabulary shards.
namespace fastft::math {

struct SoftmaxSum {
  float max = -INFINITY;
  float sum = 0.0f;     // sum of exp(z - max)
  float moment = 0.0f;  // sum of exp(z - max) (z - max)
  float dot_q = 0.0f;   // sum of q z
};

// Monoid with identity SoftmaxSum{}: empty sides and -inf logits contribute nothing, never NaN.
FT_HD SoftmaxSum combine(SoftmaxSum a, SoftmaxSum b) {
  if (a.max < b.max) {
    const SoftmaxSum swap = a;
    a = b;
    b = swap;
  }
  if (b.sum > 0.0f) {
    const float shift = b.max - a.max;
    const float factor = exp_nonpositive(shift);
    a.moment += factor > 0.0f ? factor * (b.moment + shift * b.sum) : 0.0f;
    a.sum += factor * b.sum;
  } else if (!(b.sum == 0.0f)) {
    a.sum = b.sum;  // NaN stays visible
  }
  a.dot_q += b.dot_q;
  return a;
}

FT_HD float lse(const SoftmaxSum& s) { return s.max + logf(s.sum); }

// H = -sum p log p = log(sum) - moment / sum, in nats.
FT_HD float entropy(const SoftmaxSum& s) { return logf(s.sum) - s.moment / s.sum; }

}  // namespace fastft::math
