// Products by groups of warps on a host, written from the PTX manual's figures: the four warps of a group come together,
// and what they multiply is read only when they wait for it.
#pragma once
#include "host.h"

DEVICE u64 columns_at(const void* shared, u32 block) {
  if (size_t(shared) % 16 || block % 16) __builtin_trap();
  return u64(size_t(shared)) | u64(block >> 4) << 48;
}
DEVICE u64 further(u64 columns, u32 bytes) { return columns + bytes; }
DEVICE void shared_for_groups() {}

namespace host {
// One product that a thread asked for.
struct Asked { void (*run)(const Asked&, float*); const u32* a; u64 b; u32 places; };
inline std::vector<Asked> asked[1024];
inline Meeting groups[1024 / 128];

// Element k of a column.
template <class T>
float of_columns(u64 b, u32 k, u32 column) {
  const char* at = (const char*)size_t(b & 0xffffffffffffull);
  u16 v;
  memcpy(&v, at + k / 8 * (b >> 48 << 4) + column / 8 * 128 + column % 8 * 16 + k % 8 * 2, 2);
  return T::widen(v);
}
template <class T, int NT>
void product(const Asked& p, float* c) {
  const u64 words[4] = {p.a[0], p.a[1], p.a[2], p.a[3]};
  const auto said = tell(words, 4);
  for (u32 j = 0; j < NT; j++)
    for (u32 i = 0; i < 4; i++) {
      const u32 row = here % 32 / 4 + i / 2 * 8, column = 8 * j + here % 4 * 2 + i % 2;
      for (u32 k = 0; k < 16; k++) c[4 * j + i] += of_a<T>(said, row, k) * of_columns<T>(p.b, k, column);
    }
}
template <class T, int NT, int SELECT>
void sparse_product(const Asked& p, float* c) {
  const u64 words[5] = {p.a[0], p.a[1], p.a[2], p.a[3], p.places};
  const auto said = tell(words, 5);
  for (u32 j = 0; j < NT; j++)
    for (u32 i = 0; i < 4; i++) {
      const u32 row = here % 32 / 4 + i / 2 * 8, column = 8 * j + here % 4 * 2 + i % 2;
      for (u32 s = 0; s < 16; s++) {
        // Of a row, the pairs of bits of its stored columns are those of eight columns in one lane, then in the next.
        const u32 where = u32(said[row % 8 * 4 + 2 * SELECT + s / 8][4]);
        const u32 place = where >> (row / 8 * 16 + s % 8 * 2) & 3;
        c[4 * j + i] += of_a<T>(said, row, s) * of_columns<T>(p.b, s / 2 * 4 + place, column);
      }
    }
}
}  // namespace host

template <int NT>
DEVICE void group_begin(float (&)[NT][4]) {
  host::wait(host::groups[host::here / 128], 128);
}
template <int NT>
DEVICE void group_done(float (&c)[NT][4]) {
  host::wait(host::groups[host::here / 128], 128);
  for (const auto& p : host::asked[host::here]) p.run(p, &c[0][0]);
  host::asked[host::here].clear();
}
template <class T, int NT>
DEVICE void group_multiply(T, float (&)[NT][4], const u32 (&a)[4], u64 b) {
  host::asked[host::here].push_back({host::product<T, NT>, a, b, 0});
}
template <int SELECT, class T, int NT>
DEVICE void group_multiply_sparse(T, float (&)[NT][4], const u32 (&a)[4], u64 b, u32 places) {
  host::asked[host::here].push_back({host::sparse_product<T, NT, SELECT>, a, b, places});
}
