#pragma once
#include <cmath>
#include <cstdint>

#include "hd.h"

// One element of AdamW, with one square root and one division. Not torch's bits: its square root on the CPU
// is MKL's, which is not always rounded right.
namespace fastft::math {

struct AdamWConstants {
  float beta1_rest;  // 1 - beta1
  float beta2;
  float beta2_rest;
  float eps;
};

// What belongs to one step.
struct AdamWStep {
  float shrink;      // 1 - lr weight_decay
  float size;        // lr / (1 - beta1^t)
  float correction;  // sqrt(1 - beta2^t)
  float lr;
};

// What takes a row over the steps it has missed; fastft/optim/leap.py has the formula.
struct AdamWLeap {
  float product, weight1, weight2, node1, node2, half, first, beta1, beta2;
};

FT_HD void adamw_step(float& p, float& m, float& v, float g, const AdamWStep& s, const AdamWConstants& c) {
  m = m + c.beta1_rest * (g - m);
  v = v * c.beta2 + c.beta2_rest * g * g;
  const float move = s.size * s.correction * m / (sqrtf(v) + c.eps * s.correction);
  p = p * s.shrink - (m == 0.0f ? 0.0f : move);  // eps may be 0
}

constexpr float kClose =
    0.1f;  // how much eps may vary what a step moves, from the first missed one to the last

// For v from here on the leap is good enough.
FT_HD float adamw_least_v(const AdamWLeap& l, const AdamWConstants& c) {
  const float x = c.eps * (l.half / kClose - l.first);
  return x <= 0.0f ? 0.0f : x * x;  // of no number: no v is
}

// True where the leap is good enough; p, m and v are taken over it either way.
FT_HD bool adamw_leap(float& p, float& m, float& v, const AdamWLeap& l, const AdamWConstants& c) {
  const float x = sqrtf(v);
  const float x1 = x + c.eps * l.node1, x2 = x + c.eps * l.node2;
  const float move = m * (l.weight1 * x2 + l.weight2 * x1) / (x1 * x2);
  const bool close = c.eps * l.half <= kClose * (x + c.eps * l.first);
  const bool idle = m == 0.0f;
  p = p * l.product - (idle ? 0.0f : move);
  m = m * l.beta1;
  v = v * l.beta2;
  return close || idle;
}

}  // namespace fastft::math
