//! Sparse linear layers at few columns: sixteen weight rows at a time, each lane a row.
//!
//! A step takes one non-zero of each row at most, all from a window of the inputs that starts on a
//! vector: the window lies in two registers, and one permutation finds every lane's input. Rows advance
//! at their own pace, so that few lanes of a step are idle: the window starts at the row that is furthest behind.

use super::Io;
use super::room::Room;
use super::simd::{LANES, Simd, first};
use super::weights::MatrixRows;
use crate::parallel;
use std::ops::Range;
use std::sync::Arc;

/// Steps that are taken at once; each has sums of its own.
const UNROLL: usize = 2;

/// Vectors of a window.
const WINDOW: usize = 2;

/// Most columns that are taken at once.
const COLUMNS: usize = 8;

/// How far ahead of use, in steps, weights are asked for.
const AHEAD: usize = 64;

/// Most inputs: a window's start is stored as a vector's number.
pub const MOST_INPUTS: usize = 1 << 20;

/// Weights `[outer, inner]` as steps.
#[derive(Debug)]
pub struct LookupRows {
    outer: usize,
    inner: usize,
    nonzeros: usize,
    /// Where each slice of sixteen rows starts, in steps; then the end.
    starts: Vec<usize>,
    /// Which row each lane of each slice is, when rows were reordered.
    order: Vec<u32>,
    /// For each step: the first vector of its window.
    windows: Room<u16>,
    /// For each step and lane: an input of the window, and the weight, 0 where the lane is idle.
    inputs: Room<u8>,
    values: Room<f32>,
    bias: Vec<f32>,
}

/// A slice's steps.
#[derive(Default)]
struct Slice {
    windows: Vec<u16>,
    inputs: Vec<u8>,
    values: Vec<f32>,
}

impl LookupRows {
    /// Packs rows. The bias has a value for each, or none.
    pub fn pack(outer: usize, inner: usize, bias: Vec<f32>, rows: &impl MatrixRows) -> LookupRows {
        let count = |r: usize| {
            let mut count = 0;
            rows.visit(r, 0..inner, |_, _| count += 1);
            count
        };
        let counts: Vec<usize> = parallel::map(0..outer, count);
        let order = order(&counts);
        let slices: Vec<Slice> = parallel::map(0..outer.div_ceil(LANES), |s| {
            let mut lists: [Vec<(usize, f32)>; LANES] = Default::default();
            for (i, list) in (s * LANES..outer).zip(&mut lists) {
                let row = order.get(i).map_or(i, |r| *r as usize);
                list.reserve_exact(counts[row]);
                rows.visit(row, 0..inner, |k, v| list.push((k, v)));
            }
            Slice::pack(&lists)
        });
        let mut starts = vec![0];
        for slice in &slices {
            starts.push(starts[starts.len() - 1] + slice.windows.len());
        }
        let steps = starts[slices.len()];
        let mut rows = LookupRows {
            outer,
            inner,
            nonzeros: counts.iter().sum(),
            starts,
            order,
            windows: Room::new(steps),
            inputs: Room::new(steps * LANES),
            values: Room::new(steps * LANES),
            bias,
        };
        for (slice, &at) in slices.iter().zip(&rows.starts) {
            let end = at + slice.windows.len();
            rows.windows[at..end].copy_from_slice(&slice.windows);
            rows.inputs[at * LANES..end * LANES].copy_from_slice(&slice.inputs);
            rows.values[at * LANES..end * LANES].copy_from_slice(&slice.values);
        }
        rows
    }

    /// Resident bytes.
    pub fn byte_len(&self) -> usize {
        let steps = self.windows.len() * (2 + LANES * 5);
        steps + self.starts.len() * 8 + (self.order.len() + self.bias.len()) * 4
    }

    /// Stored non-zeros.
    pub fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// Vectors of a column of activations in scratch.
    fn vectors(&self) -> usize {
        self.inner.div_ceil(LANES) + WINDOW
    }
}

/// The order of rows, by how many non-zeros they have, where that saves a tenth of the steps; else empty.
fn order(counts: &[usize]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..counts.len() as u32).collect();
    order.sort_by_key(|&r| std::cmp::Reverse(counts[r as usize]));
    let longest = |slice: &[u32]| slice.iter().map(|&r| counts[r as usize]).max();
    let sorted: usize = order.chunks(LANES).filter_map(longest).sum();
    let as_is: usize = counts.chunks(LANES).filter_map(|c| c.iter().max()).sum();
    if 10 * as_is <= 11 * sorted {
        order.clear();
    }
    order
}

impl Slice {
    /// Packs the columns, ascending, and values of each lane's row.
    fn pack(rows: &[Vec<(usize, f32)>; LANES]) -> Slice {
        let mut slice = Slice::default();
        let mut at = [0; LANES];
        loop {
            let next = rows.iter().zip(&at).filter_map(|(row, &at)| row.get(at));
            let Some(behind) = next.map(|next| next.0).min() else {
                break;
            };
            let start = behind / LANES * LANES;
            slice.windows.push((start / LANES) as u16);
            for (row, at) in rows.iter().zip(&mut at) {
                let next = row.get(*at).filter(|next| next.0 < start + WINDOW * LANES);
                let (k, value) = next.copied().unwrap_or((start, 0.0));
                *at += usize::from(next.is_some());
                slice.inputs.push((k - start) as u8);
                slice.values.push(value);
            }
        }
        let steps = slice.windows.len().next_multiple_of(UNROLL);
        slice.windows.resize(steps, 0);
        slice.inputs.resize(steps * LANES, 0);
        slice.values.resize(steps * LANES, 0.0);
        slice
    }
}

