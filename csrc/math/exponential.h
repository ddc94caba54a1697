#pragma once
#include <cmath>
#include <cstdint>

#include "half.h"

// exp and tanh of one float. The host versions are straight-line polynomials (coefficients of the
// Cephes library's expf and tanhf, within about 1 ulp), so that a loop over them vectorises.
namespace fastft::math {

#if defined(__CUDA_ARCH__)

FT_HD float exp_nonpositive(float x) { return expf(x); }
FT_HD float hyperbolic_tangent(float x) { return tanhf(x); }

#else

// exp(x) for x <= 0, which is all that a softmax asks for; 0 below -87.3 (no denormals), NaN for NaN.
FT_HD float exp_nonpositive(float x) {
  const float clamped = x < -87.3f ? -87.3f : x;
  const float n = std::nearbyint(clamped * 1.44269504088896341f);
  float r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);  // 2^n
  return x < -87.3f ? 0.0f : p * power;
}

FT_HD float hyperbolic_tangent(float x) {
  const float a = std::fabs(x);
  const float s = x * x;
  float p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const float small = p * s * x + x;
  const float e = exp_nonpositive(-2.0f * a);
  const float large = std::copysign((1.0f - e) / (1.0f + e), x);
  return a < 0.625f ? small : large;
}

#endif

}  // namespace fastft::math
