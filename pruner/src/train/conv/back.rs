//! The way back through a convolution: the gradients of its input, weight and bias.

use super::{BLOCK, Conv, add_bias};
use crate::train::border::{PADDED, with_padded};
use crate::train::buffers::Buffers;
use crate::train::parts::{add_parts, parts, split};
use lacuna::{Isa, Product};
use rayon::prelude::*;
use std::ops::Range;

impl Conv {
    /// The weight as blocks of inputs: `[group][block][tap][output][input of the block]`, the taps turned around
    /// where `turn` says so.
    fn pack_back(&self, weight: &[f32], turn: bool) -> Vec<f32> {
        let ([c, o], taps) = (self.grouped(), self.taps());
        let blocks = c.div_ceil(BLOCK);
        let mut packed = vec![0.0; self.groups * blocks * taps * o * BLOCK];
        packed
            .par_chunks_mut(taps * o * BLOCK)
            .enumerate()
            .for_each(|(b, to)| {
                let (g, first) = (b / blocks, b % blocks * BLOCK);
                for p in 0..o {
                    let from = &weight[((g * o + p) * c + first) * taps..];
                    for j in 0..BLOCK.min(c - first) {
                        for t in 0..taps {
                            let tap = if turn { taps - 1 - t } else { t };
                            to[(t * o + p) * BLOCK + j] = from[j * taps + tap];
                        }
                    }
                }
            });
        packed
    }

