// What products read and write beside the weight: columns of x from a matrix or from the windows of a convolution, and
// what is done to a sum before it is stored.
#pragma once
#include "intrinsics.h"

// + bias[row], + residual where y goes, then within [low, high].
struct Epilogue {
  const float* bias;
  const float* residual;
  float low, high;
  DEVICE_MEMBER float of(float v, int row, size_t to) const {
    if (bias) v += bias[row];
    if (residual) v += residual[to];
    v = v < low ? low : v;
    return v > high ? high : v;
  }
};

// f32 columns: x [n][cols], y [n][rows].
struct Columns {
  const float* x;
  int cols;
  DEVICE_MEMBER float at(int column, int k) const { return x[size_t(column) * cols + k]; }
  DEVICE_MEMBER size_t to(int column, int row, int rows) const { return size_t(column) * rows + row; }
};

// A column is an output pixel of an image, its elements are those of its window: x [images][image], y
// [images][outputs][pixels]. `taps` says of each element its distance in x from the window's first, and its rows << 16 |
// columns from there: what lies outside of the image is 0.
struct Pixels {
  const float* x;
  const int2* taps;
  int image, height, width, pixels, across, down_step, across_step, top, left, outputs;

  DEVICE_MEMBER float at(int column, int k) const {
    const int p = column % pixels;
    const int row = p / across * down_step - top, col = p % across * across_step - left;
    const int2 tap = load(taps + k);
    const int r = row + (tap.y >> 16), c = col + (tap.y & 0xffff);
    if (r < 0 || r >= height || c < 0 || c >= width) return 0;
    return x[ptrdiff_t(column / pixels) * image + ptrdiff_t(row) * width + col + tap.x];
  }
  DEVICE_MEMBER size_t to(int column, int row, int) const {
    return (size_t(column / pixels) * outputs + row) * pixels + column % pixels;
  }
};
#define PIXELS                                                                                                    \
  const float *x, const int2 *taps, int image, int height, int width, int pixels, int across, int down_step,      \
      int across_step, int top, int left, int outputs
#define PIXELS_GIVEN {x, taps, image, height, width, pixels, across, down_step, across_step, top, left, outputs}
