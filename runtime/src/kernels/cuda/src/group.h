// Products by groups of four warps, Hopper's `wgmma`: c of a warp is 16 rows by 8 NT columns, a its 16 rows in registers
// as mma takes them, b columns in shared memory. They run beside the warps from group_begin to group_done; meanwhile c,
// a and b may not be touched.
#pragma once
#include "intrinsics.h"

#ifdef LACUNA_HOST
#include "host_group.h"
#else

// Columns in blocks of eight elements, 16 bytes a column and `block` bytes from one block to the next; eight columns of a
// block lie together.
DEVICE u64 columns_at(const void* shared, u32 block) {
  const u32 at = u32(__cvta_generic_to_shared(shared));
  return u64((at & 0x3ffffu) >> 4) | u64(block >> 4) << 16 | u64(128 >> 4) << 32;
}
DEVICE u64 further(u64 columns, u32 bytes) { return columns + (bytes >> 4); }

// What this thread wrote to shared memory is there for groups, after a barrier.
DEVICE void shared_for_groups() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int NT>
DEVICE void hold(float (&c)[NT][4]) {
#pragma unroll
  for (int j = 0; j < NT; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[j][i])::"memory");
}
template <int NT>
DEVICE void group_begin(float (&c)[NT][4]) {
  hold(c);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
template <int NT>
DEVICE void group_done(float (&c)[NT][4]) {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  hold(c);
}

#define C4(J) "+f"(c[J][0]), "+f"(c[J][1]), "+f"(c[J][2]), "+f"(c[J][3])
#define C32(J) C4(J), C4(J + 1), C4(J + 2), C4(J + 3), C4(J + 4), C4(J + 5), C4(J + 6), C4(J + 7)
#define C64 C32(0), C32(8)
#define S32                                                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                        \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define S64                                                                                                       \
  S32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c += a b. The sums are added to what is in c: %X is 1.
#define LACUNA_GROUP(TYPE, NAME, NT, N, C, S, A0, A1, A2, A3, B, X)                                               \
  DEVICE void group_multiply(TYPE, float (&c)[NT][4], const u32 (&a)[4], u64 b) {                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " X ", 0;\n"                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." NAME "." NAME " {" S "}, "                      \
                 "{" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, 0;\n}\n"                                      \
                 : C                                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                   \
  }
LACUNA_GROUP(F16, "f16", 8, "64", C32(0), S32, "%32", "%33", "%34", "%35", "%36", "%37")
LACUNA_GROUP(BF16, "bf16", 8, "64", C32(0), S32, "%32", "%33", "%34", "%35", "%36", "%37")
LACUNA_GROUP(F16, "f16", 16, "128", C64, S64, "%64", "%65", "%66", "%67", "%68", "%69")
LACUNA_GROUP(BF16, "bf16", 16, "128", C64, S64, "%64", "%65", "%66", "%67", "%68", "%69")

// The same of 32 columns of which a holds two of each four, as multiply_sparse takes them.
#define LACUNA_GROUP_SPARSE(TYPE, NAME, NT, N, C, S, A0, A1, A2, A3, B, X, P, SEL)                                \
  template <int SELECT>                                                                                           \
  DEVICE void group_multiply_sparse(TYPE, float (&c)[NT][4], const u32 (&a)[4], u64 b, u32 places) {              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " X ", 0;\n"                                                   \
                 "wgmma.mma_async.sp.sync.aligned.m64n" N "k32.f32." NAME "." NAME " {" S "}, "                   \
                 "{" A0 ", " A1 ", " A2 ", " A3 "}, " B ", " P ", " SEL ", p, 1, 1, 0;\n}\n"                      \
                 : C                                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "r"(places), "n"(SELECT));         \
  }
LACUNA_GROUP_SPARSE(F16, "f16", 8, "64", C32(0), S32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
LACUNA_GROUP_SPARSE(BF16, "bf16", 8, "64", C32(0), S32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
LACUNA_GROUP_SPARSE(F16, "f16", 16, "128", C64, S64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
LACUNA_GROUP_SPARSE(BF16, "bf16", 16, "128", C64, S64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
#endif
