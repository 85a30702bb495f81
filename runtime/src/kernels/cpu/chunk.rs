//! Linear layers at many columns from the model's own bytes: a block of weight rows is expanded to
//! f32 in the first-level cache, a chunk of the inner dimension at a time, and used for all columns.
//!
//! Columns come in passes of up to a few hundred. A pass packs its activations once, as panels of up
//! to 64 columns `[inner, columns]`; each block of rows keeps its sums in scratch until the last chunk
//! and is then written out, transposed. Weights of which two of each four columns are stored are not expanded:
//! see `select`.

mod select;

use super::rows::{Cursor, Rows, Source, Visit};
use super::simd::{Bf16, Element, Kind, LANES, Simd, Task, first};
use super::weights::PANEL;
use super::{Io, l1_bytes};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Most weight rows of a block, and half of them; every register tile's rows divide both.
const BLOCK: usize = 48;
const SMALL_BLOCK: usize = 24;

/// Elements between the rows of an expanded block; the longest chunk.
const STRIDE: usize = 128;

/// Vectors of a panel.
const VECTORS: usize = PANEL / LANES;

/// Columns of a pass: at least, at most, and the packed elements that decide between.
const PASS: (usize, usize) = (2 * PANEL, 4 * PANEL);
const PASS_ELEMENTS: usize = 192 * 1024;

/// A planned product `x [count, inner]` to `[count, outer]`; a second input is added to it.
#[derive(Clone, Debug)]
pub struct Chunk {
    rows: Rows,
    /// One per output, or empty.
    bias: Arc<[f32]>,
    count: usize,
    tokens: bool,
    /// Inputs are rounded to bfloat16.
    rounded: bool,
    clamp: (f32, f32),
    /// Inner elements, or pairs of them, that are expanded at a time.
    depth: usize,
    /// Most columns of a pass.
    pass: usize,
}

impl Chunk {
    /// A product over `count` columns. With `tokens` the columns are a run's tokens: those behind
    /// the last are not computed. With `rounded` inputs are rounded to bfloat16.
    pub fn new(
        rows: Rows,
        bias: Arc<[f32]>,
        count: usize,
        tokens: bool,
        rounded: bool,
        clamp: (f32, f32),
    ) -> Chunk {
        // A panel takes half of the first-level cache.
        let depth = (l1_bytes() / 2 / (PANEL * 4)).clamp(32, STRIDE) / LANES * LANES;
        let most = PASS_ELEMENTS / rows.inner().max(1) / PANEL * PANEL;
        let pass = count.min(most.clamp(PASS.0, PASS.1));
        Chunk {
            pass: pass.next_multiple_of(LANES),
            rows,
            bias,
            count,
            tokens,
            rounded,
            clamp,
            depth,
        }
    }

    /// Whether inputs are rounded to bfloat16.
    pub fn is_rounded(&self) -> bool {
        self.rounded
    }

    /// The type of the weights.
    #[cfg(target_arch = "aarch64")]
    pub fn dtype(&self) -> crate::DType {
        self.rows.dtype()
    }

    /// Passes over the weights.
    pub fn passes(columns: usize, inner: usize) -> usize {
        let most = PASS_ELEMENTS / inner.max(1) / PANEL * PANEL;
        columns.div_ceil(most.clamp(PASS.0, PASS.1))
    }

    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        let inner = self.rows.inner();
        let lines = match self.rounded && self.rows.is_two_of_four() {
            true => inner.max(select::word_lines(inner)),
            false => inner,
        };
        BLOCK * STRIDE + (BLOCK + lines) * self.pass + self.rows.scratch_len(BLOCK)
    }

    /// Runs this member's share of the outputs.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        // A long block reads the panels less often; a short one is shared out more evenly.
        let outer = self.rows.outer();
        let block = match outer >= 8 * BLOCK * io.member.size {
            true => BLOCK,
            false => SMALL_BLOCK,
        };
        let mut run = Run {
            chunk: self,
            io,
            block,
            blocks: io.member.share(outer.div_ceil(block)),
            count: io.columns(self.count, self.tokens),
        };
        // SAFETY: the caller's promise.
        unsafe { self.rows.visit::<S>(&mut run) }
    }
}

/// One member's part of a run.
struct Run<'r> {
    chunk: &'r Chunk,
    io: &'r Io<'r>,
    /// Rows of a block.
    block: usize,
    blocks: Range<usize>,
    count: usize,
}

/// Columns `first..first + count` and their panels.
struct Pass {
    first: usize,
    count: usize,
    vectors: usize,
    panels: usize,
}

