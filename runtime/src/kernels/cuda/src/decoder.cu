// The rest of a decoder. Activations are f32, rows of tokens. `past` points to the number of tokens before the first
// one, in device memory: a captured graph is replayed with another.
#include "block.h"

// y = x / sqrt(mean(x^2) + epsilon) * weight, a token a block of 256.
KERNEL f32_rms_norm(float* y, const float* x, const float* weight, int width, float epsilon) {
  __shared__ float room[8];
  x += size_t(blockIdx.x) * width;
  y += size_t(blockIdx.x) * width;
  float sum = 0;
  for (int c = threadIdx.x; c < width; c += 256) sum += x[c] * x[c];
  sum = block_sum<8>(sum, room);
  const float scale = 1 / sqrtf(sum / width + epsilon);
  for (int c = threadIdx.x; c < width; c += 256) y[c] = x[c] * scale * weight[c];
}

// Rotates pairs of elements of each head by the angles of its token's position; elements behind 2 `pairs` stay.
// Tables are [positions][pairs]; tokens behind them, which nobody reads, get the last. A thread has an element of y; y may
// not be x.
KERNEL f32_rotary(float* y, const float* x, const float* cosines, const float* sines, const u32* past, int tokens,
                  int heads, int width, int positions, int pairs, int interleaved) {
  const size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;
  if (at >= size_t(tokens) * heads * width) return;
  const int c = at % width, token = at / (size_t(heads) * width);
  if (c >= 2 * pairs) {
    y[at] = x[at];
    return;
  }
  const int pair = interleaved ? c / 2 : c % pairs;
  const bool second = interleaved ? c % 2 : c >= pairs;
  const int apart = interleaved ? 1 : pairs;
  const size_t angle = size_t(min(int(*past) + token, positions - 1)) * pairs + pair;
  const float cosine = cosines[angle], sine = sines[angle];
  y[at] = second ? x[at] * cosine + x[at - apart] * sine : x[at] * cosine - x[at + apart] * sine;
}

