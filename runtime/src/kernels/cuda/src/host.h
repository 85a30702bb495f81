// The kernels on a host: every thread of a block is a fiber, blocks run one after the other. What a warp or a block
// does together waits until all of its threads are there; if they never come, the launch fails. What mma, mma.sp and
// ldmatrix do is written from the PTX manual's figures, and not from the kernels.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <string>
#include <utility>
#include <vector>

#define KERNEL extern "C" void
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define __shared__ static

using std::max;
using std::min;

struct uint3 { u32 x, y, z; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

namespace host {
struct Copy { void* to; const void* from; bool some; };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  std::vector<Copy> copies;
  bool done = false;
};
struct Meeting { u32 arrived = 0, round = 0; };
struct Warp : Meeting { u64 said[2][32][8]; };

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Meeting block;
inline u32 here, running;
inline bool moved;
inline ucontext_t scheduler;
inline void (*body)(void**);
inline void** arguments;
inline uint3 grid, at;

inline void wait(Meeting& m, u32 all) {
  const u32 round = m.round;
  moved = true;
  if (++m.arrived == all) {
    m.arrived = 0;
    m.round++;
  }
  while (m.round == round) swapcontext(&fibers[here].context, &scheduler);
}
// Tells the warp `count` words; returns what each lane told.
inline const u64 (*tell(const u64* words, u32 count))[8] {
  Warp& w = warps[here / 32];
  const u32 half = w.round & 1;
  for (u32 i = 0; i < count; i++) w.said[half][here % 32][i] = words[i];
  wait(w, 32);
  return w.said[half];
}
inline void enter() {
  body(arguments);
  fibers[here].done = true;
  moved = true;
  running--;
  // Those that wait at a barrier do not wait for it.
  if (running > 0 && block.arrived == running) {
    block.arrived = 0;
    block.round++;
  }
  swapcontext(&fibers[here].context, &scheduler);
}
// Runs a block of `threads`, a multiple of 32; false when its threads wait for each other for ever.
inline bool run_block(u32 threads) {
  fibers.resize(threads);
  warps.assign(threads / 32, Warp());
  block = Meeting();
  running = threads;
  for (Fiber& f : fibers) {
    f.stack.resize(1 << 16);
    f.copies.clear();
    f.done = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &scheduler;
    makecontext(&f.context, enter, 0);
  }
  // A warp runs until it waits for others, the first or the last one first: what depends on their order shows.
  for (u32 round = at.x; running > 0; round++) {
    bool any = false;
    for (u32 w = 0; w < threads / 32; w++) {
      const u32 first = (round % 2 ? w : threads / 32 - 1 - w) * 32;
      do {
        moved = false;
        for (u32 i = 0; i < 32; i++) {
          here = first + (round % 2 ? i : 31 - i);
          if (!fibers[here].done) swapcontext(&scheduler, &fibers[here].context);
        }
        any |= moved;
      } while (moved);
    }
    if (!any) return false;
  }
  return true;
}

template <class F, size_t... I, class... A>
void spread(void (*f)(A...), void** a, std::index_sequence<I...>, F) { f(*(A*)a[I]...); }
template <class... A>
void call(void (*f)(A...), void** a) { spread(f, a, std::index_sequence_for<A...>(), 0); }
}  // namespace host

#define threadIdx (uint3{host::here, 0, 0})
#define blockIdx (host::at)
#define gridDim (host::grid)

