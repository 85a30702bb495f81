//! Panels of convolutions whose output pixels are the input's, shifted: whole vectors, across rows.
//!
//! With stride 1 the input's planes are used as they are. With stride 2 the rows that a tile needs are
//! first split into planes of even and odd rows and columns; in each of them the stride is 1.

use super::ConvGeometry;
use crate::kernels::cpu::simd::{LANES, Simd, first};
use std::ops::Range;

/// Where the vectors of each kernel position start, and which of their lanes lie inside the input.
#[derive(Debug)]
pub(super) struct Flat {
    taps: Vec<Tap>,
    /// By kernel position and vector.
    masks: Vec<u16>,
    /// Vectors of a whole plane.
    vectors: usize,
    /// Elements of an input plane.
    plane: usize,
    split: Option<Split>,
}

/// A kernel position.
#[derive(Debug)]
struct Tap {
    /// From an output pixel to its input in a plane of the output's width.
    shift: isize,
    /// Which of the split planes.
    phase: usize,
}

/// Planes of even and odd rows and columns.
#[derive(Debug)]
struct Split {
    input: [usize; 2],
    output: [usize; 2],
    /// The parity of the rows of each pair of planes; each has even and odd columns.
    parities: Vec<usize>,
    /// Rows of a split plane above that of the first output row, and below that of the last.
    above: usize,
    below: usize,
}

impl Flat {
    /// Whether the convolution's panels can be packed so.
    pub(super) fn fits(g: &ConvGeometry) -> bool {
        let ([h, w], [oh, ow]) = (g.input, g.output);
        match g.strides {
            [1, 1] => g.output == g.input,
            [2, 2] => h.div_ceil(2) == oh && w.div_ceil(2) == ow,
            _ => false,
        }
    }

    pub(super) fn new(g: &ConvGeometry) -> Flat {
        let ([h, w], [oh, ow]) = (g.input, g.output);
        let stride = g.strides[0] as isize;
        let positions = g.kernel[0] * g.kernel[1];
        let vectors = (oh * ow).div_ceil(LANES);
        let offset = |i: usize, k: usize| (k * g.dilations[i]) as isize - g.pads[i] as isize;
        let rows: Vec<isize> = (0..g.kernel[0]).map(|k| offset(0, k)).collect();
        let mut masks = vec![0u16; positions * vectors];
        let split = (stride == 2).then(|| {
            let mut parities: Vec<usize> = rows.iter().map(|y| y.rem_euclid(2) as usize).collect();
            parities.sort_unstable();
            parities.dedup();
            let floor = |y: &isize| y.div_euclid(2);
            Split {
                input: g.input,
                output: g.output,
                parities,
                above: rows
                    .iter()
                    .map(floor)
                    .min()
                    .unwrap_or(0)
                    .min(0)
                    .unsigned_abs(),
                below: rows.iter().map(floor).max().unwrap_or(0).max(0) as usize,
            }
        });
        let mut taps = Vec::with_capacity(positions);
        for position in 0..positions {
            let dy = rows[position / g.kernel[1]];
            let dx = offset(1, position % g.kernel[1]);
            taps.push(Tap {
                shift: dy.div_euclid(stride) * ow as isize + dx.div_euclid(stride),
                phase: split.as_ref().map_or(0, |s| {
                    let parity = dy.rem_euclid(2) as usize;
                    let pair = s.parities.iter().position(|&p| p == parity);
                    2 * pair.unwrap_or(0) + dx.rem_euclid(2) as usize
                }),
            });
            let inside =
                |o: usize, d: isize, n: usize| (0..n as isize).contains(&(o as isize * stride + d));
            for y in (0..oh).filter(|&y| inside(y, dy, h)) {
                for x in (0..ow).filter(|&x| inside(x, dx, w)) {
                    let p = y * ow + x;
                    masks[position * vectors + p / LANES] |= 1 << (p % LANES);
                }
            }
        }
        Flat {
            taps,
            masks,
            vectors,
            plane: h * w,
            split,
        }
    }

    /// Scratch elements that packing a chunk of `chunk` inner rows for `width` columns takes.
    pub(super) fn scratch_len(&self, chunk: usize, width: usize) -> usize {
        let Some(split) = &self.split else { return 0 };
        let channels = chunk.div_ceil(self.taps.len().max(1)) + 1;
        let rows = width.div_ceil(split.output[1].max(1)) + 1;
        channels * split.channel_len(rows.min(split.output[0]))
    }

