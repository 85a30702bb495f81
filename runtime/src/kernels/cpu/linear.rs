//! Linear layers at one or few rows of input: each output is a dot product with a weight row,
//! read from where it lies, the mapped file included.

mod product;

use super::Io;
use super::rows::{Cursor, Rows, Source, Visit};
use super::simd::{Element, LANES, Simd, Task, first};
use product::{BLOCK, BytePlan, Numbers, Product, Scaled, Words};
use std::marker::PhantomData;
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
    /// Inputs are rounded as the weights are: to bfloat16, or to signed bytes with scales.
    pub rounded: bool,
    pub clamp: (f32, f32),
}

impl Linear {
    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        let inner = self.rows.inner();
        let bytes = self
            .rows
            .group()
            .map_or(0, |group| BytePlan::new(inner, group).stride);
        self.rows.scratch_len(SHARE) + self.count * bytes.max(inner.next_multiple_of(2 * LANES))
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
            stride: self.rows.inner(),
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
    /// The input's rows, and elements from one to the next.
    x: *const f32,
    stride: usize,
    share: Range<usize>,
    count: usize,
}

impl<S: Simd> Visit<S> for Run<'_> {
    #[inline(always)]
    unsafe fn rows<R: Source>(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { S::call(RowsOf::<R>(self, PhantomData)) }
    }
}

/// The share, of rows of one layout.
struct RowsOf<'a, 'r, R>(&'a mut Run<'r>, PhantomData<R>);

impl<R: Source> Task for RowsOf<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.rows_of::<S, R>() }
    }
}

impl Run<'_> {
    #[inline(always)]
    unsafe fn rows_of<S: Simd, R: Source>(&mut self) {
        // One column of dense weights is bound by memory where vectors are wide: pairs gain nothing, and were slower.
        let pairs = S::ROUNDED || self.count > 1 || !self.linear.rows.is_dense();
        if self.linear.rounded && R::Cursor::has_words::<S>() && pairs {
            // SAFETY: the caller's promise; the scratch was sized for it.
            return unsafe {
                self.round_words::<S, <R::Cursor as Cursor>::Element>();
                match self.count {
                    1 if !S::MANY => self.streams::<S, R, Words, 2, 1, 2>(),
                    2 if !S::MANY => self.streams::<S, R, Words, 2, 2, 1>(),
                    _ if !S::MANY => self.streams::<S, R, Words, 1, 4, 1>(),
                    1 => self.streams::<S, R, Words, 4, 1, 2>(),
                    2 => self.streams::<S, R, Words, 4, 2, 1>(),
                    3..=4 => self.streams::<S, R, Words, 4, 4, 1>(),
                    _ => self.streams::<S, R, Words, 3, 8, 1>(),
                }
            };
        }
        if self.linear.rounded && R::Cursor::has_bytes::<S>() {
            // SAFETY: the caller's promise; the scratch was sized for it.
            return unsafe {
                self.round_bytes::<S>();
                match (self.linear.rows.group(), self.count) {
                    (Some(32), 1) if !S::MANY => self.streams::<S, R, Scaled<32>, 2, 1, 1>(),
                    (Some(32), _) if !S::MANY => self.streams::<S, R, Scaled<32>, 1, 2, 1>(),
                    (_, 1) if !S::MANY => self.streams::<S, R, Scaled<64>, 2, 1, 1>(),
                    (_, _) if !S::MANY => self.streams::<S, R, Scaled<64>, 1, 2, 1>(),
                    (Some(32), 1) => self.streams::<S, R, Scaled<32>, 4, 1, 1>(),
                    (Some(32), 2) => self.streams::<S, R, Scaled<32>, 4, 2, 1>(),
                    (Some(32), _) => self.streams::<S, R, Scaled<32>, 2, 4, 1>(),
                    (_, 1) => self.streams::<S, R, Scaled<64>, 4, 1, 1>(),
                    (_, 2) => self.streams::<S, R, Scaled<64>, 4, 2, 1>(),
                    (_, _) => self.streams::<S, R, Scaled<64>, 2, 4, 1>(),
                }
            };
        }
        if S::ROUNDED {
            unreachable!("a kernel without products of rounded inputs");
        }
        // SAFETY: the caller's promise; the scratch was sized for it. The register tile is as large as
        // the registers allow.
        unsafe {
            if self.linear.rounded {
                self.round::<S>();
            }
            if R::Cursor::has_pairs::<S>() {
                self.split_pairs::<S>();
            }
            match (S::MANY, self.count) {
                (true, 1) => self.streams::<S, R, Numbers, 4, 1, 2>(),
                (true, 2) => self.streams::<S, R, Numbers, 4, 2, 1>(),
                (true, 3..=4) => self.streams::<S, R, Numbers, 4, 4, 1>(),
                (true, _) => self.streams::<S, R, Numbers, 3, 8, 1>(),
                (false, 1) => self.streams::<S, R, Numbers, 2, 1, 2>(),
                (false, 2) => self.streams::<S, R, Numbers, 2, 2, 1>(),
                (false, _) => self.streams::<S, R, Numbers, 1, 4, 1>(),
            }
        }
    }
}

