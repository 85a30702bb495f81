// Products of a matrix with a few columns, without tensor cores: the sum of w[row][c] x[j][c], then the epilogue. A warp
// has a row and up to 8 columns, more are more blocks; x is staged in shared memory as f32, a tile at a time. Sums are f32.
#include "chunk.h"
#include "product.h"

#define WARPS 16
#define THREADS (WARPS * 32)
// Floats of x in shared memory.
#define STAGED 8192

template <class X>
DEVICE void store_row(float* y, X x, Epilogue e, const float* sums, int first, int count, int row, int rows) {
  for (int j = 0; j < count; j++) {
    const size_t at = x.to(first + j, row, rows);
    y[at] = e.of(sums[j], row, at);
  }
}

// Bit b of lane l of chunk i of a row is column 1024 i + 32 b + l, so that lanes never meet in a bank of x.
template <class T, int N, class X>
DEVICE void bitmask_vector(float* y, const u32* masks, const u32* starts, const u16* values, X x, Epilogue e, int rows,
                           int cols, int n) {
  const int TILE = STAGED / N;
  __shared__ float4 staged[STAGED / 4];
  float* const xs = (float*)staged;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * WARPS + warp, column = blockIdx.y * N;
  const int chunks = (cols + 1023) / 1024;
  const size_t first = size_t(row) * chunks;
  float sums[N];
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] = 0;
  u32 mask = row < rows ? load(masks + first * 32 + lane) : 0;
  for (int tile = 0; tile < cols; tile += TILE) {
    const int width = min(TILE, (cols - tile + 1023) / 1024 * 1024);
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < N; j++)
      for (int c = threadIdx.x; c < width; c += THREADS)
        xs[c * N + j] = column + j < n && tile + c < cols ? x.at(column + j, tile + c) : 0;
    __syncthreads();
    if (row >= rows) continue;
    for (int at = 0; at < width; at += 1024) {
      const int chunk = (tile + at) / 1024;
      const u32 now = mask;
      mask = chunk + 1 < chunks ? load(masks + (first + chunk + 1) * 32 + lane) : 0;
      const float* const mine = xs + (at + lane) * N;
      each_stored(now, values + load(starts + first + chunk), [&](u32 bit, u16 value) {
        const float w = T::widen(value);
        const float* const at = mine + bit * (32 * N);
        if (N == 1) {
          sums[0] += w * at[0];
        } else if (N == 2) {
          const float2 v = *(const float2*)at;
          sums[0] += w * v.x;
          sums[N > 1] += w * v.y;
        } else {
#pragma unroll
          for (int j = 0; j + 3 < N; j += 4) {
            const float4 v = *(const float4*)(at + j);
            sums[j] += w * v.x;
            sums[j + 1] += w * v.y;
            sums[j + 2] += w * v.z;
            sums[j + 3] += w * v.w;
          }
        }
      });
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] = warp_sum(sums[j]);
  if (row < rows && lane == 0) store_row(y, x, e, sums, column, min(n - column, N), row, rows);
}

// Rows of `stride` elements, a multiple of 8; those behind `cols` are 0. A lane reads eight elements, a warp 256.
// x lies so that the first four of all lanes, then the other four, are read without a bank conflict.
template <class T, int N, class X>
DEVICE void dense_vector(float* y, const u16* w, X x, Epilogue e, int rows, int cols, int stride, int n) {
  const int TILE = STAGED / N;
  __shared__ float4 staged[STAGED / 4];
  float* const xs = (float*)staged;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * WARPS + warp, column = blockIdx.y * N;
  float sums[N];
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] = 0;
  for (int tile = 0; tile < cols; tile += TILE) {
    const int width = min(TILE, (cols - tile + 255) / 256 * 256);
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < N; j++)
      for (int c = threadIdx.x; c < width; c += THREADS) {
        const int place = c / 256 * 256 + (c / 4 % 2) * 128 + c % 256 / 8 * 4 + c % 4;
        xs[j * TILE + place] = column + j < n && tile + c < cols ? x.at(column + j, tile + c) : 0;
      }
    __syncthreads();
    if (row >= rows) continue;
    const u16* const mine = w + size_t(row) * stride + tile + lane * 8;
    const int left = stride - tile - lane * 8;
#pragma unroll(N < 4 ? 4 : 2)
    for (int at = 0; at < width; at += 256) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (at < left) v = load((const uint4*)(mine + at));
      const u32 words[4] = {v.x, v.y, v.z, v.w};
      float f[8];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        f[2 * i] = T::widen(u16(words[i]));
        f[2 * i + 1] = T::widen(u16(words[i] >> 16));
      }
#pragma unroll
      for (int j = 0; j < N; j++) {
        const float4 a = *(const float4*)(xs + j * TILE + at + lane * 4);
        const float4 b = *(const float4*)(xs + j * TILE + at + 128 + lane * 4);
        sums[j] += f[0] * a.x + f[1] * a.y + f[2] * a.z + f[3] * a.w;
        sums[j] += f[4] * b.x + f[5] * b.y + f[6] * b.z + f[7] * b.w;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] = warp_sum(sums[j]);
  if (row < rows && lane == 0) store_row(y, x, e, sums, column, min(n - column, N), row, rows);
}

#define VECTOR(NAME, T, N)                                                                                        \
  KERNEL NAME##_linear_bitmask_##N(float* y, const u32* masks, const u32* starts, const u16* values,              \
                                   const float* x, const float* bias, const float* residual, float low,           \
                                   float high, int rows, int cols, int n) {                                       \
    const Columns columns = {x, cols};                                                                            \
    bitmask_vector<T, N>(y, masks, starts, values, columns, Epilogue{bias, residual, low, high}, rows, cols, n);  \
  }                                                                                                               \
  KERNEL NAME##_linear_dense_##N(float* y, const u16* w, const float* x, const float* bias,                       \
                                 const float* residual, float low, float high, int rows, int cols, int stride,    \
                                 int n) {                                                                         \
    const Columns columns = {x, cols};                                                                            \
    dense_vector<T, N>(y, w, columns, Epilogue{bias, residual, low, high}, rows, cols, stride, n);                \
  }
#define CONV(NAME, T)                                                                                             \
  KERNEL NAME##_conv_bitmask_8(float* y, const u32* masks, const u32* starts, const u16* values,                  \
                               const float* bias, const float* residual, float low, float high, int rows,         \
                               int cols, int n, PIXELS) {                                                         \
    const Pixels columns = PIXELS_GIVEN;                                                                          \
    bitmask_vector<T, 8>(y, masks, starts, values, columns, Epilogue{bias, residual, low, high}, rows, cols, n);  \
  }                                                                                                               \
  KERNEL NAME##_conv_dense_8(float* y, const u16* w, const float* bias, const float* residual, float low,         \
                             float high, int rows, int cols, int stride, int n, PIXELS) {                         \
    const Pixels columns = PIXELS_GIVEN;                                                                          \
    dense_vector<T, 8>(y, w, columns, Epilogue{bias, residual, low, high}, rows, cols, stride, n);                \
  }

VECTOR(f16, F16, 1)
VECTOR(f16, F16, 2)
VECTOR(f16, F16, 4)
VECTOR(f16, F16, 8)
CONV(f16, F16)
#if LACUNA_BF16
VECTOR(bf16, BF16, 1)
VECTOR(bf16, BF16, 2)
VECTOR(bf16, BF16, 4)
VECTOR(bf16, BF16, 8)
CONV(bf16, BF16)
#endif
#undef CONV
