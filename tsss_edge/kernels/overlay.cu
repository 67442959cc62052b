// Frame and labels -> blended frame on the GPU, in place. The CPU twin is overlay.py: integers, the same bytes from both.
#include "kernel.h"

// tints: for each of 256 labels colour * a + 128 in the frame's channel order, then whether it is shown. keep = 256 - a.
FORMULA void blend_byte(uint8_t *frame, const uint8_t *labels, const uint16_t *tints, int keep, int byte) {
  const uint16_t *tint = tints + 4 * labels[byte / 3];
  if (tint[3]) frame[byte] = (frame[byte] * keep + tint[byte % 3]) >> 8;
}

// Blocks of 256 threads, a thread a byte of the frame: a warp reads and writes 32 bytes side by side.
KERNEL overlay(uint8_t *frame, const uint8_t *labels, const uint16_t *tints, int keep, int bytes) {
  EACH_X(byte, bytes) blend_byte(frame, labels, tints, keep, byte);
}
