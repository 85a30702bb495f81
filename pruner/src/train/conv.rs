//! Convolutions over channels-last images, forwards and backwards.

mod back;
mod depthwise;

use super::border::with_padded;
use lacuna::{Isa, Product};
use rayon::prelude::*;

/// Columns of a packed block of weights.
const BLOCK: usize = 32;

/// A convolution's sizes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conv {
    /// Images.
    pub batch: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Channels of the input and of the output.
    pub channels: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    pub dilations: [usize; 2],
    pub groups: usize,
}

impl Conv {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Channels of a group, of the input and of the output.
    fn grouped(&self) -> [usize; 2] {
        self.channels.map(|c| c / self.groups)
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.grouped() == [1, 1]
    }

    /// Height and width of the padded input.
    fn padded(&self) -> [usize; 2] {
        [
            self.input[0] + self.pads[0] + self.pads[2],
            self.input[1] + self.pads[1] + self.pads[3],
        ]
    }

    /// Elements of an image of the input and of the output.
    fn image(&self) -> [usize; 2] {
        [
            self.input[0] * self.input[1] * self.channels[0],
            self.output[0] * self.output[1] * self.channels[1],
        ]
    }

    /// Whether the taps of a kernel row and their channels lie side by side in the input.
    fn rows_merge(&self) -> bool {
        self.groups == 1 && self.dilations[1] == 1
    }

    /// Whether an output pixel is a product of one input pixel, in the same place.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.strides == [1, 1] && self.pads == [0; 4]
    }

    /// Output rows of one product, and how many such products an image takes.
    fn lines(&self) -> (usize, usize) {
        match self.is_pointwise() {
            true => (self.output[0] * self.output[1], 1),
            false => (self.output[1], self.output[0]),
        }
    }

    /// `y = conv(x, weight) + bias`; `weight` is `[O, C / groups, kh, kw]`.
    pub fn forward(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let [size, out_size] = self.image();
        let is_depthwise = self.is_depthwise();
        let (packed, steps) = match is_depthwise {
            true => (self.by_tap(weight), Vec::new()),
            false => (self.pack(weight), self.steps()),
        };
        y.par_chunks_mut(out_size).enumerate().for_each(|(n, y)| {
            let x = &x[n * size..][..size];
            with_padded(0, x, self.input, self.channels[0], self.pads, |x| {
                match is_depthwise {
                    true => isa.vectorize(|| self.depthwise_image(x, &packed, y)),
                    false => self.image_forward(isa, x, &packed, &steps, y),
                }
                add_bias(y, bias);
            });
        });
    }

    /// Offsets of the parts of a sum in the padded input and in a packed block.
    fn steps(&self) -> Vec<[usize; 2]> {
        let ([c, _], [_, width]) = (self.grouped(), self.padded());
        let [kh, kw] = self.kernel;
        let row = self.dilations[0] * width * self.channels[0];
        match self.rows_merge() {
            true => (0..kh).map(|y| [y * row, y * kw * c * BLOCK]).collect(),
            false => (0..kh * kw)
                .map(|t| {
                    let at = t / kw * row + t % kw * self.dilations[1] * self.channels[0];
                    [at, t * c * BLOCK]
                })
                .collect(),
        }
    }

    fn image_forward(
        &self,
        isa: Isa,
        x: &[f32],
        packed: &[f32],
        steps: &[[usize; 2]],
        y: &mut [f32],
    ) {
        let ([c, o], [_, width]) = (self.grouped(), self.padded());
        let block = self.taps() * c * BLOCK;
        let group = o.div_ceil(BLOCK) * block;
        let (rows, lines) = self.lines();
        let product = Product {
            rows,
            cols: o,
            steps,
            depth: if self.rows_merge() {
                self.kernel[1] * c
            } else {
                c
            },
            a: [self.strides[1] * self.channels[0], 1],
            b: [BLOCK, block],
            c: self.channels[1],
            accumulate: false,
        };
        let line = self.strides[0] * width * self.channels[0];
        for (i, y) in y
            .chunks_exact_mut(rows * self.channels[1])
            .take(lines)
            .enumerate()
        {
            for g in 0..self.groups {
                product.run(
                    isa,
                    &x[i * line + g * c..],
                    &packed[g * group..],
                    &mut y[g * o..],
                );
            }
        }
    }

    /// The weight as blocks of outputs: `[group][block][tap][channel][output of the block]`.
    fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let ([c, o], taps) = (self.grouped(), self.taps());
        let blocks = o.div_ceil(BLOCK);
        let mut packed = vec![0.0; self.groups * blocks * taps * c * BLOCK];
        packed
            .par_chunks_mut(taps * c * BLOCK)
            .enumerate()
            .for_each(|(b, to)| {
                let (g, first) = (b / blocks, b % blocks * BLOCK);
                for j in 0..BLOCK.min(o - first) {
                    let from = &weight[(g * o + first + j) * c * taps..][..c * taps];
                    for (i, &w) in from.iter().enumerate() {
                        to[(i % taps * c + i / taps) * BLOCK + j] = w;
                    }
                }
            });
        packed
    }
}

fn add_bias(y: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        for y in y.chunks_exact_mut(bias.len()) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}
