// What the kernels use of the machine. Compiled by a host compiler, the same calls come from host.h, which runs
// the threads of a block as fibers: the tests execute the kernels that way.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef LACUNA_HOST
#include "host.h"
#else

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

DEVICE u32 votes(bool p) { return __ballot_sync(0xffffffffu, p); }
DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE u32 shuffle_xor(u32 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE int popcount(u32 v) { return __popc(v); }
DEVICE u32 lanes_below() {
  u32 m;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(m));
  return m;
}
// The highest set bit.
DEVICE u32 highest(u32 v) {
  u32 b;
  asm("bfind.u32 %0, %1;" : "=r"(b) : "r"(v));
  return b;
}

// Shared memory that is read as words.
DEVICE void store_half(void* shared, u16 v) {
  u32 to = u32(__cvta_generic_to_shared(shared));
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(v) : "memory");
}

template <class T>
DEVICE T load(const T* p) { return __ldg(p); }

struct F16 {
  DEVICE float widen(u16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
  }
  DEVICE u16 narrow(float f) {
    u16 v;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v) : "f"(f));
    return v;
  }
};

struct BF16 {
  DEVICE float widen(u16 v) { return __uint_as_float(u32(v) << 16); }
  DEVICE u16 narrow(float f) {
    u32 b = __float_as_uint(f);
    if ((b & 0x7fffffffu) > 0x7f800000u) return u16(b >> 16 | 0x40);
    return u16((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
};

#if __CUDA_ARCH__ >= 800
// Sixteen bytes from global to shared memory, or zeros.
DEVICE void copy_async(void* shared, const void* global, bool some) {
  u32 to = u32(__cvta_generic_to_shared(shared));
  int bytes = some ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 matrices of 16-bit elements; lane 8 i + r has the address of row r of matrix i.
DEVICE void load_matrices(u32 (&b)[4], const void* row) {
  u32 at = u32(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(at)
               : "memory");
}

// c += a b, 16x16 by 16x8.
DEVICE void multiply(F16, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply(BF16, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, 16x32 of which a holds two of each four columns, by 32x8. The lanes 2 SELECT and 2 SELECT + 1 of each
// four say which columns.
#define LACUNA_SPARSE(TYPE, NAME, SELECT)                                                                       \
  asm("mma.sp.sync.aligned.m16n8k32.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "    \
      "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, " SELECT ";"                                                  \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                          \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places))
template <int SELECT>
DEVICE void multiply_sparse(F16, float (&c)[4], uint4 a, const u32 (&b)[4], u32 places) {
  if (SELECT == 0) LACUNA_SPARSE(F16, "f16", "0x0");
  else LACUNA_SPARSE(F16, "f16", "0x1");
}
template <int SELECT>
DEVICE void multiply_sparse(BF16, float (&c)[4], uint4 a, const u32 (&b)[4], u32 places) {
  if (SELECT == 0) LACUNA_SPARSE(BF16, "bf16", "0x0");
  else LACUNA_SPARSE(BF16, "bf16", "0x1");
}
#endif
#endif

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) v += shuffle_xor(v, m);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) v = fmaxf(v, shuffle_xor(v, m));
  return v;
}
