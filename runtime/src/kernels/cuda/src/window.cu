// Windows over one plane: depthwise convolutions and pools. A thread has a pixel of the output, blocks of 256.
#include "intrinsics.h"

#define PLANES                                                                                              \
  int planes, int height, int width, int down, int across, int kernel_down, int kernel_across, int down_step, \
      int across_step, int down_apart, int across_apart, int top, int left
// Calls f(place, element of the window) for every element of pixel `at`'s window that lies in plane `source`.
#define WALK(SOURCE, F)                                                                     \
  const int c = at % across, r = at / across % down;                                        \
  const float* const plane = x + size_t(SOURCE) * height * width;                           \
  for (int i = 0; i < kernel_down; i++) {                                                   \
    const int from = r * down_step - top + i * down_apart;                                  \
    if (from < 0 || from >= height) continue;                                               \
    for (int j = 0; j < kernel_across; j++) {                                               \
      const int to = c * across_step - left + j * across_apart;                             \
      if (to < 0 || to >= width) continue;                                                  \
      const float v = plane[size_t(from) * width + to];                                     \
      F;                                                                                    \
    }                                                                                       \
  }
#define PIXEL                                                   \
  const size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;     \
  if (at >= size_t(planes) * down * across) return;             \
  const int plane_of_y = at / across / down

// Weights are [channels][kernel]; `multiplier` output channels share a plane of x.
KERNEL f32_depthwise(float* y, const float* x, const float* weights, const float* bias, PLANES, int channels,
                     int multiplier, float low, float high) {
  PIXEL;
  const int channel = plane_of_y % channels;
  const float* const w = weights + size_t(channel) * kernel_down * kernel_across;
  float sum = bias ? bias[channel] : 0;
  WALK(plane_of_y / multiplier, sum += v * w[i * kernel_across + j])
  sum = sum < low ? low : sum;
  y[at] = sum > high ? high : sum;
}
KERNEL f32_max_pool(float* y, const float* x, PLANES) {
  PIXEL;
  float most = -INFINITY;
  WALK(plane_of_y, most = fmaxf(most, v))
  y[at] = most;
}
// Times a factor of the output row and one of the column, in that order in `factors`.
KERNEL f32_average_pool(float* y, const float* x, const float* factors, PLANES) {
  PIXEL;
  float sum = 0;
  WALK(plane_of_y, sum += v)
  y[at] = sum * factors[r] * factors[down + c];
}
