//! FastGRNN over the steps of sequences, and back through them.
//!
//! Everything lies sequence by sequence, `[sequences, time, ...]`. A part of the sequences goes through all steps on one
//! thread; what does not depend on the state is done before and after, for all steps at once.

// Rows of several buffers are walked side by side.
#![allow(clippy::needless_range_loop)]

use super::buffers::Buffers;
use super::dense::{BLOCK, Dense};
use lacuna::{Isa, Product};
use rayon::prelude::*;

/// Sequences of a part: the rows of a tile of [`Product`].
const PART: usize = 12;

/// A cell's sizes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recurrent {
    pub sequences: usize,
    pub time: usize,
    /// Elements of a state.
    pub width: usize,
    /// The product with the state, as one matrix or as factors in the order of their use, over all rows of all steps.
    pub factors: Vec<Dense>,
}

/// A cell's vectors, and its two numbers behind their sigmoid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    gate_bias: &'a [f32],
    update_bias: &'a [f32],
    zeta: f32,
    nu: f32,
}

impl<'a> Parts<'a> {
    /// From the parameters: biases, then zeta and nu as they are learned.
    pub fn new([gate_bias, update_bias, zeta, nu]: [&'a [f32]; 4]) -> Parts<'a> {
        let factor = |x: &[f32]| {
            let x = x.first().map_or(0.0, |&x| f64::from(x));
            (1.0 / (1.0 + (-x).exp())) as f32
        };
        Parts {
            gate_bias,
            update_bias,
            zeta: factor(zeta),
            nu: factor(nu),
        }
    }
}

/// What a cell keeps of its way there, each `[sequences, time, ...]`.
#[derive(Debug)]
pub(super) struct States {
    /// The state that each step begins with.
    before: Vec<f32>,
    gate: Vec<f32>,
    update: Vec<f32>,
    /// Outputs of every factor but the last.
    inner: Vec<Vec<f32>>,
}

/// `e^x` without a branch, to 2e-7 of its value, so that loops over it become vectors.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    // Adding 1.5 * 2^23 leaves no bits behind the point; those in front are the power of two.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    // ln 2 in two parts; products with the first are exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let powers = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let y = powers.into_iter().fold(0.0, |sum, c| sum * r + c);
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

/// Buffers cut into the parts of all sequences: for each part, its piece of every buffer.
fn pieces(
    buffers: &mut [Vec<f32>],
    each: impl Iterator<Item = usize>,
    parts: usize,
) -> Vec<Vec<&mut [f32]>> {
    let mut pieces: Vec<Vec<&mut [f32]>> = (0..parts).map(|_| Vec::new()).collect();
    for (buffer, each) in buffers.iter_mut().zip(each) {
        for (own, piece) in pieces.iter_mut().zip(buffer.chunks_mut(each)) {
            own.push(piece);
        }
    }
    pieces
}

impl Recurrent {
    /// Rows of all steps.
    pub fn rows(&self) -> usize {
        self.sequences * self.time
    }

    /// Elements of a part of a buffer with `len` elements for each step.
    fn piece(&self, len: usize) -> usize {
        PART * self.time * len
    }

    /// Elements between the factors.
    fn inner(&self) -> impl Iterator<Item = usize> + '_ {
        let but_last = self.factors.len().saturating_sub(1);
        self.factors[..but_last].iter().map(|f| f.outputs)
    }

    fn inner_buffers(&self, buffers: &mut Buffers) -> Vec<Vec<f32>> {
        let take = |n| buffers.take(self.rows() * n);
        self.inner().map(take).collect()
    }

    /// A product of the rows of one step, which lie `time` rows apart; `from` and `to` begin at its first.
    fn product(
        &self,
        isa: Isa,
        (from, inputs): (&[f32], usize),
        packed: &[f32],
        (to, outputs, stride): (&mut [f32], usize, usize),
        accumulate: bool,
    ) {
        let product = Product {
            rows: to.len().div_ceil(stride),
            cols: outputs,
            steps: &[[0, 0]],
            depth: inputs,
            a: [self.time * inputs, 1],
            b: [BLOCK, inputs * BLOCK],
            c: stride,
            accumulate,
        };
        product.run(isa, from, packed, to);
    }

    /// The states after the last step, from what the inputs of every step come to.
    pub fn forward(
        &self,
        isa: Isa,
        projected: &[f32],
        weights: &[&[f32]],
        parts: Parts<'_>,
        last: &mut [f32],
        buffers: &mut Buffers,
    ) -> States {
        let (time, width) = (self.time, self.width);
        let mut states = States {
            before: buffers.take(projected.len()),
            gate: buffers.take(projected.len()),
            update: buffers.take(projected.len()),
            inner: self.inner_buffers(buffers),
        };
        states.gate.copy_from_slice(projected);
        let packed: Vec<Vec<f32>> = (self.factors.iter().zip(weights))
            .map(|(f, w)| f.packed(w))
            .collect();
        let piece = self.piece(width);
        let count = self.sequences.div_ceil(PART);
        let inner = pieces(
            &mut states.inner,
            self.inner().map(|n| self.piece(n)),
            count,
        );
        let work: Vec<_> = (states.before.chunks_mut(piece))
            .zip(states.gate.chunks_mut(piece))
            .zip(states.update.chunks_mut(piece))
            .zip(last.chunks_mut(PART * width))
            .zip(inner)
            .collect();
        work.into_par_iter()
            .for_each(|((((before, gate), update), last), mut inner)| {
                for sequence in before.chunks_mut(time * width) {
                    sequence[..width].fill(0.0);
                }
                for t in 0..time {
                    let end = self.factors.len() - 1;
                    for (k, factor) in self.factors.iter().enumerate() {
                        let (done, rest) = inner.split_at_mut(k);
                        let from: &[f32] = match done.last() {
                            Some(from) => from,
                            None => &*before,
                        };
                        let to: &mut [f32] = match k == end {
                            true => &mut *gate,
                            false => &mut *rest[0],
                        };
                        self.product(
                            isa,
                            (&from[t * factor.inputs..], factor.inputs),
                            &packed[k],
                            (
                                &mut to[t * factor.outputs..],
                                factor.outputs,
                                time * factor.outputs,
                            ),
                            k == end,
                        );
                    }
                    isa.vectorize(|| {
                        for (r, last) in last.chunks_exact_mut(width).enumerate() {
                            let at = (r * time + t) * width;
                            let (z, c) = (&mut gate[at..][..width], &mut update[at..][..width]);
                            let biases = (&parts.gate_bias[..width], &parts.update_bias[..width]);
                            for i in 0..width {
                                c[i] = tanh(z[i] + biases.1[i]);
                                z[i] = sigmoid(z[i] + biases.0[i]);
                            }
                            let (h, behind) = before[at..].split_at_mut(width);
                            let next = match t + 1 < time {
                                true => &mut behind[..width],
                                false => &mut *last,
                            };
                            for i in 0..width {
                                next[i] =
                                    z[i] * h[i] + (parts.zeta * (1.0 - z[i]) + parts.nu) * c[i];
                            }
                        }
                    });
                }
            });
        states
    }

    /// Writes the gradient of what the inputs come to, from that of the last states; adds those of matrices and vectors
    /// to theirs.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        isa: Isa,
        states: &States,
        weights: &[&[f32]],
        parts: Parts<'_>,
        dlast: &[f32],
        dprojected: &mut [f32],
        dweights: &mut [Vec<f32>],
        dvectors: [&mut [f32]; 4],
        buffers: &mut Buffers,
    ) {
        let (time, width) = (self.time, self.width);
        let packed: Vec<Vec<f32>> = (self.factors.iter().zip(weights))
            .map(|(f, w)| f.packed_back(w))
            .collect();
        let mut dinner = self.inner_buffers(buffers);
        let count = self.sequences.div_ceil(PART);
        let mut sums = vec![0.0; count * 4 * width];
        let piece = self.piece(width);
        let inner = pieces(&mut dinner, self.inner().map(|n| self.piece(n)), count);
        let work: Vec<_> = (states.before.chunks(piece))
            .zip(states.gate.chunks(piece).zip(states.update.chunks(piece)))
            .zip(dprojected.chunks_mut(piece))
            .zip(dlast.chunks(PART * width))
            .zip(sums.chunks_mut(4 * width))
            .zip(inner)
            .collect();
        work.into_par_iter().for_each(
            |(((((before, (gate, update)), du), dlast), sums), mut inner)| {
                let mut dh = dlast.to_vec();
                let (biases, factors) = sums.split_at_mut(2 * width);
                let (dgate, dupdate) = biases.split_at_mut(width);
                let (dzeta, dnu) = factors.split_at_mut(width);
                for t in (0..time).rev() {
                    isa.vectorize(|| {
                        for (r, dh) in dh.chunks_exact_mut(width).enumerate() {
                            let at = (r * time + t) * width;
                            let z = &gate[at..][..width];
                            let c = &update[at..][..width];
                            let h = &before[at..][..width];
                            let du = &mut du[at..][..width];
                            for i in 0..width {
                                let (g, rest) = (dh[i], 1.0 - z[i]);
                                let dz = g * (h[i] - parts.zeta * c[i]) * z[i] * rest;
                                let dc = g * (parts.zeta * rest + parts.nu) * (1.0 - c[i] * c[i]);
                                du[i] = dz + dc;
                                dgate[i] += dz;
                                dupdate[i] += dc;
                                dzeta[i] += g * rest * c[i];
                                dnu[i] += g * c[i];
                                dh[i] = g * z[i];
                            }
                        }
                    });
                    for (k, factor) in self.factors.iter().enumerate().rev() {
                        let (front, behind) = inner.split_at_mut(k);
                        let from: &[f32] = match behind.first() {
                            Some(from) => from,
                            None => &*du,
                        };
                        let (to, stride): (&mut [f32], usize) = match front.last_mut() {
                            Some(to) => (&mut to[t * factor.inputs..], time * factor.inputs),
                            None => (&mut dh, factor.inputs),
                        };
                        self.product(
                            isa,
                            (&from[t * factor.outputs..], factor.outputs),
                            &packed[k],
                            (to, factor.inputs, stride),
                            k == 0,
                        );
                    }
                }
            },
        );
        for (k, (factor, dweight)) in self.factors.iter().zip(dweights).enumerate() {
            let x = if k == 0 {
                &states.before
            } else {
                &states.inner[k - 1]
            };
            let dy = dinner.get(k).map_or(&*dprojected, |d| d);
            factor.backward_weight(isa, x, dy, dweight, None);
        }
        dinner.into_iter().for_each(|d| buffers.give(d));
        let [gate_bias, update_bias, zeta, nu] = dvectors;
        for (to, at) in [(gate_bias, 0), (update_bias, 1)] {
            for part in sums.chunks_exact(4 * width) {
                let part = &part[at * width..][..width];
                to.iter_mut().zip(part).for_each(|(to, x)| *to += x);
            }
        }
        for (to, at, factor) in [(zeta, 2, parts.zeta), (nu, 3, parts.nu)] {
            let sum: f64 = (sums.chunks_exact(4 * width))
                .flat_map(|part| &part[at * width..][..width])
                .map(|&x| f64::from(x))
                .sum();
            to.iter_mut()
                .for_each(|to| *to += sum as f32 * factor * (1.0 - factor));
        }
    }
}

impl States {
    /// Gives the buffers back.
    pub fn give(self, buffers: &mut Buffers) {
        for buffer in [self.before, self.gate, self.update]
            .into_iter()
            .chain(self.inner)
        {
            buffers.give(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_f64() {
        for i in -120_000..120_000 {
            let x = i as f32 / 1_000.0;
            let close = |found: f32, expected: f64, what: &str| {
                let error = (f64::from(found) - expected).abs();
                assert!(error < 3e-7, "{what}({x}) = {found}, not {expected}");
            };
            let wide = f64::from(x);
            close(sigmoid(x), 1.0 / (1.0 + (-wide).exp()), "sigmoid");
            close(tanh(x), wide.tanh(), "tanh");
        }
        assert!(sigmoid(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }
}
