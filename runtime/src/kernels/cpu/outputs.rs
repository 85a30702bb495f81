//! Dense linear layers over weights packed by outputs: a vector holds sixteen outputs of one input, so
//! that the activations are read and the sums are written as they lie, at any number of columns.
//!
//! A panel of outputs is used a chunk of inputs at a time, while it stays in the first-level cache, by
//! blocks of columns; the panel's sums lie in scratch until the last chunk.

use super::Io;
use super::room::Room;
use super::simd::{LANES, Simd, first};
use super::weights::MatrixRows;
use crate::parallel;
use std::ops::Range;
use std::sync::Arc;

/// Columns of a register tile.
const COLUMNS: usize = 6;

/// Most columns between which a panel's chunk and sums stay in the first-level cache.
const GROUP: usize = 11 * COLUMNS;

/// Inputs of a chunk.
const DEPTH: usize = 128;

/// How far ahead of use, in elements, weights are asked for.
const AHEAD: usize = 2048;

/// Weights `[outer, inner]` as panels `[inner, width]` of outputs; those behind the last are 0.
#[derive(Debug)]
pub struct OutputPanels {
    outer: usize,
    inner: usize,
    /// Vectors of a panel.
    vectors: usize,
    values: Room<f32>,
    bias: Vec<f32>,
}

impl OutputPanels {
    /// Packs rows. The bias has a value for each, or none.
    pub fn pack(
        outer: usize,
        inner: usize,
        many_registers: bool,
        bias: Vec<f32>,
        rows: &impl MatrixRows,
    ) -> OutputPanels {
        let vectors = if many_registers { 4 } else { 1 };
        let width = vectors * LANES;
        let mut values = Room::new(outer.div_ceil(width) * width * inner);
        parallel::chunks_mut(&mut values, (inner * width).max(1), |p, out| {
            for r in p * width..outer.min((p + 1) * width) {
                rows.visit(r, 0..inner, |k, v| out[k * width + r % width] = v);
            }
        });
        OutputPanels {
            outer,
            inner,
            vectors,
            values,
            bias,
        }
    }

    /// Resident bytes.
    pub fn byte_len(&self) -> usize {
        (self.values.len() + self.bias.len()) * 4
    }
}

/// A planned product `x [count, inner]` to `[count, outer]`; a second input is added to it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Outputs {
    pub weights: Arc<OutputPanels>,
    pub count: usize,
    pub clamp: (f32, f32),
}

impl Outputs {
    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        match self.count <= COLUMNS {
            true => 0,
            false => self.count.min(GROUP) * self.weights.vectors * LANES,
        }
    }

    /// Runs this member's share of the outputs.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let w = &*self.weights;
        // Threads share pairs of vectors, of which a panel has two or, if it has one vector, none.
        let unit = w.vectors.min(2);
        let vectors = w.outer.div_ceil(w.vectors * LANES) * w.vectors;
        let used = w.outer.div_ceil(unit * LANES);
        let share = io.member.share(used);
        let (mut at, end) = (share.start * unit, (share.end * unit).min(vectors));
        let groups = self.count.div_ceil(GROUP);
        // Few columns have one block, and need no sums between chunks.
        let depth = match self.count <= COLUMNS {
            true => w.inner.max(1),
            false => DEPTH,
        };
        while at < end {
            let panel = at / w.vectors;
            let next = end.min((panel + 1) * w.vectors);
            for g in 0..groups {
                let (from, to) = (g * self.count / groups, (g + 1) * self.count / groups);
                let blocks = (to - from).div_ceil(COLUMNS);
                for k in (0..w.inner.max(1)).step_by(depth) {
                    let tile = Tile {
                        product: self,
                        io,
                        panel,
                        first: at % w.vectors,
                        vectors: next - at,
                        inputs: k..w.inner.min(k + depth),
                    };
                    for b in 0..blocks {
                        let columns =
                            from + b * (to - from) / blocks..from + (b + 1) * (to - from) / blocks;
                        // SAFETY: the caller's promise.
                        unsafe { tile.run::<S>(from, columns) }
                    }
                }
            }
            at = next;
        }
    }
}