/// A planned product `x [count, inner]` to `[count, outer]`; a second input is added to it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Lookup {
    pub weights: Arc<LookupRows>,
    pub count: usize,
    pub clamp: (f32, f32),
}

impl Lookup {
    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        self.count.min(COLUMNS).next_power_of_two() * self.weights.vectors() * LANES
    }

    /// Runs this member's share of the outputs.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let w = &*self.weights;
        // Threads share the steps, as evenly as slices allow.
        let steps = io.member.share(w.windows.len());
        let slice = |step: usize| w.starts.partition_point(|&s| s < step);
        let last = io.member.index + 1 == io.member.size;
        let end = if last {
            w.starts.len() - 1
        } else {
            slice(steps.end)
        };
        let begin = if io.member.index == 0 {
            0
        } else {
            slice(steps.start)
        };
        let slices = begin..end;
        if slices.is_empty() {
            return;
        }
        let mut n = 0;
        while n < self.count {
            let columns = Columns {
                lookup: self,
                io,
                from: n,
                count: self.count - n,
            };
            // SAFETY: the caller's promise.
            n += unsafe {
                match (self.count - n, S::MANY) {
                    (1, _) => columns.run::<S, 1>(slices.clone()),
                    (3..=4, true) => columns.run::<S, 4>(slices.clone()),
                    (5.., true) => columns.run::<S, 8>(slices.clone()),
                    _ => columns.run::<S, 2>(slices.clone()),
                }
            };
        }
    }
}

/// Some columns of a run: `count` from `from` on, those that are not there repeat the last one.
struct Columns<'r> {
    lookup: &'r Lookup,
    io: &'r Io<'r>,
    from: usize,
    count: usize,
}

impl Columns<'_> {
    /// Takes `N` columns. Returns how many it took.
    #[inline(always)]
    unsafe fn run<S: Simd, const N: usize>(&self, slices: Range<usize>) -> usize {
        let weights = &*self.lookup.weights;
        // SAFETY: the caller's promise; windows start within the activations.
        unsafe {
            self.interleave::<S, N>();
            let x = self.io.scratch.cast_const();
            let windows = weights.windows.as_ptr();
            let inputs = weights.inputs.as_ptr();
            let values = weights.values.as_ptr();
            for s in slices {
                let mut sums = [[S::splat(0.0); N]; UNROLL];
                for step in (weights.starts[s]..weights.starts[s + 1]).step_by(UNROLL) {
                    S::prefetch(inputs.wrapping_add((step + AHEAD) * LANES));
                    for (u, sums) in sums.iter_mut().enumerate() {
                        let step = step + u;
                        S::prefetch(values.wrapping_add((step + AHEAD) * LANES).cast());
                        let window = x.add(*windows.add(step) as usize * N * LANES);
                        let weight = S::load(values.add(step * LANES));
                        let found = S::lookup::<N>(window, inputs.add(step * LANES));
                        for (sum, x) in sums.iter_mut().zip(found) {
                            *sum = S::fma(weight, x, *sum);
                        }
                    }
                }
                let [mut total, other] = sums;
                for (total, other) in total.iter_mut().zip(other) {
                    *total = S::add(*total, other);
                }
                self.finish::<S, N>(s, total);
            }
        }
        N.min(self.count)
    }

    /// Puts the columns' activations into scratch: all columns' first vectors, then their second ones;
    /// zeros behind the last input.
    #[inline(always)]
    unsafe fn interleave<S: Simd, const N: usize>(&self) {
        let weights = &*self.lookup.weights;
        for n in 0..N {
            let column = self.from + n.min(self.count - 1);
            for v in 0..weights.vectors() {
                let mask = first(weights.inner.saturating_sub(v * LANES));
                // SAFETY: the scratch holds every vector; only inputs that exist are read.
                unsafe {
                    let x = self.io.inputs[0].wrapping_add(column * weights.inner + v * LANES);
                    S::store(
                        self.io.scratch.add((v * N + n) * LANES),
                        S::load_mask(x, mask),
                    );
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd, const N: usize>(&self, slice: usize, sums: [S::V; N]) {
        let weights = &*self.lookup.weights;
        let (at, outer) = (slice * LANES, weights.outer);
        let mask = first(outer - at);
        let clamp = self.lookup.clamp;
        // SAFETY: the plan sized the output and what is added to it.
        unsafe {
            let (low, high) = (S::splat(clamp.0), S::splat(clamp.1));
            for (n, mut y) in sums.into_iter().enumerate().take(self.count) {
                let column = (self.from + n) * outer;
                if weights.order.is_empty() {
                    if !weights.bias.is_empty() {
                        y = S::add(y, S::load_mask(weights.bias.as_ptr().add(at), mask));
                    }
                    if let Some(residual) = self.io.inputs.get(1) {
                        y = S::add(y, S::load_mask(residual.add(column + at), mask));
                    }
                    y = S::min(high, S::max(low, y));
                    S::store_mask(self.io.out.add(column + at), y, mask);
                    continue;
                }
                let mut lanes = [0.0; LANES];
                for (lane, &row) in weights.order[at..].iter().enumerate().take(LANES) {
                    let row = row as usize;
                    lanes[lane] = weights.bias.get(row).copied().unwrap_or(0.0);
                    if let Some(residual) = self.io.inputs.get(1) {
                        lanes[lane] += *residual.add(column + row);
                    }
                }
                y = S::add(y, S::load(lanes.as_ptr()));
                y = S::min(high, S::max(low, y));
                S::store(lanes.as_mut_ptr(), y);
                for (lane, &row) in lanes.iter().zip(&weights.order[at..]) {
                    *self.io.out.add(column + row as usize) = *lane;
                }
            }
        }
    }
}
