//! Linear layers at one or few rows of input: each output is a dot product with a weight row,
//! read from where it lies, the mapped file included.

use super::Io;
use super::rows::{Cursor, Rows, Source, Visit};
use super::simd::{LANES, Simd, first};
use std::ops::Range;
use std::sync::Arc;

/// Weight rows that threads share out as one.
const SHARE: usize = 4;

/// How far ahead of use, in bytes, values of a stream of rows are asked for.
const AHEAD: usize = 2048;

/// A planned product `x [count, inner]` to `[count, outer]`; a second input is added to it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Linear {
    pub rows: Rows,
    /// One per output, or empty.
    pub bias: Arc<[f32]>,
    pub count: usize,
    /// The input's rows are a run's tokens: those behind the last are not computed.
    pub tokens: bool,
    pub clamp: (f32, f32),
}

impl Linear {
    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        self.rows.scratch_len(SHARE) + self.count * self.rows.inner()
    }

    /// How far ahead of use, in bytes, values are asked for: some blocks of rows, or within long rows.
    fn ahead(&self, block: usize) -> usize {
        let rows = &self.rows;
        let row = rows.stored() * rows.dtype().size() / rows.outer().max(1);
        let block = (block * row).max(1);
        match row {
            ..4096 => block * 8192usize.div_ceil(block),
            _ => 1024,
        }
    }

    /// Runs this member's share of the outputs.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let outer = self.rows.outer();
        let share = io.member.share(outer.div_ceil(SHARE));
        let mut run = Run {
            linear: self,
            io,
            x: io.inputs[0],
            share: share.start * SHARE..outer.min(share.end * SHARE),
            count: io.columns(self.count, self.tokens),
        };
        // SAFETY: the caller's promise.
        unsafe { self.rows.visit::<S>(&mut run) }
    }
}

/// One member's part of a run.
struct Run<'r> {
    linear: &'r Linear,
    io: &'r Io<'r>,
    /// The input's rows.
    x: *const f32,
    share: Range<usize>,
    count: usize,
}

impl<S: Simd> Visit<S> for Run<'_> {
    #[inline(always)]
    unsafe fn rows<R: Source>(&mut self) {
        if R::Cursor::has_pairs::<S>() {
            // SAFETY: the scratch was sized for it.
            unsafe { self.split_pairs::<S>() }
        }
        // SAFETY: the caller's promise. The register tile is as large as the registers allow.
        unsafe {
            match (S::MANY, self.count) {
                (true, 1) => self.streams::<S, R, 4, 1, 2>(),
                (true, 2) => self.streams::<S, R, 4, 2, 1>(),
                (true, 3..=4) => self.streams::<S, R, 4, 4, 1>(),
                (true, _) => self.streams::<S, R, 3, 8, 1>(),
                (false, 1) => self.streams::<S, R, 2, 1, 2>(),
                (false, 2) => self.streams::<S, R, 2, 2, 1>(),
                (false, _) => self.streams::<S, R, 1, 4, 1>(),
            }
        }
    }
}

