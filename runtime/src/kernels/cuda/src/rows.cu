// Operators that sum along an axis, and products of two activations. A row is a block of 256 where nothing else is said.
#include "block.h"

// Softmax along the middle of [outer][axis][inner]; a block is one of outer and inner.
KERNEL f32_softmax(float* y, const float* x, int axis, int inner) {
  __shared__ float room[8];
  const size_t base = size_t(blockIdx.x / inner) * axis * inner + blockIdx.x % inner;
  float top = -INFINITY, sum = 0;
  for (int i = threadIdx.x; i < axis; i += 256) top = fmaxf(top, x[base + size_t(i) * inner]);
  top = block_max<8>(top, room);
  for (int i = threadIdx.x; i < axis; i += 256) sum += expf(x[base + size_t(i) * inner] - top);
  sum = block_sum<8>(sum, room);
  for (int i = threadIdx.x; i < axis; i += 256) {
    const size_t at = base + size_t(i) * inner;
    y[at] = expf(x[at] - top) / sum;
  }
}
// (x - mean) / sqrt(variance + epsilon) * scale + bias of rows: by element of a row, or by channel of planes.
DEVICE void normalize(float* y, const float* x, const float* scale, const float* bias, int width, float epsilon,
                      int channel) {
  __shared__ float room[8];
  x += size_t(blockIdx.x) * width;
  y += size_t(blockIdx.x) * width;
  float sum = 0, square = 0;
  for (int c = threadIdx.x; c < width; c += 256) sum += x[c];
  const float mean = block_sum<8>(sum, room) / width;
  for (int c = threadIdx.x; c < width; c += 256) square += (x[c] - mean) * (x[c] - mean);
  const float factor = 1 / sqrtf(block_sum<8>(square, room) / width + epsilon);
  for (int c = threadIdx.x; c < width; c += 256) {
    const int by = channel < 0 ? c : channel;
    y[c] = (x[c] - mean) * factor * scale[by] + (bias ? bias[by] : 0);
  }
}
KERNEL f32_layer_norm(float* y, const float* x, const float* scale, const float* bias, int width, float epsilon) {
  normalize(y, x, scale, bias, width, epsilon, -1);
}
KERNEL f32_instance_norm(float* y, const float* x, const float* scale, const float* bias, int channels, int plane,
                         float epsilon) {
  normalize(y, x, scale, bias, plane, epsilon, blockIdx.x % channels);
}
// x / |x| along the middle of [outer][axis][inner]; zeros stay.
KERNEL f32_length_norm(float* y, const float* x, int axis, int inner) {
  __shared__ float room[8];
  const size_t base = size_t(blockIdx.x / inner) * axis * inner + blockIdx.x % inner;
  float sum = 0;
  for (int i = threadIdx.x; i < axis; i += 256) sum += x[base + size_t(i) * inner] * x[base + size_t(i) * inner];
  sum = block_sum<8>(sum, room);
  const float factor = sum > 0 ? 1 / sqrtf(sum) : 0;
  for (int i = threadIdx.x; i < axis; i += 256) y[base + size_t(i) * inner] = x[base + size_t(i) * inner] * factor;
}
// Means over axes: a warp an element of y, eight a block. The table has sizes and strides of the `kept` axes, then of the
// `reduced` ones.
KERNEL f32_mean(float* y, const float* x, const int* table, int kept, int reduced, int count, int span) {
  const int at = blockIdx.x * 8 + threadIdx.x / 32;
  const bool some = at < count;
  size_t base = 0, left = some ? at : 0;
  for (int i = kept - 1; i >= 0; i--) {
    base += left % table[2 * i] * table[2 * i + 1];
    left /= table[2 * i];
  }
  table += 2 * kept;
  float sum = 0;
  for (int n = threadIdx.x % 32; some && n < span; n += 32) {
    size_t from = base, rest = n;
    for (int i = reduced - 1; i >= 0; i--) {
      from += rest % table[2 * i] * table[2 * i + 1];
      rest /= table[2 * i];
    }
    sum += x[from];
  }
  sum = warp_sum(sum);
  if (some && threadIdx.x % 32 == 0) y[at] = sum / span;
}
// [batch][tokens][width] to means over the tokens whose mask is not 0; zeros where there is none. A thread an element.
KERNEL f32_masked_mean(float* y, const float* x, const int* mask, int tokens, int width, int count) {
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= count) return;
  const int n = at / width, c = at % width;
  float sum = 0;
  int seen = 0;
  for (int t = 0; t < tokens; t++)
    if (mask[n * tokens + t] != 0) {
      sum += x[(size_t(n) * tokens + t) * width + c];
      seen++;
    }
  y[at] = seen > 0 ? sum / seen : 0;
}
// y [batch][m][n] = a b. `offsets` has, of each of the batch, where a and b begin. A block has 16 by 16 of y.
KERNEL f32_matmul(float* y, const float* a, const float* b, const int2* offsets, int m, int k, int n, int a_row,
                  int a_col, int b_row, int b_col) {
  __shared__ float of_a[16][17];
  __shared__ float of_b[16][17];
  const int i = threadIdx.x / 16, j = threadIdx.x % 16;
  const int row = blockIdx.y * 16 + i, col = blockIdx.x * 16 + j;
  const int2 offset = offsets[blockIdx.z];
  a += offset.x;
  b += offset.y;
  float sum = 0;
  for (int at = 0; at < k; at += 16) {
    __syncthreads();
    of_a[i][j] = row < m && at + j < k ? a[size_t(row) * a_row + size_t(at + j) * a_col] : 0;
    of_b[i][j] = col < n && at + i < k ? b[size_t(at + i) * b_row + size_t(col) * b_col] : 0;
    __syncthreads();
#pragma unroll
    for (int s = 0; s < 16; s++) sum += of_a[i][s] * of_b[s][j];
  }
  if (row < m && col < n) y[(size_t(blockIdx.z) * m + row) * n + col] = sum;
}
