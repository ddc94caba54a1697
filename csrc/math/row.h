#pragma once
#include "online_softmax.h"

// One row of cross-entropy, whatever the options: with p = softmax(z), target y and a distribution q
// over the classes (uniform, or the class weights),
//
//   loss  = label nll + smooth (lse - q.z) + lse_square lse^2,   nll = lse - z_y
//   dz_v  = lse_weight p_v - smooth q_v - label [v = y]
//   lse_weight = label + smooth + 2 lse_square lse
//
// Weights, reduction, label smoothing and z-loss only choose (label, smooth, lse_square).
namespace fastft::math {

struct RowCoefficients {
  float label = 0.0f;
  float smooth = 0.0f;
  float lse_square = 0.0f;
};

FT_HD float lse_weight(const RowCoefficients& c, float lse) {
  return c.label + c.smooth + 2.0f * c.lse_square * lse;
}

// nll from the sum of the other classes, so that a certain prediction keeps its small loss: log1p of
// the odds against the target, or lse - z_y where the target's own exp underflows.
FT_HD float negative_log_likelihood(const SoftmaxSum& others, float z_target, float row_lse) {
  const float odds = others.sum * expf(others.max - z_target);
  return odds < 1e30f ? log1pf(odds) : row_lse - z_target;
}

// dz at the target; near p_y = 1 the rest comes from the other classes, not from a difference near zero.
FT_HD float target_gradient(const RowCoefficients& c, float q_target, float row_lse, float p_target,
                            float p_others) {
  const float rest = p_target < 0.5f ? 1.0f - p_target : p_others;
  return c.smooth * (1.0f - q_target) + 2.0f * c.lse_square * row_lse * p_target -
         (c.label + c.smooth) * rest;
}

}  // namespace fastft::math
