// Twin of CUDA's half: storage and conversions, round to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

#include "simt_intrinsics.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int sign = value.bits >> 15, exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  float magnitude = std::ldexp(static_cast<float>(fraction), -24);
  if (exponent == 31) {
    magnitude = fraction == 0 ? HUGE_VALF : __uint_as_float(0x7fc00000u);
  } else if (exponent > 0) {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return sign != 0 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(value) >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (value != value) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  // In units of the last place of its binade the magnitude is an integer plus a fraction to be rounded; a
  // carry out of the fraction bits increments the exponent, as it must.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  if (exponent < -13 || magnitude == 0.0f) exponent = -13;
  const int places = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return {static_cast<uint16_t>(sign | ((exponent + 13) * 1024 + places))};
}