inline void __syncthreads() { host::wait(host::block, host::running); }
DEVICE u32 votes(bool p) {
  const u64 word = p;
  const auto said = host::tell(&word, 1);
  u32 all = 0;
  for (int l = 0; l < 32; l++) all |= u32(said[l][0]) << l;
  return all;
}
DEVICE u32 shuffle_xor(u32 v, int mask) {
  const u64 word = v;
  return u32(host::tell(&word, 1)[host::here % 32 ^ mask][0]);
}
DEVICE u32 __float_as_uint(float f) {
  u32 b;
  memcpy(&b, &f, 4);
  return b;
}
DEVICE float __uint_as_float(u32 b) {
  float f;
  memcpy(&f, &b, 4);
  return f;
}
DEVICE float shuffle_xor(float v, int mask) { return __uint_as_float(shuffle_xor(__float_as_uint(v), mask)); }
DEVICE int popcount(u32 v) { return __builtin_popcount(v); }
DEVICE u32 lanes_below() { return (1u << host::here % 32) - 1; }
DEVICE u32 highest(u32 v) { return v ? 31 - __builtin_clz(v) : 0xffffffffu; }
DEVICE void store_half(void* shared, u16 v) { memcpy(shared, &v, 2); }
template <class T>
DEVICE T load(const T* p) {
  // As a device, which faults where an address is no multiple of the size.
  if (size_t(p) % sizeof(T)) __builtin_trap();
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

struct F16 {
  static float widen(u16 v) {
    const u32 exponent = v >> 10 & 31, mantissa = v & 1023, sign = u32(v >> 15) << 31;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint(ldexpf(float(mantissa), -24)));
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  }
  static u16 narrow(float f) {
    const u16 sign = __float_as_uint(f) >> 16 & 0x8000;
    const float size = fabsf(f);
    if (f != f) return 0x7fff;
    if (size >= 65520) return sign | 0x7c00;
    // As many units of the last place as there are; rint rounds to even.
    const int exponent = size < ldexpf(1, -14) ? -14 : ilogbf(size);
    const u32 units = u32(rintf(ldexpf(size, 10 - exponent)));
    return sign | u16(units + u32(exponent + 14) * 1024);
  }
};
struct BF16 {
  static float widen(u16 v) { return __uint_as_float(u32(v) << 16); }
  static u16 narrow(float f) {
    const u32 b = __float_as_uint(f);
    if (f != f) return u16(b >> 16 | 0x40);
    return u16((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
};

// The bytes come when copies_done is called, NaN is there before.
DEVICE void copy_async(void* shared, const void* global, bool some) {
  if (size_t(shared) % 16 || size_t(global) % 16) __builtin_trap();
  memset(shared, 0xff, 16);
  host::fibers[host::here].copies.push_back({shared, global, some});
}
DEVICE void copies_done() {
  auto& copies = host::fibers[host::here].copies;
  for (auto& c : copies)
    if (c.some) memcpy(c.to, c.from, 16);
    else memset(c.to, 0, 16);
  copies.clear();
}
DEVICE void load_matrices(u32 (&b)[4], const void* row) {
  const u64 word = u64(size_t(row));
  const auto said = host::tell(&word, 1);
  for (u32 i = 0; i < 4; i++) {
    const char* from = (const char*)size_t(said[8 * i + host::here % 32 / 4][0]);
    if (size_t(from) % 16) __builtin_trap();
    memcpy(&b[i], from + host::here % 4 * 4, 4);
  }
}

namespace host {
template <class T>
float half(u64 word, u32 which) { return T::widen(u16(word >> which * 16)); }
// Element (k, column) of b, of which lane 4 column + k / 2 % 4 has two in word k / 8.
template <class T>
float of_b(const u64 (*said)[8], u32 k, u32 column) { return half<T>(said[column * 4 + k % 8 / 2][4 + k / 8], k % 2); }
template <class T>
float of_a(const u64 (*said)[8], u32 row, u32 k) {
  return half<T>(said[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
}
}  // namespace host

template <class T>
DEVICE void multiply(T, float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u64 words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto said = host::tell(words, 6);
  for (u32 i = 0; i < 4; i++) {
    const u32 row = host::here % 32 / 4 + i / 2 * 8, column = host::here % 4 * 2 + i % 2;
    for (u32 k = 0; k < 16; k++) c[i] += host::of_a<T>(said, row, k) * host::of_b<T>(said, k, column);
  }
}
template <int SELECT, class T>
DEVICE void multiply_sparse(T, float (&c)[4], uint4 a, const u32 (&b)[4], u32 places) {
  // Eight words a lane: the places share one with a.
  const u64 words[8] = {a.x | u64(places) << 32, a.y, a.z, a.w, b[0], b[1], b[2], b[3]};
  const auto said = host::tell(words, 8);
  for (u32 i = 0; i < 4; i++) {
    const u32 row = host::here % 32 / 4 + i / 2 * 8, column = host::here % 4 * 2 + i % 2;
    for (u32 s = 0; s < 16; s++) {
      const u32 where = u32(said[row % 8 * 4 + 2 * SELECT + s / 8][0] >> 32);
      const u32 place = where >> (row / 8 * 16 + s % 8 * 2) & 3;
      if (s % 2 && (where >> (row / 8 * 16 + (s - 1) % 8 * 2) & 3) >= place) __builtin_trap();
      c[i] += host::of_a<T>(said, row, s) * host::of_b<T>(said, s / 2 * 4 + place, column);
    }
  }
}
