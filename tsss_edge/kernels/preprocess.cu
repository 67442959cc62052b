// Frame -> network input on the GPU: bilinear with half-pixel centres, rounded to the nearest. The CPU twin is preprocess.py.
#include "taps.h"

// One value of the network input, (rows,columns,3) RGB. Black outside the placement's target.
FORMULA uint8_t input_value(const uint8_t *frame, int frame_width, Placement p, int bgr, int row, int column,
                            int channel) {
  const int y = row - p.target_y, x = column - p.target_x;
  if (y < 0 || x < 0 || y >= p.target_h || x >= p.target_w) return 0;
  // Target pixel y lies at (y + 1/2) source_h / target_h - 1/2 of the source.
  const Tap v = tap_at((2 * y + 1) * p.source_h - p.target_h, 2 * p.target_h, p.source_h);
  const Tap u = tap_at((2 * x + 1) * p.source_w - p.target_w, 2 * p.target_w, p.source_w);
  const uint8_t *above = frame + 3 * ((int64_t)(p.source_y + v.low) * frame_width + p.source_x);
  const uint8_t *below = frame + 3 * ((int64_t)(p.source_y + v.high) * frame_width + p.source_x);
  const int c = bgr ? 2 - channel : channel, left = 3 * u.low + c, right = 3 * u.high + c;
  const float top = between(above[left], above[right], u.weight);
  const float bottom = between(below[left], below[right], u.weight);
  return (uint8_t)(between(top, bottom, v.weight) + 0.5f);
}

// Blocks of 32x8 threads, a thread a pixel.
KERNEL preprocess(const uint8_t *frame, uint8_t *out, Placement p, int frame_width, int rows, int columns, int bgr) {
  EACH_Y(row, rows)
    EACH_X(column, columns)
      for (int c = 0; c < 3; ++c)
        out[3 * (row * columns + column) + c] = input_value(frame, frame_width, p, bgr, row, column, c);
}
