// Operators that go element by element, a thread each, blocks of 256. Tables are of 32-bit integers.
#include "intrinsics.h"

#define EACH(COUNT)                                             \
  const size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;     \
  if (at >= size_t(COUNT)) return

DEVICE float within(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}
DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The functions of one element, by the numbers that launch.rs gives them.
DEVICE float unary(int function, float x, float a, float b) {
  switch (function) {
    case 0: return within(x, a, b);
    case 1: return x < 0 ? a * x : x;
    case 2: return within(a * x + b, 0, 1);
    case 3: return x * within(x / 6 + 0.5f, 0, 1);
    case 4: return erff(x);
    case 5: return a * x + b;
    case 6: return x * sigmoid(a * x);
    case 7: return 0.5f * x * (1 + erff(x * 0.70710678f));
    case 8: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case 9: return sigmoid(x);
    default: return tanhf(x);
  }
}
DEVICE float binary(int function, float a, float b) {
  switch (function) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return a / b;
    default: return a < 0 ? a * b : a;
  }
}

KERNEL f32_unary(float* y, const float* x, int count, int function, float a, float b) {
  EACH(count);
  y[at] = unary(function, x[at], a, b);
}
// y = f(x) * gate.
KERNEL f32_gated(float* y, const float* x, const float* gate, int count, int function, float a) {
  EACH(count);
  y[at] = unary(function, x[at], a, 0) * gate[at];
}
// Without a table both have the shape of y; with one they are broadcast: [rank] sizes, then strides of a and of b.
KERNEL f32_binary(float* y, const float* a, const float* b, const int* table, int rank, int count, int function,
                  float low, float high) {
  EACH(count);
  size_t in_a = at, in_b = at;
  if (table) {
    in_a = in_b = 0;
    size_t left = at;
    for (int i = rank - 1; i >= 0; i--) {
      const size_t index = left % table[i];
      left /= table[i];
      in_a += index * table[rank + i];
      in_b += index * table[2 * rank + i];
    }
  }
  y[at] = within(binary(function, a[in_a], b[in_b]), low, high);
}
// [batch][channels][plane]: x * scale + shift of its channel.
KERNEL f32_scale_shift(float* y, const float* x, const float* scale, const float* shift, int channels, int plane,
                       int count) {
  EACH(count);
  const int c = at / plane % channels;
  y[at] = x[at] * scale[c] + shift[c];
}
// What cuBLAS leaves to be done: y [columns][rows] + bias + residual, within limits, in place.
KERNEL f32_epilogue(float* y, const float* bias, const float* residual, int rows, int count, float low, float high) {
  EACH(count);
  float v = y[at];
  if (bias) v += bias[at % rows];
  if (residual) v += residual[at];
  y[at] = within(v, low, high);
}
// Copies by tables: [rank] sizes, [rank] strides of y, then of each axis where its elements are in x, -1 to fill.
KERNEL f32_copy(float* y, const float* x, const int* table, int rank, int count, float fill) {
  EACH(count);
  size_t from = 0, to = 0, left = at;
  int begin = 2 * rank;
  for (int i = 0; i < rank; i++) begin += table[i];
  bool some = true;
  for (int i = rank - 1; i >= 0; i--) {
    const int size = table[i], index = left % size;
    left /= size;
    begin -= size;
    const int place = table[begin + index];
    some = some && place >= 0;
    from += place;
    to += size_t(index) * table[rank + i];
  }
  y[to] = some ? x[from] : fill;
}
// Planes in another size: of each output row, two rows and the weight of the second, in `weights`; columns alike.
KERNEL f32_interpolate(float* y, const float* x, const int2* rows, const int2* columns, const float* weights,
                       int height, int width, int down, int across, int count) {
  EACH(count);
  const int c = at % across, r = at / across % down;
  const float* const plane = x + at / across / down * size_t(height) * width;
  const int2 row = rows[r], col = columns[c];
  const float v = weights[r], h = weights[down + c];
  const float *above = plane + size_t(row.x) * width, *below = plane + size_t(row.y) * width;
  const float a = above[col.x] + h * (above[col.y] - above[col.x]);
  const float b = below[col.x] + h * (below[col.y] - below[col.x]);
  y[at] = a + v * (b - a);
}
// The state after a step of a FastGRNN cell.
KERNEL f32_fast_grnn(float* y, const float* u, const float* h, const float* gate, const float* update,
                     const float* zeta, const float* nu, int width, int count) {
  EACH(count);
  const int c = at % width;
  const float z = sigmoid(u[at] + gate[c]);
  y[at] = z * h[at] + (sigmoid(*zeta) * (1 - z) + sigmoid(*nu)) * tanhf(u[at] + update[c]);
}