// Scores and values of one part of the context, for one head of one token: a block of 128. Blocks are heads, tokens,
// parts. Token t sees past + t + 1 positions, or where it is not causal all `capacity`, and of them those whose mask, if
// there is one, is not 0; a part is as many of them as any other but the last. Of a part, the
// values weighted by exp(score - maximum) go to `partial`, then the maximum and the sum of those weights:
// [tokens][heads][parts][width + 2]. The cache is [kv_heads][capacity][width], width a multiple of 8 up to 256.
// Eight lanes read a key, eight elements each.
template <class E>
DEVICE void attention(float* partial, const float* q, const typename E::Type* keys, const typename E::Type* values,
                      const u32* past, const int* mask, int kv_heads, int width, int capacity, int causal,
                      float scale) {
  const int TILE = 64;
  __shared__ float query[256], weights[TILE], room[4], sums[256];
  const int head = blockIdx.x, token = blockIdx.y, part = blockIdx.z, heads = gridDim.x, parts = gridDim.z;
  const int all = causal ? min(capacity, int(*past) + token + 1) : capacity;
  const int span = (all + parts - 1) / parts;
  const int begin = part * span, end = min(all, begin + span);
  const size_t of_head = size_t(head / (heads / kv_heads)) * capacity * width;
  const size_t row = size_t(token) * heads + head;
  for (int c = threadIdx.x; c < width; c += 128) query[c] = q[row * width + c] * scale;
  // Of wide values a thread has two elements; of narrow ones several threads share an element.
  const int shares = width < 128 ? 128 / width : 1;
  const int share = threadIdx.x / width, element = threadIdx.x % width;
  float top = -INFINITY, sum = 0, first = 0, second = 0;
  for (int at = begin; at < end; at += TILE) {
    const int count = min(TILE, end - at);
    __syncthreads();
    for (int p = threadIdx.x / 8; p < TILE; p += 16) {
      float dot = 0;
      if (p < count) {
        const typename E::Type* const key = keys + of_head + size_t(at + p) * width;
        for (int c = threadIdx.x % 8 * 8; c < width; c += 64) {
          float e[8];
          E::eight(e, key + c);
#pragma unroll
          for (int i = 0; i < 8; i++) dot += query[c + i] * e[i];
        }
      }
#pragma unroll
      for (int m = 4; m > 0; m >>= 1) dot += shuffle_xor(dot, m);
      if (threadIdx.x % 8 == 0) weights[p] = p < count && !(mask && mask[at + p] == 0) ? dot : -INFINITY;
    }
    __syncthreads();
    const float score = threadIdx.x < TILE ? weights[threadIdx.x] : -INFINITY;
    const float higher = fmaxf(top, block_max<4>(score, room));
    // Nothing seen so far has no share.
    const float weight = score == -INFINITY ? 0 : expf(score - higher);
    const float rescale = top == -INFINITY ? 0 : expf(top - higher);
    if (threadIdx.x < TILE) weights[threadIdx.x] = weight;
    sum = sum * rescale + block_sum<4>(weight, room);
    top = higher;
    first *= rescale;
    second *= rescale;
    if (share < shares) {
      const typename E::Type* const from = values + of_head + size_t(at) * width + element;
      for (int p = share; p < count; p += shares) {
        first += weights[p] * E::one(from + size_t(p) * width);
        if (element + 128 < width) second += weights[p] * E::one(from + size_t(p) * width + 128);
      }
    }
  }
  __syncthreads();
  sums[threadIdx.x] = first;
  sums[threadIdx.x + 128] = second;
  __syncthreads();
  float* const to = partial + (row * parts + part) * (width + 2);
  for (int c = threadIdx.x; c < width; c += 128) {
    float v = 0;
    if (width < 128) for (int s = 0; s < shares; s++) v += sums[s * width + c];
    else v = sums[c];
    to[c] = v;
  }
  if (threadIdx.x == 0) {
    to[width] = top;
    to[width + 1] = sum;
  }
}

struct Single {
  typedef float Type;
  DEVICE float one(const float* p) { return *p; }
  DEVICE void eight(float (&e)[8], const float* p) {
    const float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
    e[0] = a.x, e[1] = a.y, e[2] = a.z, e[3] = a.w, e[4] = b.x, e[5] = b.y, e[6] = b.z, e[7] = b.w;
  }
  DEVICE float narrow(float f) { return f; }
  DEVICE float widen(float f) { return f; }
};
struct Half {
  typedef u16 Type;
  DEVICE float one(const u16* p) { return F16::widen(*p); }
  DEVICE void eight(float (&e)[8], const u16* p) {
    const uint4 v = *(const uint4*)p;
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; i++) e[i] = F16::widen(u16(words[i / 2] >> (i % 2 * 16)));
  }
  DEVICE u16 narrow(float f) { return F16::narrow(f); }
};

// Adds the parts of each head of each token: y [tokens][heads][width].
KERNEL f32_attention_sum(float* y, const float* partial, int width, int parts) {
  const size_t row = blockIdx.x;
  const float* const from = partial + row * parts * (width + 2);
  float top = -INFINITY;
  for (int p = 0; p < parts; p++) top = fmaxf(top, from[p * (width + 2) + width]);
  for (int c = threadIdx.x; c < width; c += 128) {
    float v = 0, sum = 0;
    for (int p = 0; p < parts; p++) {
      const float* const one = from + p * (width + 2);
      const float weight = one[width] == -INFINITY ? 0 : expf(one[width] - top);
      v += weight * one[c];
      sum += weight * one[width + 1];
    }
    y[row * width + c] = sum > 0 ? v / sum : 0;
  }
}