impl Pass {
    /// The vectors of one panel; panels differ by one vector at most.
    #[inline(always)]
    fn panel(&self, p: usize) -> Range<usize> {
        p * self.vectors / self.panels..(p + 1) * self.vectors / self.panels
    }
}

impl<S: Simd> Visit<S> for Run<'_> {
    #[inline(always)]
    unsafe fn rows<R: Source>(&mut self) {
        if self.blocks.is_empty() || self.count == 0 {
            return;
        }
        let passes = self.count.div_ceil(self.chunk.pass);
        let vectors = self.count.div_ceil(LANES);
        for i in 0..passes {
            let (from, to) = (i * vectors / passes, (i + 1) * vectors / passes);
            let first = from * LANES;
            let pass = Pass {
                first,
                count: self.count.min(to * LANES) - first,
                vectors: to - from,
                panels: (to - from).div_ceil(VECTORS),
            };
            // SAFETY: the caller's promise; even passes are no longer than the longest one.
            unsafe {
                match self.chunk.rounded && has_words::<S, R>() {
                    true => S::call(PassOver::<R, true>(self, &pass, PhantomData)),
                    false if S::ROUNDED => {
                        unreachable!("a kernel without products of rounded inputs")
                    }
                    false => S::call(PassOver::<R, false>(self, &pass, PhantomData)),
                }
            }
        }
    }
}

/// Whether there are products of pairs of these weights. Panels are of bfloat16.
#[inline(always)]
fn has_words<S: Simd, R: Source>() -> bool {
    <R::Cursor as Cursor>::Element::KIND == Kind::Bf16 && R::Cursor::has_words::<S>()
}

/// A pass over rows of one layout.
struct PassOver<'p, R, const WORDS: bool>(&'p Run<'p>, &'p Pass, PhantomData<R>);

impl<R: Source, const WORDS: bool> Task for PassOver<'_, R, WORDS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.pass::<S, R, WORDS>(self.1) }
    }
}