/// A chunk of a panel, or of some of its vectors.
struct Tile<'t> {
    product: &'t Outputs,
    io: &'t Io<'t>,
    panel: usize,
    first: usize,
    vectors: usize,
    inputs: Range<usize>,
}

impl Tile<'_> {
    /// The columns of one register tile; `group` is where those with sums in scratch start.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, group: usize, columns: Range<usize>) {
        // SAFETY: the caller's promise; a panel has four vectors or one.
        unsafe {
            match (S::MANY, self.vectors) {
                (true, 4) => self.columns::<S, 4>(group, columns),
                (true, 2) => self.columns::<S, 2>(group, columns),
                _ => self.columns::<S, 1>(group, columns),
            }
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, const Q: usize>(&self, group: usize, columns: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            match columns.len() {
                1 => self.product::<S, 1, Q>(group, columns.start),
                2 => self.product::<S, 2, Q>(group, columns.start),
                3 => self.product::<S, 3, Q>(group, columns.start),
                4 => self.product::<S, 4, Q>(group, columns.start),
                5 => self.product::<S, 5, Q>(group, columns.start),
                _ => self.product::<S, 6, Q>(group, columns.start),
            }
        }
    }

    #[inline(always)]
    unsafe fn product<S: Simd, const N: usize, const Q: usize>(&self, group: usize, column: usize) {
        let weights = &*self.product.weights;
        let (inner, width) = (weights.inner, weights.vectors * LANES);
        let offset = self.first * LANES;
        // SAFETY: panels hold `inner` rows, the input `N` more columns, the scratch a group's sums.
        unsafe {
            let start = (self.panel * inner + self.inputs.start) * width + offset;
            let mut w = weights.values.as_ptr().add(start);
            let x = self.io.inputs[0].add(column * inner + self.inputs.start);
            let partial = self
                .io
                .scratch
                .wrapping_add((column - group) * width + offset);
            let mut sums = [[S::splat(0.0); Q]; N];
            if self.inputs.start > 0 {
                for (n, sums) in sums.iter_mut().enumerate() {
                    for (q, sum) in sums.iter_mut().enumerate() {
                        *sum = S::load(partial.add(n * width + q * LANES));
                    }
                }
            }
            for k in 0..self.inputs.len() {
                let mut line = [S::splat(0.0); Q];
                for (q, line) in line.iter_mut().enumerate() {
                    *line = S::load(w.add(q * LANES));
                    S::prefetch(w.wrapping_add(AHEAD + q * LANES).cast());
                }
                for (n, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*x.add(n * inner + k));
                    for (sum, w) in sums.iter_mut().zip(line) {
                        *sum = S::fma(x, w, *sum);
                    }
                }
                w = w.add(width);
            }
            if self.inputs.end < inner {
                for (n, sums) in sums.into_iter().enumerate() {
                    for (q, sum) in sums.into_iter().enumerate() {
                        S::store(partial.add(n * width + q * LANES), sum);
                    }
                }
                return;
            }
            self.finish::<S, N, Q>(column, self.panel * width + offset, sums);
        }
    }

    /// Finishes the sums of outputs `at..` and writes them.
    #[inline(always)]
    unsafe fn finish<S: Simd, const N: usize, const Q: usize>(
        &self,
        column: usize,
        at: usize,
        sums: [[S::V; Q]; N],
    ) {
        let weights = &*self.product.weights;
        let (low, high) = self.product.clamp;
        for (n, sums) in sums.into_iter().enumerate() {
            for (q, sum) in sums.into_iter().enumerate() {
                let at = at + q * LANES;
                let mask = first(weights.outer.saturating_sub(at));
                let to = (column + n) * weights.outer + at;
                // SAFETY: only outputs that exist are read and written.
                unsafe {
                    let mut y = sum;
                    if !weights.bias.is_empty() {
                        let bias = weights.bias.as_ptr().wrapping_add(at);
                        y = S::add(y, S::load_mask(bias, mask));
                    }
                    if let Some(residual) = self.io.inputs.get(1) {
                        y = S::add(y, S::load_mask(residual.wrapping_add(to), mask));
                    }
                    y = S::min(S::splat(high), S::max(S::splat(low), y));
                    S::store_mask(self.io.out.wrapping_add(to), y, mask);
                }
            }
        }
    }
}
