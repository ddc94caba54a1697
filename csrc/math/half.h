#pragma once
#include <cstdint>

#include "hd.h"

// bfloat16 and IEEE binary16 as bit patterns, with branch-free conversions that a compiler can
// vectorise on any instruction set. Rounding is to nearest, ties to even; NaN stays NaN.
namespace fastft::math {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

FT_HD uint32_t bits_of(float x) {
  union {
    float f;
    uint32_t u;
  } pun = {x};
  return pun.u;
}

FT_HD float float_of(uint32_t u) {
  union {
    uint32_t u;
    float f;
  } pun = {u};
  return pun.f;
}

FT_HD float to_float(float x) { return x; }

FT_HD float to_float(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

FT_HD float to_float(fp16 x) {
  const uint32_t h = x.bits;
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t magnitude = (h & 0x7fffu) << 13;
  // 2^112 rebases the exponent (127 - 15) and makes subnormals normal; inf and NaN keep all ones.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return float_of(sign | ((h & 0x7c00u) == 0x7c00u ? special : finite));
}

template <class T>
FT_HD T from_float(float x);

template <>
FT_HD float from_float<float>(float x) {
  return x;
}

template <>
FT_HD bf16 from_float<bf16>(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
FT_HD fp16 from_float<fp16>(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // Below 2^-14 the sum with 0.5 leaves the subnormal's bits, rounded, in the low mantissa.
  const uint32_t subnormal = bits_of(float_of(a) + 0.5f) - 0x3f000000u;
  const uint32_t nan = 0x7e00u;
  uint32_t h = a < 0x38800000u ? subnormal : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above round to infinity
  h = a > 0x7f800000u ? nan : h;
  return {static_cast<uint16_t>(sign | h)};
}

}  // namespace fastft::math