impl Run<'_> {
    #[inline(always)]
    unsafe fn pass<S: Simd, R: Source, const WORDS: bool>(&self, pass: &Pass) {
        let rows = &self.chunk.rows;
        // Lines of a panel: with words of pairs of columns, with both of six pairs of each four.
        let half = R::Cursor::HALF;
        let (inner, depth) = match (WORDS, half) {
            (true, true) => (
                select::word_lines(rows.inner()),
                select::depth(self.chunk.depth, true),
            ),
            (true, false) => (rows.inner().div_ceil(2), self.chunk.depth),
            (false, true) => (rows.inner(), select::depth(self.chunk.depth, false)),
            (false, false) => (rows.inner(), self.chunk.depth),
        };
        let outer = rows.outer();
        let chunks = inner.div_ceil(depth).max(1);
        // SAFETY: the plan sized input, output and scratch; the parts of the scratch follow each other.
        unsafe {
            let weights = self.io.scratch;
            let sums = weights.add(BLOCK * STRIDE);
            let packed = sums.add(BLOCK * self.chunk.pass);
            let copy = packed.add(inner * self.chunk.pass);
            match WORDS {
                true => self.pack_words::<S, R>(pass, packed),
                false => self.pack::<S>(pass, packed),
            }
            for block in self.blocks.clone() {
                let range = block * self.block..outer.min((block + 1) * self.block);
                let next = range.end.min(outer)..outer.min(range.end + self.block);
                let source = R::of(rows, range.clone(), copy);
                let mut cursors: [R::Cursor; BLOCK] =
                    std::array::from_fn(|r| source.row((range.start + r).min(range.end - 1)));
                for chunk in 0..chunks {
                    let from = chunk * depth;
                    let len = depth.min(inner - from);
                    R::prefetch::<S>(rows, next.clone(), chunk, chunks);
                    let filled = match half {
                        true => range.len().next_multiple_of(select::ROWS),
                        false => range.len(),
                    };
                    for (r, cursor) in cursors.iter_mut().enumerate().take(filled) {
                        let stride = if half { select::stride(WORDS) } else { STRIDE };
                        let out = weights.add(r * stride);
                        match (WORDS, R::Cursor::HALF) {
                            (_, true) => select::entries::<S, R::Cursor, WORDS>(cursor, len, out),
                            (true, _) => {
                                let len = (2 * len).min(rows.inner() - 2 * from);
                                expand_words::<S, R::Cursor>(cursor, len, out);
                            }
                            (false, _) => expand::<S, R::Cursor>(cursor, len, out),
                        }
                    }
                    for p in 0..pass.panels {
                        let columns = pass.panel(p);
                        let panel =
                            packed.add((columns.start * inner + from * columns.len()) * LANES);
                        let sums = sums.add(columns.start * LANES * BLOCK);
                        let tile = Tile {
                            weights,
                            panel,
                            sums,
                            rows: range.len(),
                            depth: len,
                            first: chunk == 0,
                        };
                        if R::Cursor::HALF {
                            tile.select::<S, WORDS>(columns.len());
                            continue;
                        }
                        match (S::MANY, columns.len()) {
                            (true, 1) => tile.block::<S, 12, 1, 1, WORDS>(),
                            (true, 2) => tile.block::<S, 12, 2, 2, WORDS>(),
                            (true, 3) => tile.block::<S, 8, 3, 3, WORDS>(),
                            (true, _) => tile.block::<S, 6, 4, 4, WORDS>(),
                            (false, 1) => tile.block::<S, 6, 1, 1, WORDS>(),
                            (false, 2) => tile.block::<S, 6, 1, 2, WORDS>(),
                            (false, 3) => tile.block::<S, 6, 1, 3, WORDS>(),
                            (false, _) => tile.block::<S, 6, 1, 4, WORDS>(),
                        }
                    }
                }
                self.write::<S>(pass, range, sums);
            }
        }
    }

    /// Panels of the pass: `[inner, 16 * vectors]` each, columns that are not there as 0.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, pass: &Pass, packed: *mut f32) {
        let inner = self.chunk.rows.inner();
        for p in 0..pass.panels {
            let columns = pass.panel(p);
            let width = columns.len() * LANES;
            for v in columns.clone() {
                let there = pass.count - v * LANES;
                // SAFETY: only columns that exist are read; the panel holds `inner` rows.
                unsafe {
                    let x = self.io.inputs[0].add((pass.first + v * LANES) * inner);
                    let out =
                        packed.add(columns.start * inner * LANES + (v - columns.start) * LANES);
                    let mut k = 0;
                    while k < inner {
                        let left = LANES.min(inner - k);
                        let mut rows: [S::V; LANES] = std::array::from_fn(|n| match n < there {
                            true if left == LANES => S::load(x.add(n * inner + k)),
                            true => S::load_mask(x.add(n * inner + k), first(left)),
                            false => S::splat(0.0),
                        });
                        if self.chunk.rounded {
                            rows = rows.map(|row| S::round(row));
                        }
                        let lines = S::transpose(rows);
                        for (i, line) in lines.into_iter().enumerate().take(left) {
                            S::store(out.add((k + i) * width), line);
                        }
                        k += LANES;
                    }
                }
            }
        }
    }

    /// The same of bfloat16 words: a line holds two inner elements of every column.
    #[inline(always)]
    unsafe fn pack_words<S: Simd, R: Source>(&self, pass: &Pass, packed: *mut f32) {
        let inner = self.chunk.rows.inner();
        let pairs = inner.div_ceil(2);
        let all = if R::Cursor::HALF {
            select::word_lines(inner)
        } else {
            pairs
        };
        for p in 0..pass.panels {
            let columns = pass.panel(p);
            let width = columns.len() * LANES;
            for v in columns.clone() {
                let there = pass.count - v * LANES;
                // SAFETY: as `pack`, with half as many lines.
                unsafe {
                    let x = self.io.inputs[0].add((pass.first + v * LANES) * inner);
                    let out = packed.add(columns.start * all * LANES + (v - columns.start) * LANES);
                    for k in (0..pairs).step_by(LANES) {
                        let left = inner - 2 * k;
                        let high = left.saturating_sub(LANES);
                        let mut rows = [S::splat(0.0); LANES];
                        for (n, words) in rows.iter_mut().enumerate().take(there) {
                            let row = x.add(n * inner + 2 * k);
                            *words = S::round_words::<Bf16>(
                                S::load_mask(row, first(left)),
                                S::load_mask(row.wrapping_add(LANES), first(high)),
                            );
                        }
                        let lines = S::transpose(rows);
                        if R::Cursor::HALF {
                            let out = out.add(select::word_lines(2 * k) * width);
                            select::store_pairs::<S>(&lines[..LANES.min(pairs - k)], out, width);
                            continue;
                        }
                        for (i, line) in lines.into_iter().enumerate().take(pairs - k) {
                            S::store(out.add((k + i) * width), line);
                        }
                    }
                }
            }
        }
    }

    /// Finishes a block's sums and writes them to the output.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, pass: &Pass, rows: Range<usize>, sums: *const f32) {
        let outer = self.chunk.rows.outer();
        let bias = &self.chunk.bias;
        for p in 0..pass.panels {
            let columns = pass.panel(p);
            let width = columns.len() * LANES;
            for v in columns.clone() {
                for at in rows.clone().step_by(LANES) {
                    let left = LANES.min(rows.end - at);
                    // SAFETY: the block's sums lie in scratch; only rows and columns that exist are
                    // read elsewhere or written.
                    unsafe {
                        let from = sums
                            .add(columns.start * LANES * BLOCK + (v - columns.start) * LANES)
                            .add((at - rows.start) * width);
                        let lines: [S::V; LANES] = std::array::from_fn(|i| match i < left {
                            true => S::load(from.add(i * width)),
                            false => S::splat(0.0),
                        });
                        let lines = S::transpose(lines);
                        let mask = first(left);
                        let add = match bias.is_empty() {
                            true => S::splat(0.0),
                            false => S::load_mask(bias.as_ptr().add(at), mask),
                        };
                        let (low, high) =
                            (S::splat(self.chunk.clamp.0), S::splat(self.chunk.clamp.1));
                        let there = LANES.min(pass.count - v * LANES);
                        for (n, line) in lines.into_iter().enumerate().take(there) {
                            let offset = (pass.first + v * LANES + n) * outer + at;
                            let mut y = S::add(line, add);
                            if let Some(residual) = self.io.inputs.get(1) {
                                y = S::add(y, S::load_mask(residual.add(offset), mask));
                            }
                            y = S::min(high, S::max(low, y));
                            S::store_mask(self.io.out.add(offset), y, mask);
                        }
                    }
                }
            }
        }
    }
}