/// Rounds a row to signed bytes with a scale for each group, and back.
///
/// # Safety
/// Both hold `inner` elements.
pub(super) unsafe fn round_groups(x: *const f32, out: *mut f32, inner: usize, group: usize) {
    for from in (0..inner).step_by(group) {
        let len = group.min(inner - from);
        // SAFETY: the caller gives `inner` elements.
        unsafe {
            let part = std::slice::from_raw_parts(x.add(from), len);
            // As bits NaN is above infinity, so that it stays.
            let largest = part.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
            let largest = f32::from_bits(largest);
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (i, v) in part.iter().enumerate() {
                *out.add(from + i) = (v * inverse).round_ties_even() * (largest / 127.0);
            }
        }
    }
}

impl Run<'_> {
    /// Takes the input from scratch, where the even elements of each 32 come before the odd ones.
    #[inline(always)]
    unsafe fn split_pairs<S: Simd>(&mut self) {
        let inner = self.linear.rows.inner();
        let copy = self.copy();
        // SAFETY: the scratch holds a copy of the input; where it is one already, each 32 elements are
        // read before they are written.
        unsafe {
            for n in 0..self.count {
                let (x, out) = (self.x.add(n * inner), copy.add(n * inner));
                let mut k = 0;
                while k + 2 * LANES <= inner {
                    let even = S::load_even(x.add(k), LANES);
                    let odd = S::load_even(x.add(k + 1), LANES);
                    S::store(out.add(k), even);
                    S::store(out.add(k + LANES), odd);
                    k += 2 * LANES;
                }
                std::ptr::copy(x.add(k), out.add(k), inner - k);
            }
        }
        self.x = copy;
    }

    /// Where the scratch has room for the input, behind a block of rows.
    #[inline(always)]
    fn copy(&self) -> *mut f32 {
        let rows = &self.linear.rows;
        self.io.scratch.wrapping_add(rows.scratch_len(SHARE))
    }

    /// Takes the input from scratch, rounded as the weights are.
    #[inline(always)]
    unsafe fn round<S: Simd>(&mut self) {
        let (inner, copy) = (self.linear.rows.inner(), self.copy());
        let len = self.count * inner;
        if let Some(group) = self.linear.rows.group() {
            for n in 0..self.count {
                // SAFETY: input and scratch hold these rows.
                unsafe { round_groups(self.x.add(n * inner), copy.add(n * inner), inner, group) }
            }
            self.x = copy;
            return;
        }
        for k in (0..len).step_by(LANES) {
            // SAFETY: the scratch holds a copy of the input.
            unsafe {
                let mask = first(len - k);
                let rounded = S::round(S::load_mask(self.x.add(k), mask));
                S::store_mask(copy.add(k), rounded, mask);
            }
        }
        self.x = copy;
    }

    /// Takes the input from scratch, as words of `E`; rows are filled up to 32 with zeros.
    #[inline(always)]
    unsafe fn round_words<S: Simd, E: Element>(&mut self) {
        let (inner, copy) = (self.linear.rows.inner(), self.copy());
        let stride = inner.div_ceil(2 * LANES) * LANES;
        for n in 0..self.count {
            for k in (0..inner).step_by(2 * LANES) {
                // SAFETY: the scratch holds a copy of the input.
                unsafe {
                    let x = self.x.add(n * inner + k);
                    let low = S::load_mask(x, first(inner - k));
                    let left = (inner - k).saturating_sub(LANES);
                    let high = S::load_mask(x.wrapping_add(LANES), first(left));
                    S::store(copy.add(n * stride + k / 2), S::round_words::<E>(low, high));
                }
            }
        }
        (self.x, self.stride) = (copy, stride);
    }

    /// Takes the input from scratch, as signed bytes with scales.
    #[inline(always)]
    unsafe fn round_bytes<S: Simd>(&mut self) {
        let rows = &self.linear.rows;
        let (inner, copy) = (rows.inner(), self.copy());
        let group = rows.group().unwrap_or(BLOCK);
        let plan = BytePlan::new(inner, group);
        for n in 0..self.count {
            // SAFETY: the scratch has room for this plan of every column.
            unsafe {
                let (x, out) = (self.x.add(n * inner), copy.add(n * plan.stride));
                let scales = out.add(plan.scales);
                for i in 0..(plan.stride - plan.scales) / LANES {
                    S::store(scales.add(i * LANES), S::splat(0.0));
                }
                for block in 0..plan.blocks {
                    let left = BLOCK.min(inner - block * BLOCK);
                    let (bytes, negative, by) = S::round_bytes(x.add(block * BLOCK), left, group);
                    S::store(out.add(block * LANES), bytes);
                    let signs = out.add(plan.signs + 2 * block).cast::<u64>();
                    signs.write_unaligned(negative);
                    let first = block * BLOCK / group;
                    *scales.add(first) = by[0];
                    if group < BLOCK {
                        *scales.add(first + 1) = by[1];
                    }
                }
            }
        }
        (self.x, self.stride) = (copy, plan.stride);
    }

    /// `M` weight rows and `N` input rows at once, `U` running sums for each pair. Rows come from `M`
    /// streams far apart, each of which the CPU sees through and reads ahead.
    #[inline(always)]
    unsafe fn streams<
        S: Simd,
        R: Source,
        P: Product,
        const M: usize,
        const N: usize,
        const U: usize,
    >(
        &self,
    ) {
        let rows = &self.linear.rows;
        let Range { start, end } = self.share;
        let part = end.min(rows.whole()).saturating_sub(start) / M;
        // SAFETY: the plan sized input, output and scratch; the streams lie in the whole rows.
        unsafe {
            let source = R::whole(rows);
            for row in start..start + part {
                let at: [usize; M] = std::array::from_fn(|m| row + m * part);
                self.tile::<S, R, P, M, N, U>(&source, at, M, AHEAD);
            }
            self.blocks::<S, R, P, M, N, U>(start + M * part..end);
        }
    }

    /// The same for rows that follow each other.
    #[inline(always)]
    unsafe fn blocks<
        S: Simd,
        R: Source,
        P: Product,
        const M: usize,
        const N: usize,
        const U: usize,
    >(
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
                self.tile::<S, R, P, M, N, U>(&source, at, end - row, ahead);
            }
            row = end;
        }
    }

    /// The first `there` of rows `at`, times every input row.
    #[inline(always)]
    unsafe fn tile<
        S: Simd,
        R: Source,
        P: Product,
        const M: usize,
        const N: usize,
        const U: usize,
    >(
        &self,
        source: &R,
        at: [usize; M],
        there: usize,
        ahead: usize,
    ) {
        let mut n = 0;
        while n < self.count {
            let last = self.count - n - 1;
            // SAFETY: the plan sized input and output; columns that are not there repeat the last one.
            unsafe {
                let mut w = [source.row(at[0]); M];
                for (w, &row) in w.iter_mut().zip(&at) {
                    *w = source.row(row);
                }
                let mut x = [self.x; N];
                for (i, x) in x.iter_mut().enumerate() {
                    *x = self.x.add((n + i.min(last)) * self.stride);
                }
                let sums = P::dot::<S, R::Cursor, M, N, U>(w, x, &self.linear.rows, ahead);
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