impl Run<'_> {
    /// Takes the input from scratch, where the even elements of each 32 come before the odd ones.
    #[inline(always)]
    unsafe fn split_pairs<S: Simd>(&mut self) {
        let rows = &self.linear.rows;
        let inner = rows.inner();
        // SAFETY: the scratch holds a copy of the input behind that of a block of rows.
        unsafe {
            let copy = self.io.scratch.add(rows.scratch_len(SHARE));
            for n in 0..self.count {
                let (x, out) = (self.x.add(n * inner), copy.add(n * inner));
                let mut k = 0;
                while k + 2 * LANES <= inner {
                    S::store(out.add(k), S::load_even(x.add(k), LANES));
                    S::store(out.add(k + LANES), S::load_even(x.add(k + 1), LANES));
                    k += 2 * LANES;
                }
                std::ptr::copy_nonoverlapping(x.add(k), out.add(k), inner - k);
            }
            self.x = copy;
        }
    }

    /// `M` weight rows and `N` input rows at once, `U` running sums for each pair. Rows come from `M`
    /// streams far apart, each of which the CPU sees through and reads ahead.
    #[inline(always)]
    unsafe fn streams<S: Simd, R: Source, const M: usize, const N: usize, const U: usize>(&self) {
        let rows = &self.linear.rows;
        let Range { start, end } = self.share;
        let part = end.min(rows.whole()).saturating_sub(start) / M;
        // SAFETY: the plan sized input, output and scratch; the streams lie in the whole rows.
        unsafe {
            let source = R::whole(rows);
            for row in start..start + part {
                let at: [usize; M] = std::array::from_fn(|m| row + m * part);
                self.tile::<S, R, M, N, U>(&source, at, M, AHEAD);
            }
            self.blocks::<S, R, M, N, U>(start + M * part..end);
        }
    }

    /// The same for rows that follow each other.
    #[inline(always)]
    unsafe fn blocks<S: Simd, R: Source, const M: usize, const N: usize, const U: usize>(
        &self,
        rows: Range<usize>,
    ) {
        let ahead = self.linear.ahead(M);
        let mut row = rows.start;
        while row < rows.end {
            let end = rows.end.min(row + M);
            // SAFETY: the plan sized input, output and scratch.
            unsafe {
                let source = R::of(&self.linear.rows, row..end, self.io.scratch);
                // Rows that are not there repeat the last one.
                let at = std::array::from_fn(|m| (row + m).min(end - 1));
                self.tile::<S, R, M, N, U>(&source, at, end - row, ahead);
            }
            row = end;
        }
    }

    /// The first `there` of rows `at`, times every input row.
    #[inline(always)]
    unsafe fn tile<S: Simd, R: Source, const M: usize, const N: usize, const U: usize>(
        &self,
        source: &R,
        at: [usize; M],
        there: usize,
        ahead: usize,
    ) {
        let inner = self.linear.rows.inner();
        let mut n = 0;
        while n < self.count {
            let last = self.count - n - 1;
            // SAFETY: the plan sized input and output; columns that are not there repeat the last one.
            unsafe {
                let w: [R::Cursor; M] = std::array::from_fn(|m| source.row(at[m]));
                let x: [*const f32; N] =
                    std::array::from_fn(|i| self.x.add((n + i.min(last)) * inner));
                let sums = dot::<S, R::Cursor, M, N, U>(w, x, inner, ahead);
                let mut totals = [[0.0; N]; M];
                let flat = totals.as_flattened_mut();
                for (totals, sums) in flat.chunks_mut(4).zip(sums.as_flattened().chunks(4)) {
                    match sums {
                        &[a, b, c, d] => totals.copy_from_slice(&S::sum4([a, b, c, d])),
                        _ => totals
                            .iter_mut()
                            .zip(sums)
                            .for_each(|(t, v)| *t = S::sum(*v)),
                    }
                }
                for (&row, totals) in at.iter().zip(&totals).take(there) {
                    for (i, total) in totals.iter().enumerate().take(last + 1) {
                        self.finish(row, n + i, *total);
                    }
                }
            }
            n += N;
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, row: usize, column: usize, sum: f32) {
        let at = column * self.linear.rows.outer() + row;
        let mut y = sum + self.linear.bias.get(row).copied().unwrap_or(0.0);
        // SAFETY: the plan sized the output and what is added to it.
        unsafe {
            if let Some(residual) = self.io.inputs.get(1) {
                y += *residual.add(at);
            }
            *self.io.out.add(at) = clamp(y, self.linear.clamp);
        }
    }
}

/// `y` between the limits; NaN stays NaN.
#[inline(always)]
fn clamp(y: f32, limits: (f32, f32)) -> f32 {
    let y = if y < limits.0 { limits.0 } else { y };
    if y > limits.1 { limits.1 } else { y }
}

#[inline(always)]
unsafe fn dot<S: Simd, C: Cursor, const M: usize, const N: usize, const U: usize>(
    mut w: [C; M],
    x: [*const f32; N],
    inner: usize,
    ahead: usize,
) -> [[S::V; N]; M] {
    // SAFETY: the rows of weights and of `x` hold `inner` elements.
    unsafe {
        let mut sums = [[[S::splat(0.0); N]; M]; U];
        let mut k = 0;
        while C::has_pairs::<S>() && k + 2 * LANES <= inner {
            for w in &w {
                w.prefetch::<S>(ahead);
            }
            let v: [(S::V, S::V); M] = std::array::from_fn(|m| w[m].next_pairs::<S>());
            for i in 0..N {
                let (even, odd) = (S::load(x[i].add(k)), S::load(x[i].add(k + LANES)));
                for m in 0..M {
                    sums[0][m][i] = S::fma(v[m].0, even, sums[0][m][i]);
                    sums[U - 1][m][i] = S::fma(v[m].1, odd, sums[U - 1][m][i]);
                }
            }
            k += 2 * LANES;
        }
        while k + U * LANES <= inner {
            for w in &w {
                w.prefetch::<S>(ahead);
            }
            for (u, sums) in sums.iter_mut().enumerate() {
                let v: [S::V; M] = std::array::from_fn(|m| w[m].next::<S>());
                for i in 0..N {
                    let x = S::load(x[i].add(k + u * LANES));
                    for m in 0..M {
                        sums[m][i] = S::fma(v[m], x, sums[m][i]);
                    }
                }
            }
            k += U * LANES;
        }
        while k < inner {
            let left = inner - k;
            for m in 0..M {
                let v = if left >= LANES {
                    w[m].next::<S>()
                } else {
                    w[m].rest::<S>(left)
                };
                for i in 0..N {
                    let x = S::load_mask(x[i].add(k), first(left));
                    sums[0][m][i] = S::fma(v, x, sums[0][m][i]);
                }
            }
            k += LANES;
        }
        let mut total = sums[0];
        for sums in &sums[1..] {
            for m in 0..M {
                for i in 0..N {
                    total[m][i] = S::add(total[m][i], sums[m][i]);
                }
            }
        }
        total
    }
}
