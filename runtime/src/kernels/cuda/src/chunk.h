// A chunk: 1024 elements of a bitmask matrix, as a warp reads them. Each lane has a word of the mask, 32 elements of
// its own; which ones those are is the kernel's matter. A lane takes its stored elements from the highest bit down,
// in pairs and, of an odd number, one more. The values lie in the order in which the warp reads them: the first pairs
// of all lanes that have one, in the order of the lanes, then the second pairs, ..., then the last single ones. So
// every load of a warp is one run of bytes, and the work follows the number of stored elements. A chunk starts at an
// even element. `pack.rs` writes chunks.
#pragma once
#include "intrinsics.h"

// Pairs that are asked for before the first is used.
#define AHEAD 4

// Calls take(bit, value) for each stored element of this lane. All lanes of the warp come here.
template <class Take>
DEVICE void each_stored(u32 mask, const u16* values, Take take) {
  const u32 below = lanes_below();
  const int count = popcount(mask), pairs = count / 2;
  u32 start = 0;
  for (int k = 0; votes(pairs > k); k += AHEAD) {
    u32 two[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const u32 has = votes(pairs > k + j);
      two[j] = 0;
      if (pairs > k + j) two[j] = load((const u32*)(values + start) + popcount(has & below));
      start += 2 * popcount(has);
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (pairs > k + j) {
        u32 bit = highest(mask);
        mask ^= 1u << bit;
        take(bit, u16(two[j]));
        bit = highest(mask);
        mask ^= 1u << bit;
        take(bit, u16(two[j] >> 16));
      }
    }
  }
  const u32 has = votes(count & 1);
  if (count & 1) take(highest(mask), load(values + start + popcount(has & below)));
}