// Keys and values of the tokens go behind those of the cache.
template <class E>
DEVICE void keep(typename E::Type* keys, typename E::Type* values, const float* k, const float* v, const u32* past,
                 int tokens, int kv_heads, int width, int capacity) {
  const size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;
  if (at >= size_t(tokens) * kv_heads * width) return;
  const int c = at % width, head = at / width % kv_heads, token = at / width / kv_heads;
  const size_t position = *past + token;
  if (position >= size_t(capacity)) return;
  const size_t to = (size_t(head) * capacity + position) * width + c;
  keys[to] = E::narrow(k[at]);
  values[to] = E::narrow(v[at]);
}

#define CACHE(NAME, E)                                                                                            \
  KERNEL NAME##_attention(float* partial, const float* q, const E::Type* keys, const E::Type* values,             \
                          const u32* past, const int* mask, int kv_heads, int width, int capacity, int causal,    \
                          float scale) {                                                                          \
    attention<E>(partial, q, keys, values, past, mask, kv_heads, width, capacity, causal, scale);                 \
  }                                                                                                               \
  KERNEL NAME##_keep(E::Type* keys, E::Type* values, const float* k, const float* v, const u32* past, int tokens, \
                     int kv_heads, int width, int capacity) {                                                     \
    keep<E>(keys, values, k, v, past, tokens, kv_heads, width, capacity);                                         \
  }
CACHE(f16, Half)
CACHE(f32, Single)

// Rows of a table, `stride` apart. A negative id counts from the end; one outside of the table gives
// zeros.
template <class T, class E>
DEVICE void embed(float* y, const E* table, const u32* ids, int rows, int width, int stride) {
  u32 id = ids[blockIdx.x];
  if (int(id) < 0) id += rows;
  for (int c = threadIdx.x; c < width; c += 256)
    y[size_t(blockIdx.x) * width + c] = id < u32(rows) ? T::widen(table[size_t(id) * stride + c]) : 0;
}
KERNEL f32_embed(float* y, const float* table, const u32* ids, int rows, int width, int stride) {
  embed<Single>(y, table, ids, rows, width, stride);
}
// y = x, rows of tokens, plus the rows of a table from `past` on; tokens behind it, which nobody reads, get its last.
KERNEL f32_positions(float* y, const float* x, const float* table, const u32* past, int width, int positions) {
  const size_t token = blockIdx.x, row = min(int(*past) + int(blockIdx.x), positions - 1);
  for (int c = threadIdx.x; c < width; c += 256) y[token * width + c] = x[token * width + c] + table[row * width + c];
}
// To 16 bits, in rows of `stride` elements; those behind `cols` are 0. A block has a row.
template <class T>
DEVICE void round_rows(u16* y, const float* x, int cols, int stride) {
  for (int c = threadIdx.x; c < stride; c += 256)
    y[size_t(blockIdx.x) * stride + c] = c < cols ? T::narrow(x[size_t(blockIdx.x) * cols + c]) : 0;
}
#define STORED(NAME, T)                                                                                           \
  KERNEL NAME##_embed(float* y, const u16* table, const u32* ids, int rows, int width, int stride) {              \
    embed<T>(y, table, ids, rows, width, stride);                                                                 \
  }                                                                                                               \
  KERNEL NAME##_round(u16* y, const float* x, int cols, int stride) { round_rows<T>(y, x, cols, stride); }
STORED(f16, F16)
#if LACUNA_BF16
STORED(bf16, BF16)
#endif