/// The next `len` weights of a row.
#[inline(always)]
unsafe fn expand<S: Simd, C: Cursor>(cursor: &mut C, len: usize, out: *mut f32) {
    // SAFETY: the row has that many more weights; a chunk is whole vectors but for the row's end.
    unsafe {
        let mut k = 0;
        while k + LANES <= len {
            S::store(out.add(k), cursor.next::<S>());
            k += LANES;
        }
        if k < len {
            S::store(out.add(k), cursor.rest::<S>(len - k));
        }
    }
}

/// The next `len` weights of a row as words; the last vector is filled up with zeros.
#[inline(always)]
unsafe fn expand_words<S: Simd, C: Cursor>(cursor: &mut C, len: usize, out: *mut f32) {
    for k in (0..len).step_by(2 * LANES) {
        // SAFETY: as `expand`.
        unsafe { S::store(out.add(k / 2), cursor.words::<S>((len - k).min(2 * LANES))) }
    }
}

/// An expanded block times a chunk of a panel.
struct Tile {
    weights: *const f32,
    panel: *const f32,
    sums: *mut f32,
    rows: usize,
    depth: usize,
    /// Sums start at 0.
    first: bool,
}

impl Tile {
    /// Register tiles of `M` rows and `Q` vectors over a panel of `W` vectors.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize, const Q: usize, const W: usize, const WORDS: bool>(
        &self,
    ) {
        for row in (0..self.rows).step_by(M) {
            for v in (0..W).step_by(Q) {
                // SAFETY: `M` divides the block, whose rows behind the last hold any numbers.
                unsafe { self.product::<S, M, Q, W, WORDS>(row, v * LANES) }
            }
        }
    }

    #[inline(always)]
    unsafe fn product<
        S: Simd,
        const M: usize,
        const Q: usize,
        const W: usize,
        const WORDS: bool,
    >(
        &self,
        row: usize,
        column: usize,
    ) {
        // SAFETY: as `block`.
        unsafe {
            let at = self.sums.add(row * W * LANES + column);
            let mut sums: [[S::V; Q]; M] = std::array::from_fn(|m| {
                std::array::from_fn(|q| match self.first {
                    true => S::splat(0.0),
                    false => S::load(at.add(m * W * LANES + q * LANES)),
                })
            });
            let mut w = self.weights.add(row * STRIDE);
            let mut x = self.panel.add(column);
            for _ in 0..self.depth {
                let line: [S::V; Q] = std::array::from_fn(|q| S::load(x.add(q * LANES)));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let weight = S::splat(*w.add(m * STRIDE));
                    for (sum, x) in sums.iter_mut().zip(line) {
                        *sum = match WORDS {
                            true => S::dot::<Bf16>(weight, x, *sum),
                            false => S::fma(weight, x, *sum),
                        };
                    }
                }
                x = x.add(W * LANES);
                w = w.add(1);
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (q, sum) in sums.into_iter().enumerate() {
                    S::store(at.add(m * W * LANES + q * LANES), sum);
                }
            }
        }
    }
}
