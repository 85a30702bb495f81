//! Linear layers at one or few rows of input: each output is a dot product with a weight row,
//! read from where it lies, the mapped file included.

use super::Io;
use super::simd::{LANES, Simd, first};
use crate::model::Bytes;
use std::sync::Arc;

/// Rows of a weight matrix, f32 little-endian at any alignment.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Every element.
    Dense(Bytes),
    /// The bitmask encoding; `starts[r]` is where row `r` starts in `values`, in elements.
    #[allow(missing_docs)]
    Bitmask {
        mask: Bytes,
        values: Bytes,
        starts: Arc<[usize]>,
    },
}

/// A planned product `x [count, inner]` to `[count, outer]`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Linear {
    pub rows: Rows,
    /// One per output, or empty.
    pub bias: Arc<[f32]>,
    pub count: usize,
    pub inner: usize,
    pub outer: usize,
    pub clamp: (f32, f32),
}

impl Linear {
    /// Runs this member's share of the outputs.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run); and the byte lengths of `rows` fit `outer` and `inner`.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let share = io.member.share(self.outer);
        let mut n = 0;
        while n < self.count {
            // SAFETY: the plan sized input and output.
            unsafe {
                match self.count - n {
                    4.. => self.columns::<S, 4, 1>(io, n, share.clone()),
                    2..4 => self.columns::<S, 2, 2>(io, n, share.clone()),
                    _ => self.columns::<S, 1, 4>(io, n, share.clone()),
                }
            }
            n += match self.count - n {
                4.. => 4,
                2..4 => 2,
                _ => 1,
            };
        }
    }

    /// `N` input rows at once, `U` running sums each.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize, const U: usize>(
        &self,
        io: &Io<'_>,
        n: usize,
        share: std::ops::Range<usize>,
    ) {
        // SAFETY: as `run`.
        unsafe {
            let x = io.inputs[0].add(n * self.inner);
            for r in share {
                let mut sums = [[S::splat(0.0); U]; N];
                match &self.rows {
                    Rows::Dense(bytes) => {
                        let w = bytes.as_ptr().cast::<f32>().add(r * self.inner);
                        self.dot_dense::<S, N, U>(w, x, &mut sums);
                    }
                    Rows::Bitmask {
                        mask,
                        values,
                        starts,
                    } => {
                        let stride = self.inner.div_ceil(8);
                        let mask = &mask[r * stride..(r + 1) * stride];
                        let values = values.as_ptr().cast::<f32>().add(starts[r]);
                        self.dot_bitmask::<S, N, U>(mask, values, x, &mut sums);
                    }
                }
                let bias = self.bias.get(r).copied().unwrap_or(0.0);
                for (i, sums) in sums.iter().enumerate() {
                    let total = sums.iter().skip(1).fold(sums[0], |a, &b| S::add(a, b));
                    let y = S::sum(total) + bias;
                    let y = if y < self.clamp.0 { self.clamp.0 } else { y };
                    let y = if y > self.clamp.1 { self.clamp.1 } else { y };
                    *io.out.add((n + i) * self.outer + r) = y;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_dense<S: Simd, const N: usize, const U: usize>(
        &self,
        w: *const f32,
        x: *const f32,
        sums: &mut [[S::V; U]; N],
    ) {
        // SAFETY: `w` and each of the `N` rows of `x` hold `inner` elements.
        unsafe {
            let mut k = 0;
            while k + U * LANES <= self.inner {
                for u in 0..U {
                    let v = S::load(w.add(k + u * LANES));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        sums[u] =
                            S::fma(v, S::load(x.add(i * self.inner + k + u * LANES)), sums[u]);
                    }
                }
                k += U * LANES;
            }
            while k < self.inner {
                let mask = first(self.inner - k);
                let v = S::load_mask(w.add(k), mask);
                for (i, sums) in sums.iter_mut().enumerate() {
                    sums[0] = S::fma(v, S::load_mask(x.add(i * self.inner + k), mask), sums[0]);
                }
                k += LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_bitmask<S: Simd, const N: usize, const U: usize>(
        &self,
        mask: &[u8],
        mut values: *const f32,
        x: *const f32,
        sums: &mut [[S::V; U]; N],
    ) {
        let (pairs, tail) = mask.as_chunks::<2>();
        let whole = self.inner / LANES;
        // SAFETY: the mask counts the row's values; a set bit's column lies within `inner`.
        unsafe {
            let (groups, rest) = pairs[..whole].as_chunks::<U>();
            let mut at = x;
            for group in groups {
                for u in 0..U {
                    let bits = u16::from_le_bytes(group[u]);
                    let v = S::expand(values, bits);
                    values = values.add(bits.count_ones() as usize);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        sums[u] = S::fma(v, S::load(at.add(i * self.inner)), sums[u]);
                    }
                    at = at.add(LANES);
                }
            }
            for pair in rest {
                let bits = u16::from_le_bytes(*pair);
                let v = S::expand(values, bits);
                values = values.add(bits.count_ones() as usize);
                for (i, sums) in sums.iter_mut().enumerate() {
                    sums[0] = S::fma(v, S::load(at.add(i * self.inner)), sums[0]);
                }
                at = at.add(LANES);
            }
            let bits = match (pairs.get(whole), tail) {
                (Some(pair), _) => u16::from_le_bytes(*pair),
                (None, [byte]) => u16::from(*byte),
                _ => 0,
            };
            if bits != 0 {
                let v = S::expand(values, bits);
                for (i, sums) in sums.iter_mut().enumerate() {
                    let p = x.add(i * self.inner + whole * LANES);
                    sums[0] = S::fma(v, S::load_mask(p, bits), sums[0]);
                }
            }
        }
    }
}
