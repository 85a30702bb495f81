//! Depthwise convolution and pooling: a window over one plane at a time.
//!
//! A plane is copied into scratch with its padding, so that the walk itself needs no bounds; the
//! three operators differ in what they fold and in what the padding holds. Where masked loads are
//! cheap, depthwise convolutions of the usual sizes read the plane itself.

use super::Io;
use super::simd::{LANES, Simd, first};
use std::sync::Arc;

/// What a window folds its elements into.
#[derive(Clone, Debug)]
pub enum Fold {
    /// A weighted sum: `[planes, kh * kw]` weights and a bias per plane, or none.
    Depthwise(Arc<DepthwiseWeights>),
    /// The largest element.
    Max,
    /// The sum times a factor per output row and column.
    Average {
        /// Reciprocal of the rows that count, by output row.
        rows: Vec<f32>,
        /// Reciprocal of the columns that count, by output column.
        columns: Vec<f32>,
    },
}

/// Weights of a depthwise convolution, shared by sessions.
#[derive(Debug)]
pub struct DepthwiseWeights {
    /// `[channels, kh * kw]`.
    pub values: Vec<f32>,
    /// One per channel, or empty.
    pub bias: Vec<f32>,
}

/// A planned window operator over `[batch * channels]` planes.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Window {
    pub fold: Fold,
    pub batch: usize,
    /// Output channels.
    pub channels: usize,
    /// Output channels that share an input plane (a depthwise multiplier).
    pub multiplier: usize,
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top and left.
    pub pads: [usize; 2],
    pub clamp: (f32, f32),
}

/// Output rows that a step computes together, sharing loads.
const ROWS: usize = 4;

