//! Scaled dot-product attention, over the tokens of a run or over what a session keeps.
//!
//! Keys lie in blocks of sixteen positions, transposed: `[position / 16][size][16]`. A vector then
//! holds one element of sixteen keys, so that scores need no sums across lanes and head sizes have no
//! tails. Queries that share keys (those of a group of heads, and those of neighbouring tokens) are
//! computed together, up to [`ROWS`] at a time: their scores, a softmax in place, and the weighted
//! sum of the values.

use super::simd::{LANES, Simd, first};
use super::softmax::exponentials;
use super::{Extent, Io};

/// Query rows that share a pass over keys and values.
const ROWS: usize = 6;

/// Positions whose values are summed before they are added to the output.
const SPAN: usize = 256;

/// A planned attention. Inputs: queries, keys, values, and a mask if any.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Attention {
    pub batch: usize,
    pub tokens: Extent,
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a query and of a key.
    pub size: usize,
    /// Elements of a value.
    pub value_size: usize,
    pub causal: bool,
    pub masked: bool,
    pub scale: f32,
    pub cache: Option<CacheRegion>,
}

/// The keys, then the values, of one node in a session's cache: `[kv_heads][blocks][size][16]`, then
/// `[kv_heads][capacity][value_size]`.
#[derive(Clone, Copy, Debug)]
pub struct CacheRegion {
    /// The first element.
    pub offset: usize,
    /// Positions.
    pub capacity: usize,
}

impl CacheRegion {
    /// Elements of a region, a multiple of sixteen; `None` on overflow.
    pub fn elements(
        kv_heads: usize,
        capacity: usize,
        size: usize,
        value_size: usize,
    ) -> Option<usize> {
        let keys = capacity
            .checked_next_multiple_of(LANES)?
            .checked_mul(size)?;
        let values = capacity.checked_mul(value_size)?;
        let all = keys.checked_add(values)?.checked_mul(kv_heads)?;
        all.checked_next_multiple_of(LANES)
    }
}

/// What one group of query heads attends to.
struct Keys {
    /// In blocks.
    keys: *const f32,
    values: *const f32,
    /// From one value to the next.
    stride: usize,
    /// Added to scores, or null.
    bias: *const f32,
    /// Positions before the run's first token.
    past: usize,
    /// Positions that the last token may attend to.
    positions: usize,
}

/// The queries of one group of heads, and where their outputs go.
#[derive(Clone, Copy)]
struct Queries {
    x: *const f32,
    out: *mut f32,
}

/// One thread's scratch.
#[derive(Clone, Copy)]
struct Scratch {
    queries: *mut f32,
    scores: *mut f32,
    bias: *mut f32,
    keys: *mut f32,
}

