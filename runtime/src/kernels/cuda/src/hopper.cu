// The same products on Hopper's tensor cores (sm_90a): a group of four warps multiplies 64 rows, each warp's 16 of its
// registers, with columns in shared memory. While a group multiplies, the next columns are copied.
//
// A block has two groups. With SPLIT 2 they have the same rows and every other chunk, and add their sums at the end; with
// SPLIT 1 each has rows of its own.
#include "group.h"
#include "tiles.h"

// Columns as groups read them: blocks of eight elements of every column, 16 bytes a column. A warp copies 32 bytes of a
// column, the pairs of lanes to banks of their own.
template <int COLUMNS, int WIDTH>
struct Blocks {
  static const int ELEMENTS = COLUMNS * WIDTH, BYTES = COLUMNS * 16;
  DEVICE int column(int i) { return i / 2 % COLUMNS; }
  DEVICE int from(int i) { return (i / (2 * COLUMNS) * 2 + i % 2) * 8; }
  DEVICE int at(int column, int k) { return (k / 8 * COLUMNS + column) * 8 + k % 8; }
};

template <class T, template <class> class W, int NT>
DEVICE void chunk(const W<T>& w, float (&c)[NT][4], u64 columns, int lane) {
  u32 a[4][4];
#pragma unroll
  for (int s = 0; s < 4; s++) w.tile(a[s], s, lane);
  group_begin(c);
#pragma unroll
  for (int s = 0; s < 4; s++) group_multiply(T(), c, a[s], further(columns, s * 2 * NT * 128));
  group_done(c);
}
template <class T, int NT>
DEVICE void chunk(const TwoFour<T>& w, float (&c)[NT][4], u64 columns, int) {
  const u32 a[2][4] = {{w.a[0].x, w.a[0].y, w.a[0].z, w.a[0].w}, {w.a[1].x, w.a[1].y, w.a[1].z, w.a[1].w}};
  group_begin(c);
  group_multiply_sparse<0>(T(), c, a[0], columns, w.where);
  group_multiply_sparse<1>(T(), c, a[1], further(columns, 4 * NT * 128), w.where);
  group_done(c);
}

// NT groups of eight columns; columns from blockIdx.y * 8 NT on.
template <int NT, int SPLIT, class W, class X>
DEVICE void group_matrix(W w, float* y, X x, Epilogue e, int rows, int cols, int n) {
  const int WIDTH = SPLIT * 64;
  typedef Blocks<8 * NT, WIDTH> Place;
  __shared__ uint4 staged[2][Place::ELEMENTS / 8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
  const int part = group % SPLIT, bands = (rows + 15) / 16;
  const int band = (blockIdx.x * (2 / SPLIT) + group / SPLIT) * 4 + warp % 4;
  const int chunks = (cols + 63) / 64, column = blockIdx.y * (8 * NT);
  // A group multiplies together: a warp behind the last row has the last row's sums, which it does not store.
  const size_t first = size_t(min(band, bands - 1)) * chunks + part;
  float c[NT][4];
#pragma unroll
  for (int j = 0; j < NT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) c[j][i] = 0;

  x.template stage<8 * NT, WIDTH, Place>((u16*)staged[0], column, 0, min(SPLIT, chunks) * 64, n);
  for (int at = 0, now = 0; at < chunks; at += SPLIT, now ^= 1) {
    const bool some = at + part < chunks;
    if (some) w.fetch(first + at, lane);
    copies_done();
    shared_for_groups();
    __syncthreads();
    const int next = at + SPLIT, left = min(SPLIT, chunks - next) * 64;
    if (left > 0) x.template stage<8 * NT, WIDTH, Place>((u16*)staged[now ^ 1], column, next * 64, left, n);
    if (some) chunk(w, c, columns_at((u16*)staged[now] + Place::at(0, part * 64), Place::BYTES), lane);
  }

  if (SPLIT > 1) {
    __syncthreads();
    float* const theirs = (float*)staged + warp % 4 * NT * 128 + lane;
    if (part > 0) {
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) theirs[(j * 4 + i) * 32] = c[j][i];
    }
    __syncthreads();
    if (part > 0) return;
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) c[j][i] += theirs[(j * 4 + i) * 32];
  }
  if (band < bands) store(c, y, x, e, band * 16, column, rows, n);
}

