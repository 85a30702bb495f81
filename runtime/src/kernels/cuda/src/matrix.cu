// Products of a matrix with 8 and more columns on tensor cores (compute capability 8.0 and later):
// the sum of w[row][c] x[j][c], then the epilogue. Sums and y are f32.
//
// A warp has 16 rows and, of each SPLIT groups of 64 columns, one; the warps that share rows add their sums at the
// end.
#include "tiles.h"

// The columns 32 HALF to 32 HALF + 31 of a chunk.
template <int HALF, class T, template <class> class W>
DEVICE void half_chunk(const W<T>& w, float (&c)[4], const u32 (&b)[4], int lane) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
    u32 a[4];
    w.tile(a, 2 * HALF + s, lane);
    multiply(T(), c, a, b[2 * s], b[2 * s + 1]);
  }
}
template <int HALF, class T>
DEVICE void half_chunk(const TwoFour<T>& w, float (&c)[4], const u32 (&b)[4], int) {
  multiply_sparse<HALF>(T(), c, w.a[HALF], b, w.where);
}

// NT groups of eight columns; columns from blockIdx.y * 8 NT on.
template <int NT, int SPLIT, class W, class X>
DEVICE void matrix(W w, float* sums, float* y, X x, Epilogue e, int rows, int cols, int n) {
  const int BANDS = MMA_WARPS / SPLIT, WIDTH = SPLIT * 64;
  typedef Padded<8 * NT, WIDTH> Place;
  __shared__ uint4 staged[Place::ELEMENTS / 8];
  u16* const xs = (u16*)staged;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = warp % SPLIT, band = blockIdx.x * BANDS + warp / SPLIT;
  const int chunks = (cols + 63) / 64, column = blockIdx.y * (8 * NT);
  const bool busy = band * 16 < rows;
  float c[NT][4];
#pragma unroll
  for (int j = 0; j < NT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) c[j][i] = 0;

  for (int at = 0; at < chunks; at += SPLIT) {
    const int width = min(SPLIT, chunks - at) * 64;
    __syncthreads();
    x.template stage<8 * NT, WIDTH, Place>(xs, column, at * 64, width, n);
    const bool mine = busy && at + part < chunks;
    if (mine) w.fetch(size_t(band) * chunks + at + part, lane);
    copies_done();
    __syncthreads();
    if (!mine) continue;
    const u16* const rows_of_x = xs + Place::at(lane % 8, part * 64 + lane / 8 * 8);
#pragma unroll
    for (int j = 0; j < NT; j++) {
      u32 b[4];
      load_matrices(b, rows_of_x + Place::at(j * 8, 0));
      half_chunk<0>(w, c[j], b, lane);
      load_matrices(b, rows_of_x + Place::at(j * 8, 32));
      half_chunk<1>(w, c[j], b, lane);
    }
  }

  if (SPLIT > 1) {
    __syncthreads();
    float* const theirs = sums + (warp / SPLIT * (SPLIT - 1) * NT * 4) * 32 + lane;
    if (part > 0) {
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) theirs[(((part - 1) * NT + j) * 4 + i) * 32] = c[j][i];
    }
    __syncthreads();
    if (part > 0) return;
#pragma unroll
    for (int p = 0; p < SPLIT - 1; p++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) c[j][i] += theirs[((p * NT + j) * 4 + i) * 32];
  }
  if (busy) store(c, y, x, e, band * 16, column, rows, n);
}

template <class T, int NT, int SPLIT, class X>
DEVICE void bitmask_matrix(float* y, const u32* masks, const u32* starts, const u16* values, X x, Epilogue e, int rows,
                           int cols, int n) {
  __shared__ u32 words[MMA_WARPS * 512];
  Bitmask<T> w = {masks, starts, values, words + threadIdx.x / 32 * 512};
  matrix<NT, SPLIT>(w, (float*)words, y, x, e, rows, cols, n);
}

template <int NT, int SPLIT, class W, class X>
DEVICE void other_matrix(float* y, W w, X x, Epilogue e, int rows, int cols, int n) {
  __shared__ float sums[(MMA_WARPS - MMA_WARPS / SPLIT) * NT * 128];
  matrix<NT, SPLIT>(w, sums, y, x, e, rows, cols, n);
}

#define MATRIX(NAME, T, NT, SPLIT, COLUMNS)                                                                       \
  KERNEL NAME##_linear_bitmask_mma_##COLUMNS(float* y, const u32* masks, const u32* starts, const u16* values,    \
                                             const u16* x, EPILOGUE, int rows, int cols, int stride, int n) {     \
    const Rounded columns = {x, stride};                                                                          \
    bitmask_matrix<T, NT, SPLIT>(y, masks, starts, values, columns, EPILOGUE_GIVEN, rows, cols, n);               \
  }                                                                                                               \
  KERNEL NAME##_linear_2to4_mma_##COLUMNS(float* y, const uint4* values, const u32* places, const u16* x,         \
                                          EPILOGUE, int rows, int cols, int stride, int n) {                      \
    const Rounded columns = {x, stride};                                                                          \
    const TwoFour<T> w = {values, places};                                                                        \
    other_matrix<NT, SPLIT>(y, w, columns, EPILOGUE_GIVEN, rows, cols, n);                                        \
  }                                                                                                               \
  KERNEL NAME##_linear_dense_mma_##COLUMNS(float* y, const uint4* values, const u16* x, EPILOGUE, int rows,       \
                                           int cols, int stride, int n) {                                         \
    const Rounded columns = {x, stride};                                                                          \
    const Dense<T> w = {values};                                                                                  \
    other_matrix<NT, SPLIT>(y, w, columns, EPILOGUE_GIVEN, rows, cols, n);                                        \
  }
#define CONV(NAME, T)                                                                                             \
  KERNEL NAME##_conv_bitmask_mma_64(float* y, const u32* masks, const u32* starts, const u16* values, EPILOGUE,   \
                                    int rows, int cols, int n, PIXELS) {                                          \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    bitmask_matrix<T, 8, 2>(y, masks, starts, values, columns, EPILOGUE_GIVEN, rows, cols, n);                    \
  }                                                                                                               \
  KERNEL NAME##_conv_2to4_mma_64(float* y, const uint4* values, const u32* places, EPILOGUE, int rows, int cols,  \
                                 int n, PIXELS) {                                                                 \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    const TwoFour<T> w = {values, places};                                                                        \
    other_matrix<8, 2>(y, w, columns, EPILOGUE_GIVEN, rows, cols, n);                                             \
  }                                                                                                               \
  KERNEL NAME##_conv_dense_mma_64(float* y, const uint4* values, EPILOGUE, int rows, int cols, int n, PIXELS) {   \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    const Dense<T> w = {values};                                                                                  \
    other_matrix<8, 2>(y, w, columns, EPILOGUE_GIVEN, rows, cols, n);                                             \
  }

MATRIX(f16, F16, 1, 4, 8)
MATRIX(f16, F16, 2, 4, 16)
MATRIX(f16, F16, 4, 4, 32)
MATRIX(f16, F16, 8, 2, 64)
CONV(f16, F16)
MATRIX(bf16, BF16, 1, 4, 8)
MATRIX(bf16, BF16, 2, 4, 16)
MATRIX(bf16, BF16, 4, 4, 32)
MATRIX(bf16, BF16, 8, 2, 64)
CONV(bf16, BF16)
#undef CONV