// The first of the highest logits of each row: a block of 1024 a row. NaN is below every number.
KERNEL f32_argmax(u32* ids, const float* logits, int count) {
  __shared__ float best[32];
  __shared__ u32 where[32];
  const float* const row = logits + size_t(blockIdx.x) * count;
  float top = -INFINITY;
  u32 at = 0xffffffffu;
  for (int i = threadIdx.x; i < count; i += 1024)
    if (row[i] > top || (at == 0xffffffffu && row[i] == top)) {
      top = row[i];
      at = i;
    }
  for (int round = 0; round < 2; round++) {
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) {
      const float other = shuffle_xor(top, m);
      const u32 there = shuffle_xor(at, m);
      if (other > top || (other == top && there < at)) {
        top = other;
        at = there;
      }
    }
    if (round == 0) {
      if (threadIdx.x % 32 == 0) {
        best[threadIdx.x / 32] = top;
        where[threadIdx.x / 32] = at;
      }
      __syncthreads();
      top = best[threadIdx.x % 32];
      at = where[threadIdx.x % 32];
    }
  }
  if (threadIdx.x == 0) ids[blockIdx.x] = at == 0xffffffffu ? 0 : at;
}

// A float's place in their order, and back.
DEVICE u32 order(float f) {
  const u32 b = __float_as_uint(f);
  return b >> 31 ? ~b : b | 0x80000000u;
}

// Draws a token: of the `top_k` most likely ones (0: all), the fewest whose probabilities, at this temperature, reach
// `top_p`. `draws` holds a number in [0, 1) for each row. Tokens as likely as the last one that is kept are kept too.
// Where the cut lies is found bit by bit, a pass over the row each. A block of 1024 a row.
KERNEL f32_sample(u32* ids, const float* logits, const float* draws, int count, float temperature, int top_k,
                  float top_p) {
  __shared__ float room[32];
  __shared__ float before[1024];
  const float* const row = logits + size_t(blockIdx.x) * count;
  float top = -INFINITY;
  for (int i = threadIdx.x; i < count; i += 1024) top = fmaxf(top, row[i]);
  top = block_max<32>(top, room);
  const float scale = 1 / temperature;
  u32 cut = 0;
  for (int pass = 0; pass < 2; pass++) {
    // First so that at least top_k are kept, then so that of their mass top_p is.
    if (pass == 0 ? top_k <= 0 || top_k >= count : top_p >= 1) continue;
    float all = 0;
    if (pass == 1) {
      for (int i = threadIdx.x; i < count; i += 1024)
        if (order(row[i]) >= cut) all += expf((row[i] - top) * scale);
      all = block_sum<32>(all, room);
    }
    const u32 floor = cut;
    u32 found = 0;
    for (int bit = 31; bit >= 0; bit--) {
      const u32 least = found | 1u << bit;
      float kept = 0;
      for (int i = threadIdx.x; i < count; i += 1024)
        if (order(row[i]) >= max(least, floor)) kept += pass == 0 ? 1 : expf((row[i] - top) * scale);
      kept = block_sum<32>(kept, room);
      if (pass == 0 ? kept >= top_k : kept >= top_p * all) found = least;
    }
    cut = max(cut, found);
  }
  // A thread has a run of tokens, so that the draw goes by their order.
  const int run = (count + 1023) / 1024, begin = min(count, int(threadIdx.x) * run), end = min(count, begin + run);
  float mine = 0;
  for (int i = begin; i < end; i++)
    if (order(row[i]) >= cut) mine += expf((row[i] - top) * scale);
  before[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < 1024; i++) {
      const float one = before[i];
      before[i] = sum;
      sum += one;
    }
    room[0] = sum;
    // The last token of all that has a share, if rounding leaves nothing behind the draw.
    for (int i = count - 1; i >= 0; i--)
      if (order(row[i]) >= cut && expf((row[i] - top) * scale) > 0) {
        ids[blockIdx.x] = i;
        break;
      }
  }
  __syncthreads();
  const float draw = draws[blockIdx.x] * room[0];
  float at = before[threadIdx.x];
  if (draw < at || draw >= at + mine) return;
  for (int i = begin; i < end; i++) {
    if (order(row[i]) < cut) continue;
    at += expf((row[i] - top) * scale);
    if (draw < at) {
      ids[blockIdx.x] = i;
      return;
    }
  }
}