template <class T, int NT, int SPLIT, class X>
DEVICE void bitmask_group(float* y, const u32* masks, const u32* starts, const u16* values, X x, Epilogue e, int rows,
                          int cols, int n) {
  __shared__ u32 words[MMA_WARPS * 512];
  const Bitmask<T> w = {masks, starts, values, words + threadIdx.x / 32 * 512};
  group_matrix<NT, SPLIT>(w, y, x, e, rows, cols, n);
}

#define LINEAR(NAME, T, NT, SPLIT, COLUMNS)                                                                       \
  KERNEL NAME##_linear_bitmask_wgmma_##COLUMNS(float* y, const u32* masks, const u32* starts, const u16* values,  \
                                               const u16* x, EPILOGUE, int rows, int cols, int stride, int n) {   \
    const Rounded columns = {x, stride};                                                                          \
    bitmask_group<T, NT, SPLIT>(y, masks, starts, values, columns, EPILOGUE_GIVEN, rows, cols, n);                \
  }                                                                                                               \
  KERNEL NAME##_linear_2to4_wgmma_##COLUMNS(float* y, const uint4* values, const u32* places, const u16* x,       \
                                            EPILOGUE, int rows, int cols, int stride, int n) {                    \
    const Rounded columns = {x, stride};                                                                          \
    const TwoFour<T> w = {values, places};                                                                        \
    group_matrix<NT, SPLIT>(w, y, columns, EPILOGUE_GIVEN, rows, cols, n);                                        \
  }                                                                                                               \
  KERNEL NAME##_linear_dense_wgmma_##COLUMNS(float* y, const uint4* values, const u16* x, EPILOGUE, int rows,     \
                                             int cols, int stride, int n) {                                       \
    const Rounded columns = {x, stride};                                                                          \
    const Dense<T> w = {values};                                                                                  \
    group_matrix<NT, SPLIT>(w, y, columns, EPILOGUE_GIVEN, rows, cols, n);                                        \
  }
#define CONV(NAME, T)                                                                                             \
  KERNEL NAME##_conv_bitmask_wgmma_128(float* y, const u32* masks, const u32* starts, const u16* values,          \
                                       EPILOGUE, int rows, int cols, int n, PIXELS) {                             \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    bitmask_group<T, 16, 1>(y, masks, starts, values, columns, EPILOGUE_GIVEN, rows, cols, n);                    \
  }                                                                                                               \
  KERNEL NAME##_conv_2to4_wgmma_128(float* y, const uint4* values, const u32* places, EPILOGUE, int rows,         \
                                    int cols, int n, PIXELS) {                                                    \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    const TwoFour<T> w = {values, places};                                                                        \
    group_matrix<16, 1>(w, y, columns, EPILOGUE_GIVEN, rows, cols, n);                                            \
  }                                                                                                               \
  KERNEL NAME##_conv_dense_wgmma_128(float* y, const uint4* values, EPILOGUE, int rows, int cols, int n, PIXELS) { \
    const Windows<T> columns = {PIXELS_GIVEN, cols};                                                              \
    const Dense<T> w = {values};                                                                                  \
    group_matrix<16, 1>(w, y, columns, EPILOGUE_GIVEN, rows, cols, n);                                            \
  }

LINEAR(f16, F16, 8, 2, 64)
LINEAR(f16, F16, 16, 1, 128)
CONV(f16, F16)
LINEAR(bf16, BF16, 8, 2, 64)
LINEAR(bf16, BF16, 16, 1, 128)
CONV(bf16, BF16)
