// Stride-8 logits -> labels at frame resolution on the GPU. The CPU twin is upsample_argmax.py.
//
// Two kernels: the largest class of every grid point, then the pixels. A pixel between four grid points of one class is
// of that class (bilinear weights are convex); only the others add up. Neighbouring threads share a cell: few warps split.
#include "taps.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#else
struct __half {
  uint16_t bits;  // IEEE 754 binary16
};
#endif

const int STRIDE = 8, IGNORE = 255;

FORMULA float value_of(float value) { return value; }

FORMULA float value_of(__half value) {
#ifdef __CUDACC__
  return __half2float(value);
#else
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? __builtin_nanf("") : sign * __builtin_inff();
  return sign * __builtin_ldexpf(exponent ? 1024 + fraction : fraction, exponent ? exponent - 25 : -24);
#endif
}

// First largest class of one of `points` grid points.
template <typename T>
FORMULA uint8_t largest_class(const T *logits, int classes, int points, int point) {
  int label = 0;
  float largest = value_of(logits[point]);
  for (int k = 1; k < classes; ++k) {
    const float value = value_of(logits[k * points + point]);
    if (value > largest) largest = value, label = k;
  }
  return label;
}

// Label of one pixel of the frame. `best`: largest_class of every grid point.
template <typename T>
FORMULA uint8_t pixel_label(const T *logits, const uint8_t *best, Placement p, int classes, int h, int w, int row,
                            int column) {
  const int y = row - p.source_y, x = column - p.source_x;
  if (y < 0 || x < 0 || y >= p.source_h || x >= p.source_w) return IGNORE;
  // Source pixel y lies at (target_y + (y + 1/2) target_h / source_h) / STRIDE - 1/2 of the grid.
  const Tap v = tap_at(2 * p.source_h * p.target_y + (2 * y + 1) * p.target_h - STRIDE * p.source_h,
                       2 * STRIDE * p.source_h, h);
  const Tap u = tap_at(2 * p.source_w * p.target_x + (2 * x + 1) * p.target_w - STRIDE * p.source_w,
                       2 * STRIDE * p.source_w, w);
  const int a = v.low * w + u.low, b = v.low * w + u.high, c = v.high * w + u.low, d = v.high * w + u.high;
  int label = best[a];
  if (label == best[b] && label == best[c] && label == best[d]) return label;
  float largest = 0;
  for (int k = 0; k < classes; ++k, logits += h * w) {
    const float left = between(value_of(logits[a]), value_of(logits[c]), v.weight);
    const float right = between(value_of(logits[b]), value_of(logits[d]), v.weight);
    const float value = between(left, right, u.weight);
    if (k == 0 || value > largest) largest = value, label = k;
  }
  return label;
}

// Blocks of 256 threads, a thread a grid point; points = h * w.
#define LARGEST(name, T)                                                                          \
  KERNEL name(const T *logits, uint8_t *best, int classes, int points) {                          \
    EACH_X(point, points) best[point] = largest_class(logits, classes, points, point);            \
  }

// Blocks of 32x8 threads, a thread a pixel of the frame.
#define LABELS(name, T)                                                                           \
  KERNEL name(const T *logits, const uint8_t *best, uint8_t *labels, Placement p, int classes,    \
              int h, int w, int rows, int columns) {                                              \
    EACH_Y(row, rows)                                                                             \
      EACH_X(column, columns)                                                                     \
        labels[row * columns + column] = pixel_label(logits, best, p, classes, h, w, row, column); \
  }

LARGEST(largest_float32, float)
LARGEST(largest_float16, __half)
LABELS(labels_float32, float)
LABELS(labels_float16, __half)