impl Window {
    /// Height and width of the padded plane: all that a whole step of vectors may touch.
    fn padded(&self) -> [usize; 2] {
        let extent = |i: usize, n: usize| {
            (n - 1) * self.strides[i] + (self.kernel[i] - 1) * self.dilations[i] + 1
        };
        let height = extent(0, self.output[0].next_multiple_of(ROWS));
        let width = extent(1, self.output[1].next_multiple_of(LANES)) + LANES;
        [
            height.max(self.input[0] + self.pads[0]),
            width.max(self.input[1] + self.pads[1] + LANES),
        ]
    }

    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        let [h, w] = self.padded();
        h * w
    }

    /// Runs this member's share of the planes.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let fill = if let Fold::Max = self.fold {
            f32::NEG_INFINITY
        } else {
            0.0
        };
        if S::MANY
            && let Fold::Depthwise(weights) = &self.fold
        {
            // SAFETY: the caller's promise.
            unsafe {
                match (self.kernel, self.strides, self.dilations) {
                    ([3, 3], [1, 1], [1, 1]) => return self.planes::<S, 3, 1>(weights, io),
                    ([3, 3], [2, 2], [1, 1]) => return self.planes::<S, 3, 2>(weights, io),
                    _ => {}
                }
            }
        }
        let [height, width] = self.padded();
        // SAFETY: the plan sized input, output and scratch for this geometry.
        unsafe {
            let mut i = 0;
            while i + LANES <= height * width {
                S::store(io.scratch.add(i), S::splat(fill));
                i += LANES;
            }
            (i..height * width).for_each(|i| *io.scratch.add(i) = fill);
            let mut loaded = usize::MAX;
            for plane in io.member.share(self.batch * self.channels) {
                let source = plane / self.multiplier;
                if source != loaded {
                    self.load::<S>(
                        io.inputs[0].add(source * self.input[0] * self.input[1]),
                        io.scratch,
                        width,
                    );
                    loaded = source;
                }
                let out = io.out.add(plane * self.output[0] * self.output[1]);
                let channel = plane % self.channels;
                match (&self.fold, self.kernel, self.strides, self.dilations) {
                    (Fold::Depthwise(w), [3, 3], [1, 1], [1, 1]) => {
                        self.depthwise::<S, 3, 1>(w, channel, io.scratch, width, out)
                    }
                    (Fold::Depthwise(w), [3, 3], [2, 2], [1, 1]) => {
                        self.depthwise::<S, 3, 2>(w, channel, io.scratch, width, out)
                    }
                    (Fold::Depthwise(w), [5, 5], [1, 1], [1, 1]) => {
                        self.depthwise::<S, 5, 1>(w, channel, io.scratch, width, out)
                    }
                    (Fold::Depthwise(w), [5, 5], [2, 2], [1, 1]) => {
                        self.depthwise::<S, 5, 2>(w, channel, io.scratch, width, out)
                    }
                    (Fold::Max, [3, 3], [2, 2], [1, 1]) => {
                        self.largest::<S, 3>(io.scratch, width, out)
                    }
                    (Fold::Max, [2, 2], [2, 2], [1, 1]) => {
                        self.largest::<S, 2>(io.scratch, width, out)
                    }
                    _ => self.any::<S>(channel, io.scratch, width, out),
                }
            }
        }
    }

    /// A member's share of the planes of a depthwise convolution, read in place.
    #[inline(always)]
    unsafe fn planes<S: Simd, const K: usize, const STRIDE: usize>(
        &self,
        weights: &DepthwiseWeights,
        io: &Io<'_>,
    ) {
        let ([h, w], [oh, ow]) = (self.input, self.output);
        for plane in io.member.share(self.batch * self.channels) {
            // SAFETY: the plan sized input and output for this geometry.
            unsafe {
                let x = io.inputs[0].add(plane / self.multiplier * h * w);
                let out = io.out.add(plane * oh * ow);
                self.in_place::<S, K, STRIDE>(weights, plane % self.channels, x, out);
            }
        }
    }

    #[inline(always)]
    unsafe fn in_place<S: Simd, const K: usize, const STRIDE: usize>(
        &self,
        weights: &DepthwiseWeights,
        channel: usize,
        x: *const f32,
        out: *mut f32,
    ) {
        let ([h, w], [oh, ow]) = (self.input, self.output);
        let taps = &weights.values[channel * K * K..][..K * K];
        // SAFETY: masked lanes and rows lie inside the plane; others are not read.
        unsafe {
            let (low, high) = (S::splat(self.clamp.0), S::splat(self.clamp.1));
            let bias = S::splat(weights.bias.get(channel).copied().unwrap_or(0.0));
            let taps: [[S::V; K]; K] =
                std::array::from_fn(|y| std::array::from_fn(|x| S::splat(taps[y * K + x])));
            for ox in (0..ow).step_by(LANES) {
                // The input column of the first lane and tap, and which of 32 from a tap on exist.
                let column = (ox * STRIDE) as isize - self.pads[1] as isize;
                let masks: [u32; K] = std::array::from_fn(|dx| {
                    let from = column + dx as isize;
                    let ones = |n: isize| ((1u64 << n.clamp(0, 32)) - 1) as u32;
                    ones(w as isize - from) & !ones(-from)
                });
                for oy in (0..oh).step_by(ROWS) {
                    let mut sums = [bias; ROWS];
                    for dy in 0..(ROWS - 1) * STRIDE + K {
                        let y = (oy * STRIDE + dy).wrapping_sub(self.pads[0]);
                        if y >= h {
                            continue;
                        }
                        let row = x.wrapping_add(y * w).wrapping_offset(column);
                        let mut lines = [bias; K];
                        for dx in (0..K).step_by(STRIDE) {
                            let p = row.wrapping_add(dx);
                            let line = S::load_mask(p, masks[dx] as u16);
                            if STRIDE == 1 {
                                lines[dx] = line;
                            } else {
                                let next = p.wrapping_add(LANES);
                                let next = S::load_mask(next, (masks[dx] >> LANES) as u16);
                                let (even, odd) = S::split(line, next);
                                lines[dx] = even;
                                if dx + 1 < K {
                                    lines[dx + 1] = odd;
                                }
                            }
                        }
                        for (r, sum) in sums.iter_mut().enumerate() {
                            if dy >= r * STRIDE && dy - r * STRIDE < K {
                                for (tap, line) in taps[dy - r * STRIDE].iter().zip(lines) {
                                    *sum = S::fma(*tap, line, *sum);
                                }
                            }
                        }
                    }
                    for (r, sum) in sums.into_iter().enumerate().take(oh - oy) {
                        let sum = S::min(high, S::max(low, sum));
                        S::store_mask(out.add((oy + r) * ow + ox), sum, first(ow - ox));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(&self, x: *const f32, scratch: *mut f32, width: usize) {
        let [h, w] = self.input;
        // SAFETY: the padded plane holds the input behind its padding, and a vector more per row.
        unsafe {
            for y in 0..h {
                let out = scratch.add((y + self.pads[0]) * width + self.pads[1]);
                let mut i = 0;
                while i < w {
                    let mask = first(w - i);
                    S::store_mask(out.add(i), S::load_mask(x.add(y * w + i), mask), mask);
                    i += LANES;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn depthwise<S: Simd, const K: usize, const STRIDE: usize>(
        &self,
        weights: &DepthwiseWeights,
        channel: usize,
        x: *const f32,
        width: usize,
        out: *mut f32,
    ) {
        let [oh, ow] = self.output;
        let bias = weights.bias.get(channel).copied().unwrap_or(0.0);
        let taps = &weights.values[channel * K * K..][..K * K];
        // SAFETY: `padded` covers every vector of every step.
        unsafe {
            let (low, high) = (S::splat(self.clamp.0), S::splat(self.clamp.1));
            let bias = S::splat(bias);
            for oy in (0..oh).step_by(ROWS) {
                for ox in (0..ow).step_by(LANES) {
                    let mut sums = [bias; ROWS];
                    for dy in 0..(ROWS - 1) * STRIDE + K {
                        let row = x.add((oy * STRIDE + dy) * width + ox * STRIDE);
                        for dx in 0..K {
                            let v = if STRIDE == 1 {
                                S::load(row.add(dx))
                            } else {
                                S::load_even(row.add(dx), LANES)
                            };
                            for (r, sum) in sums.iter_mut().enumerate() {
                                if dy >= r * STRIDE && dy - r * STRIDE < K {
                                    let tap = *taps.get_unchecked((dy - r * STRIDE) * K + dx);
                                    *sum = S::fma(S::splat(tap), v, *sum);
                                }
                            }
                        }
                    }
                    for (r, sum) in sums.into_iter().enumerate().take(oh - oy) {
                        let sum = S::min(high, S::max(low, sum));
                        S::store_mask(out.add((oy + r) * ow + ox), sum, first(ow - ox));
                    }
                }
            }
        }
    }

    /// The largest of each window of stride 2; a row's largest serve every window that it is in.
    #[inline(always)]
    unsafe fn largest<S: Simd, const K: usize>(&self, x: *const f32, width: usize, out: *mut f32) {
        let [oh, ow] = self.output;
        // SAFETY: `padded` covers every vector of every step.
        unsafe {
            let (low, high) = (S::splat(self.clamp.0), S::splat(self.clamp.1));
            for oy in (0..oh).step_by(ROWS) {
                for ox in (0..ow).step_by(LANES) {
                    let mut folds = [S::splat(f32::NEG_INFINITY); ROWS];
                    for dy in 0..(ROWS - 1) * 2 + K {
                        let row = x.add((oy * 2 + dy) * width + ox * 2);
                        let (even, odd) = S::split(S::load(row), S::load(row.add(LANES)));
                        let mut line = S::max(even, odd);
                        for dx in 2..K {
                            line = S::max(line, S::load_even(row.add(dx), LANES));
                        }
                        for (r, fold) in folds.iter_mut().enumerate() {
                            if dy >= r * 2 && dy - r * 2 < K {
                                *fold = S::max(*fold, line);
                            }
                        }
                    }
                    for (r, fold) in folds.into_iter().enumerate().take(oh - oy) {
                        let fold = S::min(high, S::max(low, fold));
                        S::store_mask(out.add((oy + r) * ow + ox), fold, first(ow - ox));
                    }
                }
            }
        }
    }

    /// Any kernel, stride, dilation and fold.
    #[inline(always)]
    unsafe fn any<S: Simd>(&self, channel: usize, x: *const f32, width: usize, out: *mut f32) {
        let ([oh, ow], [kh, kw]) = (self.output, self.kernel);
        let start = match &self.fold {
            Fold::Depthwise(w) => w.bias.get(channel).copied().unwrap_or(0.0),
            Fold::Max => f32::NEG_INFINITY,
            Fold::Average { .. } => 0.0,
        };
        // SAFETY: `padded` covers every vector of every step.
        unsafe {
            for oy in 0..oh {
                for ox in (0..ow).step_by(LANES) {
                    let mut fold = S::splat(start);
                    for dy in 0..kh {
                        let row = x.add(
                            (oy * self.strides[0] + dy * self.dilations[0]) * width
                                + ox * self.strides[1],
                        );
                        for dx in 0..kw {
                            let p = row.add(dx * self.dilations[1]);
                            let v = match self.strides[1] {
                                1 => S::load(p),
                                2 => S::load_even(p, LANES),
                                s => {
                                    let lanes: [f32; LANES] = std::array::from_fn(|i| {
                                        if ox + i < ow { *p.add(i * s) } else { 0.0 }
                                    });
                                    S::load(lanes.as_ptr())
                                }
                            };
                            fold = match &self.fold {
                                Fold::Depthwise(w) => S::fma(
                                    S::splat(w.values[(channel * kh + dy) * kw + dx]),
                                    v,
                                    fold,
                                ),
                                Fold::Max => S::max(fold, v),
                                Fold::Average { .. } => S::add(fold, v),
                            };
                        }
                    }
                    let mask = first(ow - ox);
                    if let Fold::Average { rows, columns } = &self.fold {
                        let factor = S::load_mask(columns.as_ptr().add(ox), mask);
                        fold = S::mul(fold, S::mul(factor, S::splat(rows[oy])));
                    }
                    fold = S::min(S::splat(self.clamp.1), S::max(S::splat(self.clamp.0), fold));
                    S::store_mask(out.add(oy * ow + ox), fold, mask);
                }
            }
        }
    }
}
