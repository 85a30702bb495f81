// Products of a matrix with 8 and more columns on tensor cores (compute capability 8.0 and later):
// the sum of w[row][c] x[j][c], then the epilogue. Sums and y are f32.
//
// A warp has 16 rows and, of each SPLIT groups of 64 columns, one; the warps that share rows add their sums at the
// end. A lane is 4 g + t. Element e of its eight of a 16x16 tile is row g + 8 (e / 2 % 2), column 2 t + e % 2 + 8 (e / 4),
// as mma takes them.
#include "chunk.h"
#include "product.h"

#define MMA_WARPS 8
#define MMA_THREADS (MMA_WARPS * 32)

// A chunk is 16 rows by 64 columns, four tiles: bit 8 s + e of a lane is its element e of tile s. Each lane expands
// its own elements into words of shared memory that no other lane uses, each lane in a bank of its own.
template <class T>
struct Bitmask {
  const u32* masks;
  const u32* starts;
  const u16* values;
  u32* words;

  DEVICE_MEMBER void fetch(size_t chunk, int lane) {
    const u32 mask = load(masks + chunk * 32 + lane);
    u32* const mine = words + lane;
#pragma unroll
    for (int i = 0; i < 16; i++) mine[i * 32] = 0;
    each_stored(mask, values + load(starts + chunk), [&](u32 bit, u16 value) {
      store_half((u16*)(mine + bit / 2 * 32) + bit % 2, value);
    });
  }
  // Columns 32 HALF to 32 HALF + 31 of the chunk.
  template <int HALF>
  DEVICE_MEMBER void product(float (&c)[4], const u32 (&b)[4], int lane) {
#pragma unroll
    for (int s = 0; s < 2; s++) {
      u32 a[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = words[((2 * HALF + s) * 4 + i) * 32 + lane];
      multiply(T(), c, a, b[2 * s], b[2 * s + 1]);
    }
  }
};

// A chunk is 16 rows by 64 columns, two tiles of 16x32, stored as 16x16 each: 16 bytes a lane and tile, its eight
// elements as mma takes them. Of a row, a lane's stored columns 2 t, 2 t + 1 are two of the columns 4 t to 4 t + 3.
// The places of tile h are with the lanes 2 h and 2 h + 1 of each four: of row g in the low half, of g + 8 in the
// high half, 16 columns a lane.
template <class T>
struct TwoFour {
  const uint4* values;
  const u32* places;
  uint4 a[2];
  u32 where;

  DEVICE_MEMBER void fetch(size_t chunk, int lane) {
    a[0] = load(values + chunk * 64 + lane);
    a[1] = load(values + chunk * 64 + 32 + lane);
    where = load(places + chunk * 32 + lane);
  }
  template <int HALF>
  DEVICE_MEMBER void product(float (&c)[4], const u32 (&b)[4], int) {
    multiply_sparse<HALF>(T(), c, a[HALF], b, where);
  }
};

// A chunk is 16 rows by 64 columns, four tiles of eight elements a lane, 16 bytes each.
template <class T>
struct Dense {
  const uint4* values;
  uint4 a[4];

  DEVICE_MEMBER void fetch(size_t chunk, int lane) {
#pragma unroll
    for (int s = 0; s < 4; s++) a[s] = load(values + chunk * 128 + s * 32 + lane);
  }
  template <int HALF>
  DEVICE_MEMBER void product(float (&c)[4], const u32 (&b)[4], int) {
#pragma unroll
    for (int s = 0; s < 2; s++) {
      const uint4 v = a[2 * HALF + s];
      const u32 words[4] = {v.x, v.y, v.z, v.w};
      multiply(T(), c, words, b[2 * s], b[2 * s + 1]);
    }
  }
};

// Columns of 16-bit elements in rows of `stride`, a multiple of 64; those behind `cols` are 0.
struct Rounded {
  const u16* x;
  int stride;
  template <int COLUMNS, int WIDTH, int PITCH>
  DEVICE_MEMBER void stage(u16* xs, int column, int from, int width, int n) const {
    for (int i = threadIdx.x; i < COLUMNS * (WIDTH / 8); i += MMA_THREADS) {
      const int j = i / (WIDTH / 8), k = i % (WIDTH / 8) * 8;
      const bool some = column + j < n && k < width;
      copy_async(xs + j * PITCH + k, some ? x + size_t(column + j) * stride + from + k : x, some);
    }
  }
  DEVICE_MEMBER size_t to(int column, int row, int rows) const { return size_t(column) * rows + row; }
};

// Windows, rounded as they are staged. Neighbouring threads have neighbouring pixels.
template <class T>
struct Windows {
  Pixels pixels;
  int cols;
  template <int COLUMNS, int WIDTH, int PITCH>
  DEVICE_MEMBER void stage(u16* xs, int column, int from, int width, int n) const {
    for (int i = threadIdx.x; i < COLUMNS * (WIDTH / 2); i += MMA_THREADS) {
      const int j = i % COLUMNS, k = i / COLUMNS * 2;
      u32 pair = 0;
      if (column + j < n && k < width) {
        if (from + k < cols) pair = T::narrow(pixels.at(column + j, from + k));
        if (from + k + 1 < cols) pair |= u32(T::narrow(pixels.at(column + j, from + k + 1))) << 16;
      }
      *(u32*)(xs + j * PITCH + k) = pair;
    }
  }
  DEVICE_MEMBER size_t to(int column, int row, int rows) const { return pixels.to(column, row, rows); }
};

// NT groups of eight columns; columns from blockIdx.y * 8 NT on.
template <int NT, int SPLIT, class W, class X>
DEVICE void matrix(W w, float* sums, float* y, X x, Epilogue e, int rows, int cols, int n) {
  const int BANDS = MMA_WARPS / SPLIT, WIDTH = SPLIT * 64, PITCH = WIDTH + 8;
  __shared__ uint4 staged[8 * NT * PITCH / 8];
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
    x.template stage<8 * NT, WIDTH, PITCH>(xs, column, at * 64, width, n);
    const bool mine = busy && at + part < chunks;
    if (mine) w.fetch(size_t(band) * chunks + at + part, lane);
    copies_done();
    __syncthreads();
    if (!mine) continue;
    const u16* const rows_of_x = xs + lane % 8 * PITCH + part * 64 + lane / 8 * 8;
#pragma unroll
    for (int j = 0; j < NT; j++) {
      u32 b[4];
      load_matrices(b, rows_of_x + j * 8 * PITCH);
      w.template product<0>(c[j], b, lane);
      load_matrices(b, rows_of_x + j * 8 * PITCH + 32);
      w.template product<1>(c[j], b, lane);
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
  if (!busy) return;
#pragma unroll
  for (int j = 0; j < NT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = band * 16 + lane / 4 + i / 2 * 8, col = column + j * 8 + lane % 4 * 2 + i % 2;
      if (row >= rows || col >= n) continue;
      const size_t to = x.to(col, row, rows);
      y[to] = e.of(c[j][i], row, to);
    }
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

#define EPILOGUE const float *bias, const float *residual, float low, float high
#define EPILOGUE_GIVEN Epilogue{bias, residual, low, high}

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