impl Attention {
    /// Positions that a row of scores has room for.
    fn room(&self) -> usize {
        let positions = self.cache.map_or(self.tokens.len, |c| c.capacity);
        positions.next_multiple_of(LANES)
    }

    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        let room = self.room();
        let staged = if self.cache.is_some() { 0 } else { room };
        let queries = (ROWS * self.size).next_multiple_of(LANES);
        queries + (ROWS + 1) * room + staged * self.size
    }

    fn scratch(&self, base: *mut f32) -> Scratch {
        let (room, queries) = (self.room(), (ROWS * self.size).next_multiple_of(LANES));
        Scratch {
            queries: base,
            scores: base.wrapping_add(queries),
            bias: base.wrapping_add(queries + ROWS * room),
            keys: base.wrapping_add(queries + (ROWS + 1) * room),
        }
    }

    /// Runs this member's share of the queries, after all members stored their keys and values.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run); and a cache, where there is one, has room for the run.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let tokens = self.tokens.active(&io.sequence);
        let (group, member) = (self.heads / self.kv_heads, io.member);
        let scratch = self.scratch(io.scratch);
        // SAFETY: the plan sized inputs, output, scratch and cache for these sizes.
        unsafe {
            if let Some(region) = self.cache {
                self.keep(io, region, tokens);
                member.wait();
            }
            let mut at = usize::MAX;
            let mut keys = None;
            if tokens == 1 {
                // One token: heads in contiguous shares, so that a group's keys are read together.
                let share = member.share(self.batch * self.heads);
                let mut row = share.start;
                while row < share.end {
                    let unit = row / group;
                    let end = share.end.min((unit + 1) * group);
                    let keys = self.keys::<S>(io, unit, tokens, scratch);
                    let queries = self.queries(io, unit);
                    self.rows::<S>(&keys, queries, scratch, row % group, end - row);
                    row = end;
                }
                return;
            }
            // Many tokens: tiles in turn, because later tokens attend to more.
            let tiles = (tokens * group).div_ceil(ROWS);
            let units = self.batch * self.kv_heads;
            let mut tile = member.index;
            while tile < units * tiles {
                let (unit, first) = (tile / tiles, tile % tiles * ROWS);
                if unit != at {
                    (at, keys) = (unit, Some(self.keys::<S>(io, unit, tokens, scratch)));
                }
                if let Some(keys) = &keys {
                    let count = ROWS.min(tokens * group - first);
                    self.rows::<S>(keys, self.queries(io, unit), scratch, first, count);
                }
                tile += member.size;
            }
        }
    }

    /// Stores this member's share of the run's keys and values in the cache.
    #[inline(always)]
    unsafe fn keep(&self, io: &Io<'_>, region: CacheRegion, tokens: usize) {
        let (size, value_size) = (self.size, self.value_size);
        let blocks = region.capacity.div_ceil(LANES);
        // SAFETY: positions of the run lie within the capacity, and shares are disjoint.
        unsafe {
            let keys = io.sequence.cache.add(region.offset);
            let values = keys.add(self.kv_heads * blocks * size * LANES);
            for unit in io.member.share(self.kv_heads * tokens) {
                let (head, t) = (unit / tokens, unit % tokens);
                let at = io.sequence.past + t;
                let k = io.inputs[1].add((t * self.kv_heads + head) * size);
                store_key(k, size, keys.add(head * blocks * size * LANES), at);
                let v = io.inputs[2].add((t * self.kv_heads + head) * value_size);
                let to = values.add((head * region.capacity + at) * value_size);
                std::ptr::copy_nonoverlapping(v, to, value_size);
            }
        }
    }

    /// What the queries of unit `unit`, a key head of a batch entry, attend to.
    #[inline(always)]
    unsafe fn keys<S: Simd>(
        &self,
        io: &Io<'_>,
        unit: usize,
        tokens: usize,
        scratch: Scratch,
    ) -> Keys {
        let (n, head) = (unit / self.kv_heads, unit % self.kv_heads);
        let (size, value_size) = (self.size, self.value_size);
        // SAFETY: as `run`.
        unsafe {
            if let Some(region) = self.cache {
                let blocks = region.capacity.div_ceil(LANES);
                let keys = io.sequence.cache.add(region.offset).cast_const();
                let values = keys.add(self.kv_heads * blocks * size * LANES);
                return Keys {
                    keys: keys.add(head * blocks * size * LANES),
                    values: values.add(head * region.capacity * value_size),
                    stride: value_size,
                    bias: std::ptr::null(),
                    past: io.sequence.past,
                    positions: io.sequence.past + tokens,
                };
            }
            let row = |t: usize| (n * self.tokens.len + t) * self.kv_heads + head;
            for t in 0..tokens {
                store_key(io.inputs[1].add(row(t) * size), size, scratch.keys, t);
            }
            // Lanes behind the last key are computed and not used.
            for t in tokens..tokens.next_multiple_of(LANES) {
                for d in 0..size {
                    *scratch.keys.add(key_at(size, t, d)) = 0.0;
                }
            }
            let mut bias = std::ptr::null();
            if self.masked {
                let mask = io.inputs[3].cast::<i64>().add(n * self.tokens.len);
                for t in 0..tokens {
                    let keep = mask.add(t).read_unaligned() != 0;
                    *scratch.bias.add(t) = if keep { 0.0 } else { f32::NEG_INFINITY };
                }
                for t in tokens..tokens.next_multiple_of(LANES) {
                    *scratch.bias.add(t) = 0.0;
                }
                bias = scratch.bias.cast_const();
            }
            Keys {
                keys: scratch.keys,
                values: io.inputs[2].add(row(0) * value_size),
                stride: self.kv_heads * value_size,
                bias,
                past: 0,
                positions: tokens,
            }
        }
    }

    /// Where unit `unit` has its queries and outputs.
    #[inline(always)]
    unsafe fn queries(&self, io: &Io<'_>, unit: usize) -> Queries {
        let (n, head) = (unit / self.kv_heads, unit % self.kv_heads);
        let row = n * self.tokens.len * self.heads + head * (self.heads / self.kv_heads);
        // SAFETY: as `run`.
        unsafe {
            Queries {
                x: io.inputs[0].add(row * self.size),
                out: io.out.add(row * self.value_size),
            }
        }
    }

    /// Rows `from..from + count` of a unit: row `t * group + g` is head `g` of token `t`.
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        keys: &Keys,
        queries: Queries,
        scratch: Scratch,
        from: usize,
        count: usize,
    ) {
        let end = from + count;
        let mut row = from;
        while row < end {
            // SAFETY: as `run`.
            unsafe {
                match end - row {
                    6.. => self.tile::<S, 6>(keys, queries, scratch, row),
                    3..6 => self.tile::<S, 3>(keys, queries, scratch, row),
                    2 => self.tile::<S, 2>(keys, queries, scratch, row),
                    _ => self.tile::<S, 1>(keys, queries, scratch, row),
                }
            }
            row += match end - row {
                6.. => 6,
                3..6 => 3,
                n => n,
            };
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(
        &self,
        keys: &Keys,
        queries: Queries,
        scratch: Scratch,
        row: usize,
    ) {
        let (size, value_size) = (self.size, self.value_size);
        let (group, room) = (self.heads / self.kv_heads, self.room());
        let limit = |row: usize| {
            if self.causal {
                keys.positions.min(keys.past + row / group + 1)
            } else {
                keys.positions
            }
        };
        let longest = limit(row + R - 1);
        let blocks = longest.div_ceil(LANES);
        // SAFETY: as `run`; blocks and scores have room for whole vectors up to the last position.
        unsafe {
            for r in 0..R {
                let (t, g) = ((row + r) / group, (row + r) % group);
                let x = queries.x.add((t * self.heads + g) * size);
                for d in 0..size {
                    *scratch.queries.add(r * size + d) = *x.add(d) * self.scale;
                }
            }
            let q = Matrix {
                p: scratch.queries.cast_const(),
                row: size,
            };
            let mut block = 0;
            while S::NV >= 4 && block + 4 <= blocks {
                self.score::<S, R, 4>(q, keys, scratch, block);
                block += 4;
            }
            while block < blocks {
                self.score::<S, R, 1>(q, keys, scratch, block);
                block += 1;
            }
            let mut factors = [0.0f32; R];
            for (r, factor) in factors.iter_mut().enumerate() {
                let scores = scratch.scores.add(r * room);
                for i in limit(row + r)..blocks * LANES {
                    *scores.add(i) = f32::NEG_INFINITY;
                }
                let sum = exponentials::<S>(scores, keys.bias, blocks * LANES);
                *factor = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            }
            let mut outs = [queries.out; R];
            for (r, out) in outs.iter_mut().enumerate() {
                let (t, g) = ((row + r) / group, (row + r) % group);
                *out = out.add((t * self.heads + g) * value_size);
            }
            let p = Matrix {
                p: scratch.scores.cast_const(),
                row: room,
            };
            let mut e = 0;
            while S::NV >= 4 && e + 4 * LANES <= value_size {
                weigh::<S, R, 4, true>(p, keys, longest, &factors, &outs, e, u16::MAX);
                e += 4 * LANES;
            }
            while e + LANES <= value_size {
                weigh::<S, R, 1, true>(p, keys, longest, &factors, &outs, e, u16::MAX);
                e += LANES;
            }
            if e < value_size {
                let mask = first(value_size - e);
                weigh::<S, R, 1, false>(p, keys, longest, &factors, &outs, e, mask);
            }
        }
    }

    /// Scores of `R` queries and `W` blocks of keys from `block` on.
    #[inline(always)]
    unsafe fn score<S: Simd, const R: usize, const W: usize>(
        &self,
        q: Matrix,
        keys: &Keys,
        scratch: Scratch,
        block: usize,
    ) {
        let (size, room) = (self.size, self.room());
        // SAFETY: as `tile`.
        unsafe {
            let b = keys.keys.add(block * size * LANES);
            let mut sums = [[S::splat(0.0); W]; R];
            for d in 0..size {
                let mut k = [S::splat(0.0); W];
                for (w, k) in k.iter_mut().enumerate() {
                    *k = S::load(b.add((w * size + d) * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*q.p.add(r * q.row + d));
                    for (sum, &k) in sums.iter_mut().zip(&k) {
                        *sum = S::fma(x, k, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, &sum) in sums.iter().enumerate() {
                    S::store(scratch.scores.add(r * room + (block + w) * LANES), sum);
                }
            }
        }
    }
}

/// Rows of `row` elements.
#[derive(Clone, Copy)]
struct Matrix {
    p: *const f32,
    row: usize,
}

/// Elements `e..e + 16 * W` of the outputs of `R` rows: values times weights times `factors`. `mask`
/// holds the lanes that exist: all of them when `FULL`.
#[inline(always)]
unsafe fn weigh<S: Simd, const R: usize, const W: usize, const FULL: bool>(
    p: Matrix,
    keys: &Keys,
    positions: usize,
    factors: &[f32; R],
    outs: &[*mut f32; R],
    e: usize,
    mask: u16,
) {
    // SAFETY: as `tile`.
    unsafe {
        let mut start = 0;
        while start < positions {
            let end = positions.min(start + SPAN);
            let mut sums = [[S::splat(0.0); W]; R];
            for i in start..end {
                let row = keys.values.add(i * keys.stride + e);
                let mut v = [S::splat(0.0); W];
                for (w, v) in v.iter_mut().enumerate() {
                    *v = if FULL {
                        S::load(row.add(w * LANES))
                    } else {
                        S::load_mask(row.add(w * LANES), mask)
                    };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*p.p.add(r * p.row + i));
                    for (sum, &v) in sums.iter_mut().zip(&v) {
                        *sum = S::fma(x, v, *sum);
                    }
                }
            }
            for ((sums, &factor), &out) in sums.iter().zip(factors).zip(outs) {
                for (w, &sum) in sums.iter().enumerate() {
                    let out = out.add(e + w * LANES);
                    let mut y = S::mul(sum, S::splat(factor));
                    if start > 0 {
                        y = S::add(y, S::load_mask(out, mask));
                    }
                    S::store_mask(out, y, mask);
                }
            }
            start = end;
        }
    }
}

/// Where element `d` of the key at `position` lies in blocks.
#[inline(always)]
const fn key_at(size: usize, position: usize, d: usize) -> usize {
    (position / LANES * size + d) * LANES + position % LANES
}

#[inline(always)]
unsafe fn store_key(key: *const f32, size: usize, blocks: *mut f32, position: usize) {
    // SAFETY: the caller gives `size` elements and blocks that hold the position.
    unsafe {
        let lane = blocks.add(key_at(size, position, 0));
        for d in 0..size {
            *lane.add(d * LANES) = *key.add(d);
        }
    }
}
