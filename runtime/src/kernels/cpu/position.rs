//! What depends on a token's position: rotations and learned position vectors.

use super::gather::Data;
use super::simd::{LANES, Simd, first};
use super::{Extent, Io};
use std::sync::Arc;

/// Cosines and sines of every position, `pairs` of each.
#[derive(Debug)]
pub struct Angles {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// The angles `position * frequency` of the first `positions` positions, made in f64.
    pub fn new(frequencies: &[f32], scale: f32, positions: usize) -> Angles {
        let count = positions * frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for p in 0..positions {
            for f in frequencies {
                let (s, c) = (p as f64 * f64::from(*f)).sin_cos();
                cos.push((c * f64::from(scale)) as f32);
                sin.push((s * f64::from(scale)) as f32);
            }
        }
        Angles {
            pairs: frequencies.len(),
            cos,
            sin,
        }
    }

    /// Pairs, cosines and sines.
    #[cfg(feature = "cuda")]
    pub fn tables(&self) -> (usize, &[f32], &[f32]) {
        (self.pairs, &self.cos, &self.sin)
    }

    /// Bytes held.
    pub fn byte_len(&self) -> usize {
        (self.cos.len() + self.sin.len()) * 4
    }
}

/// A planned rotation of `[batch, tokens, heads, width]`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Rotary {
    pub angles: Arc<Angles>,
    pub batch: usize,
    pub tokens: Extent,
    pub heads: usize,
    pub width: usize,
    pub interleaved: bool,
}

impl Rotary {
    /// Runs this member's share of the heads of every token.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run); and the angles reach to the run's last position.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let (pairs, width) = (self.angles.pairs, self.width);
        let tokens = self.tokens.active(&io.sequence);
        for unit in io.member.share(self.batch * tokens * self.heads) {
            let (row, head) = (unit / self.heads, unit % self.heads);
            let (n, t) = (row / tokens, row % tokens);
            let at = ((n * self.tokens.len + t) * self.heads + head) * width;
            let angle = (io.sequence.past + t) * pairs;
            let (cos, sin) = (
                &self.angles.cos[angle..angle + pairs],
                &self.angles.sin[angle..angle + pairs],
            );
            // SAFETY: a head has `width >= 2 * pairs` elements; masks end at `pairs`.
            unsafe {
                let (x, out) = (io.inputs[0].add(at), io.out.add(at));
                if self.interleaved {
                    for i in 0..pairs {
                        let (a, b) = (*x.add(2 * i), *x.add(2 * i + 1));
                        *out.add(2 * i) = a * cos[i] - b * sin[i];
                        *out.add(2 * i + 1) = b * cos[i] + a * sin[i];
                    }
                } else {
                    let mut i = 0;
                    while i < pairs {
                        let mask = first(pairs - i);
                        let (a, b) = (
                            S::load_mask(x.add(i), mask),
                            S::load_mask(x.add(pairs + i), mask),
                        );
                        let c = S::load_mask(cos.as_ptr().add(i), mask);
                        let s = S::load_mask(sin.as_ptr().add(i), mask);
                        let low = S::sub(S::mul(a, c), S::mul(b, s));
                        let high = S::fma(b, c, S::mul(a, s));
                        S::store_mask(out.add(i), low, mask);
                        S::store_mask(out.add(pairs + i), high, mask);
                        i += LANES;
                    }
                }
                for i in 2 * pairs..width {
                    *out.add(i) = *x.add(i);
                }
            }
        }
    }
}

/// A planned sum of `[batch, tokens, width]` and the rows of a table from the first position on.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PositionRows {
    pub table: Data,
    pub batch: usize,
    pub tokens: Extent,
    pub width: usize,
}

impl PositionRows {
    /// Runs this member's share of the tokens.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run); and the table reaches to the run's last position.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let (tokens, width) = (self.tokens.active(&io.sequence), self.width);
        for row in io.member.share(self.batch * tokens) {
            let (n, t) = (row / tokens, row % tokens);
            // SAFETY: the plan sized input, output and table.
            unsafe {
                let at = (n * self.tokens.len + t) * width;
                let (x, out) = (io.inputs[0].add(at), io.out.add(at));
                let start = (io.sequence.past + t) * width;
                let table = io.inputs.get(1).copied();
                self.table.read(table, start, width, out);
                let mut i = 0;
                while i < width {
                    let mask = first(width - i);
                    let v = S::load_mask(x.add(i), mask);
                    let sum = S::add(v, S::load_mask(out.add(i), mask));
                    S::store_mask(out.add(i), sum, mask);
                    i += LANES;
                }
            }
        }
    }
}
