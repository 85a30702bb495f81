// What products on tensor cores read: weights in chunks of 16 rows by 64 columns, a warp's at a time, and columns that a
// block stages in shared memory.
//
// A lane is 4 g + t. Element e of its eight of a 16x16 tile is row g + 8 (e / 2 % 2), column 2 t + e % 2 + 8 (e / 4),
// as tensor cores take them from registers.
#pragma once
#include "chunk.h"
#include "product.h"

#define MMA_WARPS 8
#define MMA_THREADS (MMA_WARPS * 32)

// Four tiles: bit 8 s + e of a lane is its element e of tile s. Each lane expands its own elements into words of shared
// memory that no other lane uses, each lane in a bank of its own.
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
  DEVICE_MEMBER void tile(u32 (&a)[4], int s, int lane) const {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = words[(s * 4 + i) * 32 + lane];
  }
};

// Four tiles of eight elements a lane, 16 bytes each.
template <class T>
struct Dense {
  const uint4* values;
  uint4 a[4];

  DEVICE_MEMBER void fetch(size_t chunk, int lane) {
#pragma unroll
    for (int s = 0; s < 4; s++) a[s] = load(values + chunk * 128 + s * 32 + lane);
  }
  DEVICE_MEMBER void tile(u32 (&w)[4], int s, int) const {
    w[0] = a[s].x;
    w[1] = a[s].y;
    w[2] = a[s].z;
    w[3] = a[s].w;
  }
};

// Two tiles of 16x32, stored as 16x16 each: 16 bytes a lane and tile, its eight elements as tensor cores take them. Of a
// row, a lane's stored columns 2 t, 2 t + 1 are two of the columns 4 t to 4 t + 3. The places of tile h are with the
// lanes 2 h and 2 h + 1 of each four: of row g in the low half, of g + 8 in the high half, 16 columns a lane.
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
};

// Where staged columns are: in rows that are padded, so that eight of them lie in different banks. PLACE says which of the
// pieces of eight elements the i-th is, and where element k of a column is.
template <int COLUMNS, int WIDTH>
struct Padded {
  static const int PITCH = WIDTH + 8, ELEMENTS = COLUMNS * PITCH;
  DEVICE int column(int i) { return i / (WIDTH / 8); }
  DEVICE int from(int i) { return i % (WIDTH / 8) * 8; }
  DEVICE int at(int column, int k) { return column * PITCH + k; }
};

// Columns of 16-bit elements in rows of `stride`, a multiple of 64; those behind `cols` are 0.
struct Rounded {
  const u16* x;
  int stride;
  template <int COLUMNS, int WIDTH, class PLACE>
  DEVICE_MEMBER void stage(u16* xs, int column, int from, int width, int n) const {
    for (int i = threadIdx.x; i < COLUMNS * (WIDTH / 8); i += MMA_THREADS) {
      const int j = PLACE::column(i), k = PLACE::from(i);
      const bool some = column + j < n && k < width;
      copy_async(xs + PLACE::at(j, k), some ? x + size_t(column + j) * stride + from + k : x, some);
    }
  }
  DEVICE_MEMBER size_t to(int column, int row, int rows) const { return size_t(column) * rows + row; }
};

// Windows, rounded as they are staged. Neighbouring threads have neighbouring pixels.
template <class T>
struct Windows {
  Pixels pixels;
  int cols;
  template <int COLUMNS, int WIDTH, class PLACE>
  DEVICE_MEMBER void stage(u16* xs, int column, int from, int width, int n) const {
    for (int i = threadIdx.x; i < COLUMNS * (WIDTH / 2); i += MMA_THREADS) {
      const int j = i % COLUMNS, k = i / COLUMNS * 2;
      u32 pair = 0;
      if (column + j < n && k < width) {
        if (from + k < cols) pair = T::narrow(pixels.at(column + j, from + k));
        if (from + k + 1 < cols) pair |= u32(T::narrow(pixels.at(column + j, from + k + 1))) << 16;
      }
      *(u32*)(xs + PLACE::at(j, k)) = pair;
    }
  }
  DEVICE_MEMBER size_t to(int column, int row, int rows) const { return pixels.to(column, row, rows); }
};

// A lane's sums of NT tiles of 16 rows by 8 columns, stored with the epilogue.
template <int NT, class X>
DEVICE void store(const float (&c)[NT][4], float* y, const X& x, const Epilogue& e, int first_row, int first_column,
                  int rows, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < NT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = first_row + lane / 4 + i / 2 * 8, col = first_column + j * 8 + lane % 4 * 2 + i % 2;
      if (row >= rows || col >= n) continue;
      const size_t to = x.to(col, row, rows);
      y[to] = e.of(c[j][i], row, to);
    }
}

#define EPILOGUE const float *bias, const float *residual, float low, float high
#define EPILOGUE_GIVEN Epilogue{bias, residual, low, high}
