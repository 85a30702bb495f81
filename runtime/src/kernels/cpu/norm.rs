//! Normalization over the last axis, and means over tokens.

use super::simd::{LANES, Simd, first};
use super::{Extent, Io};

/// How a row is normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// `x / sqrt(mean(x²) + epsilon) * scale`; inputs x, scale.
    Rms(f32),
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias`; inputs x, scale, and bias if any.
    Layer(f32),
    /// `x / ‖x‖₂`; input x.
    Length,
}

/// A planned operator of this module.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Norm {
    /// Rows of `width` elements; the extent counts rows.
    Rows {
        scaling: Scaling,
        extent: Extent,
        width: usize,
    },
    /// `x / ‖x‖₂` over the middle of `[outer, axis, inner]`.
    Length {
        outer: usize,
        axis: usize,
        inner: usize,
    },
    /// Mean over the elements of the middle of `[batch, tokens, width]` whose mask is not 0.
    MaskedMean {
        batch: usize,
        tokens: Extent,
        width: usize,
    },
}

impl Norm {
    /// Runs this member's share.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        // SAFETY: the plan sized every buffer for these sizes.
        unsafe {
            match *self {
                Norm::Rows {
                    scaling,
                    extent,
                    width,
                } => {
                    let rows = extent.active(&io.sequence);
                    if rows >= io.member.size {
                        for row in io.member.share(rows) {
                            normalize::<S>(scaling, io, row, width, 0..width);
                        }
                    } else {
                        // Few rows: every member sums a row and writes its part of it.
                        let part = super::math::vectors(io.member, width);
                        for row in 0..rows {
                            normalize::<S>(scaling, io, row, width, part.clone());
                        }
                    }
                }
                Norm::Length { outer, axis, inner } => {
                    for row in io.member.share(outer * inner) {
                        let base = row / inner * axis * inner + row % inner;
                        let (x, out) = (io.inputs[0].add(base), io.out.add(base));
                        let mut sum = 0.0f64;
                        for i in 0..axis {
                            let v = f64::from(*x.add(i * inner));
                            sum += v * v;
                        }
                        let factor = if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 };
                        for i in 0..axis {
                            *out.add(i * inner) = (f64::from(*x.add(i * inner)) * factor) as f32;
                        }
                    }
                }
                Norm::MaskedMean {
                    batch,
                    tokens,
                    width,
                } => {
                    let columns = width.div_ceil(LANES);
                    let count = tokens.active(&io.sequence);
                    for unit in io.member.share(batch * columns) {
                        let (n, at) = (unit / columns, unit % columns * LANES);
                        let mask = io.inputs[1].cast::<i64>().add(n * tokens.len);
                        let x = io.inputs[0].add(n * tokens.len * width + at);
                        masked_mean::<S>(x, mask, count, width, first(width - at), {
                            io.out.add(n * width + at)
                        });
                    }
                }
            }
        }
    }
}

/// The elements `part` of a row.
#[inline(always)]
unsafe fn normalize<S: Simd>(
    scaling: Scaling,
    io: &Io<'_>,
    row: usize,
    width: usize,
    part: std::ops::Range<usize>,
) {
    // SAFETY: rows, scale and bias hold `width` elements; masks end there.
    unsafe {
        let (x, out) = (io.inputs[0].add(row * width), io.out.add(row * width));
        let (mean, factor) = match scaling {
            Scaling::Rms(epsilon) => {
                let mean = squares::<S>(x, 0.0, width) / width as f64;
                (0.0, 1.0 / (mean + f64::from(epsilon)).sqrt())
            }
            Scaling::Layer(epsilon) => {
                let mean = (sum::<S>(x, width) / width as f64) as f32;
                let variance = squares::<S>(x, mean, width) / width as f64;
                (mean, 1.0 / (variance + f64::from(epsilon)).sqrt())
            }
            Scaling::Length => {
                let sum = squares::<S>(x, 0.0, width);
                (0.0, if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 })
            }
        };
        let (mean, factor) = (S::splat(mean), S::splat(factor as f32));
        let mut i = part.start;
        while i < part.end {
            let mask = first(part.end - i);
            let v = S::load_mask(x.add(i), mask);
            let y = match scaling {
                Scaling::Length => S::mul(v, factor),
                Scaling::Rms(_) => {
                    S::mul(S::mul(v, factor), S::load_mask(io.inputs[1].add(i), mask))
                }
                Scaling::Layer(_) => {
                    let scale = S::load_mask(io.inputs[1].add(i), mask);
                    let bias = match io.inputs.get(2) {
                        Some(bias) => S::load_mask(bias.add(i), mask),
                        None => S::splat(0.0),
                    };
                    S::fma(S::mul(S::sub(v, mean), factor), scale, bias)
                }
            };
            S::store_mask(out.add(i), y, mask);
            i += LANES;
        }
    }
}

/// Elements whose sums stay in f32 before they are added in f64.
const BLOCK: usize = 1024;

/// The sum of `len` elements.
#[inline(always)]
unsafe fn sum<S: Simd>(x: *const f32, len: usize) -> f64 {
    // SAFETY: `x` has `len` elements; masks end there.
    unsafe {
        let mut total = 0.0f64;
        let mut start = 0;
        while start < len {
            let end = len.min(start + BLOCK);
            let mut sums = [S::splat(0.0); 4];
            let mut i = start;
            while i + 4 * LANES <= end {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(x.add(i + k * LANES)));
                }
                i += 4 * LANES;
            }
            while i < end {
                sums[0] = S::add(sums[0], S::load_mask(x.add(i), first(end - i)));
                i += LANES;
            }
            let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
            total += f64::from(S::sum(sum));
            start = end;
        }
        total
    }
}

/// The sum of `(x - mean)²`.
#[inline(always)]
unsafe fn squares<S: Simd>(x: *const f32, mean: f32, len: usize) -> f64 {
    // SAFETY: `x` has `len` elements; masks end there.
    unsafe {
        let shift = S::splat(mean);
        let mut total = 0.0f64;
        let mut start = 0;
        while start < len {
            let end = len.min(start + BLOCK);
            let mut sums = [S::splat(0.0); 4];
            let mut i = start;
            while i + 4 * LANES <= end {
                for (k, sum) in sums.iter_mut().enumerate() {
                    let v = S::sub(S::load(x.add(i + k * LANES)), shift);
                    *sum = S::fma(v, v, *sum);
                }
                i += 4 * LANES;
            }
            while i + LANES <= end {
                let v = S::sub(S::load(x.add(i)), shift);
                sums[0] = S::fma(v, v, sums[0]);
                i += LANES;
            }
            let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
            let mut block = S::sum(sum);
            for k in i..end {
                block += (*x.add(k) - mean) * (*x.add(k) - mean);
            }
            total += f64::from(block);
            start = end;
        }
        total
    }
}

/// The mean of the lanes `lanes` over tokens whose mask is not 0; zeros where there is none.
#[inline(always)]
unsafe fn masked_mean<S: Simd>(
    x: *const f32,
    mask: *const i64,
    tokens: usize,
    stride: usize,
    lanes: u16,
    out: *mut f32,
) {
    // SAFETY: the caller gives `tokens` rows and mask elements, and an output for the lanes.
    unsafe {
        let (mut total, mut count) = (S::splat(0.0), 0usize);
        // Short sums first, so that a long text loses no digits.
        for block in (0..tokens).step_by(32) {
            let mut sum = S::splat(0.0);
            for t in block..tokens.min(block + 32) {
                if mask.add(t).read_unaligned() != 0 {
                    sum = S::add(sum, S::load_mask(x.add(t * stride), lanes));
                    count += 1;
                }
            }
            total = S::add(total, sum);
        }
        let factor = if count > 0 { 1.0 / count as f32 } else { 0.0 };
        S::store_mask(out, S::mul(total, S::splat(factor)), lanes);
    }
}