    /// Packs the vectors from `from` on for the inner rows `inner`.
    ///
    /// # Safety
    /// `x` holds the planes of the channels, `panel` a row of `width` for each of `inner`, `scratch`
    /// what [`scratch_len`](Self::scratch_len) says.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    pub(super) unsafe fn pack<S: Simd>(
        &self,
        x: *const f32,
        inner: Range<usize>,
        from: usize,
        vectors: usize,
        panel: *mut f32,
        width: usize,
        scratch: *mut f32,
    ) {
        let positions = self.taps.len();
        let (mut channel, mut position) = (inner.start / positions, inner.start % positions);
        // The plane of the first channel, seen from its first output pixel, and the planes' sizes.
        let (origin, per_channel, per_phase) = match &self.split {
            None => (
                x.wrapping_add(channel * self.plane + from * LANES),
                self.plane,
                0,
            ),
            Some(split) => {
                let [oh, ow] = split.output;
                let rows = from * LANES / ow..((from + vectors) * LANES).div_ceil(ow).min(oh);
                let count = rows.len();
                let first = rows.start * ow;
                let channels = channel..inner.end.div_ceil(positions);
                // SAFETY: the caller's promise.
                unsafe { split.fill::<S>(x, self.plane, channels, rows, scratch) };
                (
                    scratch
                        .wrapping_add(split.above * ow + from * LANES - first)
                        .cast_const(),
                    split.channel_len(count),
                    split.phase_len(count),
                )
            }
        };
        let first = channel;
        for row in 0..inner.len() {
            let tap = &self.taps[position];
            let masks = &self.masks[position * self.vectors + from..][..vectors];
            // SAFETY: masked lanes lie inside the channel's plane; others are not read.
            unsafe {
                let source = origin
                    .wrapping_add((channel - first) * per_channel + tap.phase * per_phase)
                    .wrapping_offset(tap.shift);
                let out = panel.add(row * width);
                for (v, &mask) in masks.iter().enumerate() {
                    let p = source.wrapping_add(v * LANES);
                    let value = if mask == u16::MAX {
                        S::load(p)
                    } else {
                        S::load_mask(p, mask)
                    };
                    S::store(out.add(v * LANES), value);
                }
            }
            position += 1;
            if position == positions {
                (channel, position) = (channel + 1, 0);
            }
        }
    }
}

impl Split {
    /// Elements of a split plane for `rows` output rows; the last vector of a row may run over.
    fn phase_len(&self, rows: usize) -> usize {
        (rows + self.above + self.below) * self.output[1] + LANES
    }

    fn channel_len(&self, rows: usize) -> usize {
        2 * self.parities.len() * self.phase_len(rows)
    }

    /// Splits what the output rows `rows` need of `channels`.
    #[inline(always)]
    unsafe fn fill<S: Simd>(
        &self,
        x: *const f32,
        plane: usize,
        channels: Range<usize>,
        rows: Range<usize>,
        scratch: *mut f32,
    ) {
        let ([h, w], ow) = (self.input, self.output[1]);
        let phase = self.phase_len(rows.len());
        let mut even = scratch;
        for channel in channels {
            for &parity in &self.parities {
                for line in 0..rows.len() + self.above + self.below {
                    let y = (2 * (rows.start + line) + parity).wrapping_sub(2 * self.above);
                    if y >= h {
                        continue;
                    }
                    // SAFETY: row `y` of the plane has `w` elements; a split row takes half of them and
                    // runs over by less than a vector, which the next row or nothing overwrites.
                    unsafe {
                        let source = x.add(channel * plane + y * w);
                        let out = even.add(line * ow);
                        for i in (0..w).step_by(2 * LANES) {
                            let (p, left) = (source.add(i), w - i);
                            let (low, high) = if left >= 2 * LANES {
                                (S::load(p), S::load(p.add(LANES)))
                            } else {
                                (
                                    S::load_mask(p, first(left)),
                                    S::load_mask(
                                        p.wrapping_add(LANES),
                                        first(left.saturating_sub(LANES)),
                                    ),
                                )
                            };
                            let (low, high) = S::split(low, high);
                            S::store(out.add(i / 2), low);
                            S::store(out.add(phase + i / 2), high);
                        }
                    }
                }
                even = even.wrapping_add(2 * phase);
            }
        }
    }
}
