// Planes -> network input on the GPU, without a BGR picture between. The CPU twin is preprocess_yuv.py: the same bytes.
#include "yuv.h"

// One pixel of the network input, RGB. Black outside the placement's target. A chroma plane's part is that of the frame,
// halved, outwards to whole values.
FORMULA void input_pixel(const uint8_t *y, const uint8_t *u, const uint8_t *v, Pitches pitches, Placement p, Matrix m,
                         int row, int column, uint8_t *rgb) {
  const int ty = row - p.target_y, tx = column - p.target_x;
  if (ty < 0 || tx < 0 || ty >= p.target_h || tx >= p.target_w) {
    rgb[0] = rgb[1] = rgb[2] = 0;
    return;
  }
  const uint8_t *part = y + (int64_t)p.source_y * pitches.luma + p.source_x;
  const int luma = sample(part, pitches.luma, 1, exact_tap(ty, p.target_h, p.source_h),
                          exact_tap(tx, p.target_w, p.source_w));
  const int cy = p.source_y / 2, cx = p.source_x / 2;
  const ExactTap down = exact_tap(ty, p.target_h, (p.source_y + p.source_h + 1) / 2 - cy);
  const ExactTap along = exact_tap(tx, p.target_w, (p.source_x + p.source_w + 1) / 2 - cx);
  const int64_t start = (int64_t)cy * pitches.chroma + cx * pitches.step;
  const int blue = sample(u + start, pitches.chroma, pitches.step, down, along) - 128;
  const int red = sample(v + start, pitches.chroma, pitches.step, down, along) - 128;
  const int gray = m.luma * (luma - m.luma_zero);
  rgb[0] = to_byte(gray + m.red_v * red);
  rgb[1] = to_byte(gray - m.green_u * blue - m.green_v * red);
  rgb[2] = to_byte(gray + m.blue_u * blue);
}

// Blocks of 32x8 threads, a thread a pixel.
KERNEL preprocess_yuv(const uint8_t *y, const uint8_t *u, const uint8_t *v, uint8_t *out, Pitches pitches, Placement p,
                      Matrix m, int rows, int columns) {
  EACH_Y(row, rows)
    EACH_X(column, columns)
      input_pixel(y, u, v, pitches, p, m, row, column, out + 3 * (row * columns + column));
}