    /// Adds the gradients of weight and bias to theirs, and gives the input's: `dx` with `true` is added to.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: Option<(&mut [f32], bool)>,
        dweight: &mut [f32],
        dbias: Option<&mut [f32]>,
        buffers: &mut Buffers,
    ) {
        let ([size, out_size], [c, o]) = (self.image(), self.channels);
        let parts = parts(self.batch);
        let len = weight.len();
        let each = len + if dbias.is_some() { o } else { 0 };
        let mut partials = buffers.zeros(parts.len() * each);
        let way = Way::of(self);
        let packed = match (&dx, way) {
            (None, _) => Vec::new(),
            (_, Way::Depthwise) => self.by_tap(weight),
            (_, Way::Gather) => self.pack_back(weight, true),
            (_, Way::Scatter) => self.pack_back(weight, false),
        };
        let tap_major = match way {
            Way::Depthwise => self.by_tap(weight),
            _ => Vec::new(),
        };
        let (dx, accumulate) = match dx {
            Some((dx, accumulate)) => (Some(dx), accumulate),
            None => (None, false),
        };
        let dxs: Vec<Option<&mut [f32]>> = match dx {
            Some(dx) => split(dx, &parts, size).into_iter().map(Some).collect(),
            None => parts.iter().map(|_| None).collect(),
        };
        (partials.par_chunks_mut(each.max(1)).zip(dxs).zip(&parts)).for_each(
            |((partial, mut dx), range)| {
                let (dw, db) = partial.split_at_mut(len);
                for (i, n) in range.clone().enumerate() {
                    let (x, dy) = (&x[n * size..][..size], &dy[n * out_size..][..out_size]);
                    let mut dx = dx.as_deref_mut().map(|dx| &mut dx[i * size..][..size]);
                    if let (Way::Gather, Some(dx)) = (way, dx.as_deref_mut()) {
                        self.gather(isa, dy, &packed, dx, accumulate);
                    }
                    with_padded(0, x, self.input, c, self.pads, |x| {
                        if way == Way::Depthwise {
                            self.depthwise_back(
                                isa,
                                x,
                                &tap_major,
                                dy,
                                dx.map(|dx| (dx, accumulate)),
                                dw,
                            );
                            return;
                        }
                        if let (Way::Scatter, Some(dx)) = (way, dx) {
                            self.scatter(isa, dy, &packed, dx, accumulate);
                        }
                        self.weight_image(isa, x, dy, dw);
                    });
                    if !db.is_empty() {
                        for dy in dy.chunks_exact(o) {
                            db.iter_mut().zip(dy).for_each(|(b, d)| *b += d);
                        }
                    }
                }
            },
        );
        let mut sums = buffers.zeros(each);
        add_parts(&mut sums, &partials);
        self.unpack(&sums[..len], dweight);
        if let Some(dbias) = dbias {
            dbias
                .iter_mut()
                .zip(&sums[len..])
                .for_each(|(b, d)| *b += d);
        }
        buffers.give(partials);
        buffers.give(sums);
    }

    /// The transpose: what the gradient of an input would be, `x` being that of the output, and a bias.
    pub fn forward_transposed(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let [size, out_size] = self.image();
        let way = Way::of(self);
        let packed = match way {
            Way::Depthwise => self.by_tap(weight),
            Way::Gather => self.pack_back(weight, true),
            Way::Scatter => self.pack_back(weight, false),
        };
        y.par_chunks_mut(size).enumerate().for_each(|(n, y)| {
            let x = &x[n * out_size..][..out_size];
            match way {
                Way::Depthwise => {
                    self.depthwise_back(isa, &[], &packed, x, Some((y, false)), &mut [])
                }
                Way::Gather => self.gather(isa, x, &packed, y, false),
                Way::Scatter => self.scatter(isa, x, &packed, y, false),
            }
            add_bias(y, bias);
        });
    }

    /// Adds to the gradients of weight and bias of the transpose; its input's is [`Conv::forward`] of `dy`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_transposed(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dweight: &mut [f32],
        dbias: Option<&mut [f32]>,
        buffers: &mut Buffers,
    ) {
        self.backward(isa, dy, weight, x, None, dweight, None, buffers);
        let Some(dbias) = dbias else { return };
        let size = self.image()[0];
        let sums = |part: &Range<usize>| {
            let mut sums = vec![0.0f64; dbias.len()];
            for dy in dy[part.start * size..part.end * size].chunks_exact(sums.len()) {
                sums.iter_mut()
                    .zip(dy)
                    .for_each(|(s, d)| *s += f64::from(*d));
            }
            sums
        };
        let partials: Vec<Vec<f64>> = parts(self.batch).par_iter().map(sums).collect();
        for (i, b) in dbias.iter_mut().enumerate() {
            *b += partials.iter().map(|p| p[i]).sum::<f64>() as f32;
        }
    }

    /// Adds a gradient of `[group][tap][channel][output]` to one in the weight's order.
    fn unpack(&self, sums: &[f32], dweight: &mut [f32]) {
        let ([c, o], taps) = (self.grouped(), self.taps());
        dweight
            .par_chunks_mut(c * taps)
            .enumerate()
            .for_each(|(out, to)| {
                let (g, p) = (out / o, out % o);
                for (i, d) in to.iter_mut().enumerate() {
                    let at = match self.is_depthwise() {
                        true => i * self.channels[0] + out,
                        false => ((g * taps + i % taps) * c + i / taps) * o + p,
                    };
                    *d += sums[at];
                }
            });
    }

    /// The input's gradient of one image as a convolution of the padded output's with the turned weight.
    fn gather(&self, isa: Isa, dy: &[f32], packed: &[f32], dx: &mut [f32], accumulate: bool) {
        let ([c, o], [kh, kw]) = (self.channels, self.kernel);
        let pads = [
            kh - 1 - self.pads[0],
            kw - 1 - self.pads[1],
            kh - 1 - self.pads[2],
            kw - 1 - self.pads[3],
        ];
        let width = self.output[1] + pads[1] + pads[3];
        let steps: Vec<[usize; 2]> = (0..kh)
            .map(|y| [y * width * o, y * kw * o * BLOCK])
            .collect();
        let rows = match self.is_pointwise() {
            true => self.input[0] * self.input[1],
            false => self.input[1],
        };
        let product = Product {
            rows,
            cols: c,
            steps: &steps,
            depth: kw * o,
            a: [o, 1],
            b: [BLOCK, kh * kw * o * BLOCK],
            c,
            accumulate,
        };
        with_padded(1, dy, self.output, o, pads, |dy| {
            for (i, dx) in dx.chunks_exact_mut(rows * c).enumerate() {
                product.run(isa, &dy[i * width * o..], packed, dx);
            }
        });
    }

    /// The input's gradient of one image, tap by tap.
    fn scatter(&self, isa: Isa, dy: &[f32], packed: &[f32], dx: &mut [f32], accumulate: bool) {
        let ([c, o], taps) = (self.grouped(), self.taps());
        let ([channels, outputs], [height, width]) = (self.channels, self.padded());
        let block = taps * o * BLOCK;
        let group = c.div_ceil(BLOCK) * block;
        PADDED.with_borrow_mut(|[_, padded]| {
            padded.clear();
            padded.resize(height * width * channels, 0.0);
            for t in 0..taps {
                let (ky, kx) = (t / self.kernel[1], t % self.kernel[1]);
                let product = Product {
                    rows: self.output[1],
                    cols: c,
                    steps: &[[0, t * o * BLOCK]],
                    depth: o,
                    a: [outputs, 1],
                    b: [BLOCK, block],
                    c: self.strides[1] * channels,
                    accumulate: true,
                };
                for (i, dy) in dy.chunks_exact(self.output[1] * outputs).enumerate() {
                    let y = i * self.strides[0] + ky * self.dilations[0];
                    let at = (y * width + kx * self.dilations[1]) * channels;
                    for g in 0..self.groups {
                        let to = &mut padded[at + g * c..];
                        product.run(isa, &dy[g * o..], &packed[g * group..], to);
                    }
                }
            }
            self.crop(padded, dx, accumulate);
        });
    }

    /// Takes the padding off a gradient.
    pub(super) fn crop(&self, padded: &[f32], dx: &mut [f32], accumulate: bool) {
        let (c, [_, width]) = (self.channels[0], self.padded());
        let row = self.input[1] * c;
        for (y, dx) in dx.chunks_exact_mut(row).enumerate() {
            let from = &padded[((y + self.pads[0]) * width + self.pads[1]) * c..][..row];
            match accumulate {
                true => dx.iter_mut().zip(from).for_each(|(d, x)| *d += x),
                false => dx.copy_from_slice(from),
            }
        }
    }

    /// Adds one image's part of the weight's gradient, `[group][tap][channel][output]`.
    fn weight_image(&self, isa: Isa, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        let ([c, o], [_, width]) = (self.grouped(), self.padded());
        let ([channels, outputs], [kh, kw]) = (self.channels, self.kernel);
        let (depth, lines) = self.lines();
        let line = self.strides[0] * width * channels;
        let steps: Vec<[usize; 2]> = (0..lines)
            .map(|i| [i * line, i * depth * outputs])
            .collect();
        let merged = self.rows_merge();
        let product = Product {
            rows: if merged { kw * c } else { c },
            cols: o,
            steps: &steps,
            depth,
            a: [1, self.strides[1] * channels],
            b: [outputs, BLOCK],
            c: o,
            accumulate: true,
        };
        for ky in 0..kh {
            let row = ky * self.dilations[0] * width * channels;
            if merged {
                product.run(isa, &x[row..], dy, &mut dw[ky * kw * c * o..]);
                continue;
            }
            for kx in 0..kw {
                let at = row + kx * self.dilations[1] * channels;
                for g in 0..self.groups {
                    let to = &mut dw[((g * kh + ky) * kw + kx) * c * o..];
                    product.run(isa, &x[at + g * c..], &dy[g * o..], to);
                }
            }
        }
    }
}

/// How the input's gradient is made.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Depthwise,
    Gather,
    Scatter,
}

impl Way {
    fn of(conv: &Conv) -> Way {
        let [kh, kw] = conv.kernel;
        let within =
            conv.pads[0] < kh && conv.pads[2] < kh && conv.pads[1] < kw && conv.pads[3] < kw;
        // Rows and columns that no window reaches would need more padding than the kernel has.
        let exact = conv.output[0] + kh == conv.padded()[0] + 1
            && conv.output[1] + kw == conv.padded()[1] + 1;
        if conv.is_depthwise() {
            Way::Depthwise
        } else if conv.groups == 1
            && conv.strides == [1, 1]
            && conv.dilations == [1, 1]
            && within
            && exact
        {
            Way::Gather
        } else {
            Way::Scatter
        }
    }
}
