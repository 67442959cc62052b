// The part of CUDA's header that the kernels use, for `threads.h`: a half and its value.
#pragma once

#include <stdint.h>

struct __half {
  uint16_t bits;  // IEEE 754 binary16
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? __builtin_nanf("") : sign * __builtin_inff();
  return sign * __builtin_ldexpf(exponent ? 1024 + fraction : fraction, exponent ? exponent - 25 : -24);
}
