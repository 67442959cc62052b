// Half-pixel bilinear taps along one axis, as exact fractions: no position is rounded, and none differs between devices.
// Built with -fmad=false (nvcc) and -ffp-contract=off (g++), the kernels give the same bits on the GPU and on the host.
#pragma once

#include "kernel.h"

// Which part of a frame fills which part of the network input, in pixels (artifacts.Placement). A kernel takes it by
// value, as eight 32-bit integers in this order.
struct Placement {
  int source_x, source_y, source_w, source_h;
  int target_x, target_y, target_w, target_h;
};

// Two neighbours on an axis and the weight of the second; beyond an end both are the end.
struct Tap {
  int low, high;
  float weight;
};

FORMULA int clip(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

// The tap at position numerator / denominator on an axis of `size` points; denominator > 0.
FORMULA Tap tap_at(int numerator, int denominator, int size) {
  int low = numerator / denominator;
  if (low * denominator > numerator) low -= 1;  // division cuts towards 0, the floor is wanted
  const float weight = (float)(numerator - low * denominator) / (float)denominator;
  return {clip(low, size), clip(low + 1, size), weight};
}

FORMULA float between(float first, float second, float weight) { return first + (second - first) * weight; }
