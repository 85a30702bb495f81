// What the threads of a block tell each other.
#pragma once
#include "intrinsics.h"

// The sum, or the maximum, over a block of COUNT warps; every thread gets it. `room` holds a float a warp.
template <int COUNT>
DEVICE float block_sum(float v, float* room) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int i = 0; i < COUNT; i++) v += room[i];
  return v;
}
template <int COUNT>
DEVICE float block_max(float v, float* room) {
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
  __syncthreads();
  v = room[0];
  for (int i = 1; i < COUNT; i++) v = fmaxf(v, room[i]);
  return v;
}
