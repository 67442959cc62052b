// Planes of a frame (I420, NV12), how they are sampled, and their way to RGB. The CPU twin is yuv.py.
#pragma once

#include "taps.h"

// Planes as a kernel gets them, by value: bytes from row to row, and from a chroma value to the next (I420 1, NV12 2).
struct Pitches {
  int luma, chroma, step;
};

// yuv.Matrix: terms in 1/8192 but the first.
struct Matrix {
  int luma_zero, luma, red_v, green_u, green_v, blue_u;
};

// Two neighbours and the weight of the second in 1/256, as OpenCV's INTER_LINEAR_EXACT has it, which the twin uses.
struct ExactTap {
  int low, high, weight;
};

// Point i of `count` that are spread over `size` values: half-pixel centres.
FORMULA ExactTap exact_tap(int i, int count, int size) {
  const int numerator = (2 * i + 1) * size - count, denominator = 2 * count;
  int low = numerator / denominator;
  if (low * denominator > numerator) low -= 1;  // division cuts towards 0, the floor is wanted
  const int scaled = (numerator - low * denominator) * 256, rest = scaled % denominator;
  int weight = scaled / denominator;
  if (2 * rest == denominator) {  // half a step: OpenCV rounds what its double precision made of it, to even
    const double at = 1.0 / ((double)count / size) * (i + 0.5) - 0.5, steps = (at - low) * 256;
    weight += steps > weight + 0.5 || (steps == weight + 0.5 && weight % 2);
  } else {
    weight += 2 * rest > denominator;
  }
  return {clip(low, size), clip(low + 1, size), weight};
}

// A value of a plane whose part begins at `plane`, rounded half up.
FORMULA int sample(const uint8_t *plane, int pitch, int step, ExactTap v, ExactTap u) {
  const uint8_t *above = plane + (int64_t)v.low * pitch, *below = plane + (int64_t)v.high * pitch;
  const int top = above[u.low * step] * (256 - u.weight) + above[u.high * step] * u.weight;
  const int bottom = below[u.low * step] * (256 - u.weight) + below[u.high * step] * u.weight;
  return (top * (256 - v.weight) + bottom * v.weight + 32768) >> 16;
}

FORMULA uint8_t to_byte(int value) {
  value = (value + 4096) >> 13;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
