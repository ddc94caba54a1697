#pragma once
#include "exponential.h"

namespace fastft::math {

// z = cap(scale x), cap(u) = softcap tanh(u / softcap), or u where softcap is 0.
struct LogitTransform {
  float scale = 1.0f;
  float softcap = 0.0f;

  template <bool kCapped>
  FT_HD float apply(float x) const {
    const float u = scale * x;
    return kCapped ? softcap * hyperbolic_tangent(u / softcap) : u;
  }

  // dz/dx at x. Near saturation 1 - tanh(u)^2 cancels; there it is 4 e / (1 + e)^2 with e = exp(-2 |u|).
  template <bool kCapped>
  FT_HD float slope(float x) const {
    if (!kCapped) return scale;
    const float u = scale * x / softcap;
    const float t = hyperbolic_tangent(u), e = exp_nonpositive(-2.0f * fabsf(u));
    return scale * (t * t < 0.5f ? 1.0f - t * t : 4.0f * e / ((1.0f + e) * (1.0f + e)));
  }
};

}  // namespace fastft::math
