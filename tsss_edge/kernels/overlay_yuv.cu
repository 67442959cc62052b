// Planes and labels -> blended planes on the GPU, in place. The CPU twin is overlay_yuv.py: integers, the same bytes from both.
#include "yuv.h"

// tints: for each of 256 labels colour * a as Y, U, V (128 added to Y), then whether it is shown. keep = 256 - a.
// One chroma value with its two by two pixels; it gets the mean of what each of them would give it.
FORMULA void blend_block(uint8_t *y, uint8_t *u, uint8_t *v, Pitches pitches, const uint8_t *labels,
                         const uint16_t *tints, int keep, int rows, int columns, int row, int column) {
  int kept = 0, blue = 0, red = 0;
  for (int i = 0; i < 4; ++i) {
    const int r = clip(2 * row + i / 2, rows), c = clip(2 * column + i % 2, columns);
    const uint16_t *tint = tints + 4 * labels[r * columns + c];
    kept += tint[3] ? keep : 256;
    if (!tint[3]) continue;
    blue += tint[1], red += tint[2];
    if (2 * row + i / 2 >= rows || 2 * column + i % 2 >= columns) continue;  // the last line again, beyond an odd side
    uint8_t *luma = y + (int64_t)r * pitches.luma + c;
    *luma = (*luma * keep + tint[0]) >> 8;
  }
  const int64_t at = (int64_t)row * pitches.chroma + column * pitches.step;
  u[at] = (u[at] * kept + blue + 512) >> 10;
  v[at] = (v[at] * kept + red + 512) >> 10;
}

// Blocks of 32x8 threads, a thread a chroma value.
KERNEL overlay_yuv(uint8_t *y, uint8_t *u, uint8_t *v, Pitches pitches, const uint8_t *labels, const uint16_t *tints,
                   int keep, int rows, int columns) {
  EACH_Y(row, (rows + 1) / 2)
    EACH_X(column, (columns + 1) / 2)
      blend_block(y, u, v, pitches, labels, tints, keep, rows, columns, row, column);
}
