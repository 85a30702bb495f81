//! Batch normalisation in training mode over channels-last values, and what may follow it in the same pass.

use super::parts::{SPAN, parts};
use super::tape::Limits;
use lacuna::Isa;
use rayon::prelude::*;

/// Numbers by channel, repeated so that a pass over them is a long loop.
fn repeated(values: &[f32], len: usize) -> Vec<f32> {
    values.iter().copied().cycle().take(len).collect()
}

/// The length of a repeated row of `channels`.
fn row(channels: usize) -> usize {
    channels * 512usize.div_ceil(channels.max(1)).max(1)
}

/// What the backward pass needs of the forward pass.
#[derive(Debug, Default)]
pub(super) struct Moments {
    /// Means of the channels.
    pub mean: Vec<f32>,
    /// `1 / sqrt(variance + epsilon)`.
    pub inverse: Vec<f32>,
}

/// `(x - mean) * inverse * scale + bias`, limited.
struct Affine {
    factor: Vec<f32>,
    offset: Vec<f32>,
}

impl Affine {
    fn new(moments: &Moments, scale: &[f32], bias: &[f32], len: usize) -> Affine {
        let factor: Vec<f32> = moments
            .inverse
            .iter()
            .zip(scale)
            .map(|(i, s)| i * s)
            .collect();
        let offset: Vec<f32> = (bias.iter().zip(&factor).zip(&moments.mean))
            .map(|((b, f), m)| b - m * f)
            .collect();
        Affine {
            factor: repeated(&factor, len),
            offset: repeated(&offset, len),
        }
    }
}

/// Mean and variance of each channel over the rows of `x`, the biased one.
///
/// Sums are taken of differences from the first row, in f32 over a few hundred rows and in f64 beyond.
pub(super) fn statistics(
    isa: Isa,
    x: &[f32],
    channels: usize,
    batch: usize,
) -> (Vec<f64>, Vec<f64>) {
    let len = row(channels);
    let shift = repeated(&x[..channels], len);
    let image = x.len() / batch.max(1);
    let sums: Vec<(Vec<f64>, Vec<f64>)> = parts(batch)
        .into_par_iter()
        .map(|part| {
            let (mut sum, mut square) = (vec![0.0f32; len], vec![0.0f32; len]);
            isa.vectorize(|| {
                for x in x[part.start * image..part.end * image].chunks(len) {
                    for (((s, q), x), m) in sum.iter_mut().zip(&mut square).zip(x).zip(&shift) {
                        let d = x - m;
                        *s += d;
                        *q += d * d;
                    }
                }
            });
            (fold(&sum, channels), fold(&square, channels))
        })
        .collect();
    let rows = (x.len() / channels.max(1)) as f64;
    let add = |square: bool, c: usize| -> f64 {
        let of = |s: &(Vec<f64>, Vec<f64>)| if square { s.1[c] } else { s.0[c] };
        sums.iter().map(of).sum::<f64>() / rows
    };
    let mut mean = vec![0.0; channels];
    let mut variance = vec![0.0; channels];
    for c in 0..channels {
        let (m, q) = (add(false, c), add(true, c));
        mean[c] = m + f64::from(shift[c]);
        variance[c] = (q - m * m).max(0.0);
    }
    (mean, variance)
}

/// A repeated row back to its channels.
fn fold(row: &[f32], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for row in row.chunks(channels) {
        sums.iter_mut()
            .zip(row)
            .for_each(|(s, x)| *s += f64::from(*x));
    }
    sums
}

/// `y = limits(normalised x * scale + bias)`.
pub(super) fn forward(
    isa: Isa,
    x: &[f32],
    moments: &Moments,
    [scale, bias]: [&[f32]; 2],
    limits: Option<Limits>,
    y: &mut [f32],
) {
    let len = row(scale.len());
    let affine = Affine::new(moments, scale, bias, len);
    let span = len * SPAN.div_ceil(len);
    (y.par_chunks_mut(span).zip(x.par_chunks(span))).for_each(|(y, x)| {
        isa.vectorize(|| {
            for (y, x) in y.chunks_mut(len).zip(x.chunks(len)) {
                let channels = affine.factor.iter().zip(&affine.offset);
                match limits {
                    Some(Limits { low, high }) => {
                        for ((y, x), (f, o)) in y.iter_mut().zip(x).zip(channels) {
                            let v = x * f + o;
                            let v = if v < low { low } else { v };
                            *y = if v > high { high } else { v };
                        }
                    }
                    None => {
                        for ((y, x), (f, o)) in y.iter_mut().zip(x).zip(channels) {
                            *y = x * f + o;
                        }
                    }
                }
            }
        });
    });
}

/// Turns the output's gradient into the input's, in place, and adds those of scale and bias to theirs.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    isa: Isa,
    x: &[f32],
    batch: usize,
    moments: &Moments,
    [scale, bias]: [&[f32]; 2],
    limits: Option<Limits>,
    gradient: &mut [f32],
    [dscale, dbias]: [&mut [f32]; 2],
) {
    let channels = scale.len();
    let len = row(channels);
    let affine = Affine::new(moments, scale, bias, len);
    let mean = repeated(&moments.mean, len);
    let image = x.len() / batch.max(1);
    let parts = parts(batch);
    // Where the output was limited no gradient goes further; the output is computed again rather than kept.
    let limits = limits.unwrap_or(Limits {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
    });
    let sums: Vec<[Vec<f64>; 2]> = parts
        .par_iter()
        .map(|part| {
            let (mut own, mut product) = (vec![0.0f32; len], vec![0.0f32; len]);
            let range = part.start * image..part.end * image;
            isa.vectorize(|| {
                for (x, g) in x[range.clone()]
                    .chunks(len)
                    .zip(gradient[range].chunks(len))
                {
                    let sums = own.iter_mut().zip(&mut product);
                    let channels = affine.factor.iter().zip(&affine.offset).zip(&mean);
                    for (((s, p), (x, g)), ((f, o), m)) in sums.zip(x.iter().zip(g)).zip(channels) {
                        let v = x * f + o;
                        let g = if v > limits.low && v < limits.high {
                            *g
                        } else {
                            0.0
                        };
                        *s += g;
                        *p += g * (x - m);
                    }
                }
            });
            [fold(&own, channels), fold(&product, channels)]
        })
        .collect();
    let rows = (x.len() / channels.max(1)) as f64;
    let (mut spread, mut level) = (vec![0.0f32; channels], vec![0.0f32; channels]);
    for c in 0..channels {
        let inverse = f64::from(moments.inverse[c]);
        let own: f64 = sums.iter().map(|s| s[0][c]).sum();
        let product: f64 = sums.iter().map(|s| s[1][c]).sum();
        dscale[c] += (product * inverse) as f32;
        dbias[c] += own as f32;
        let factor = inverse * f64::from(scale[c]);
        spread[c] = (-factor * inverse * inverse * product / rows) as f32;
        level[c] = (-factor * own / rows) as f32;
    }
    let (spread, level) = (repeated(&spread, len), repeated(&level, len));
    let span = len * SPAN.div_ceil(len);
    (gradient.par_chunks_mut(span).zip(x.par_chunks(span))).for_each(|(g, x)| {
        isa.vectorize(|| {
            for (g, x) in g.chunks_mut(len).zip(x.chunks(len)) {
                let channels = affine.factor.iter().zip(&affine.offset).zip(&mean);
                let more = spread.iter().zip(&level);
                for (((g, x), ((f, o), m)), (s, l)) in g.iter_mut().zip(x).zip(channels).zip(more) {
                    let v = x * f + o;
                    let own = if v > limits.low && v < limits.high {
                        *g
                    } else {
                        0.0
                    };
                    *g = own * f + (x - m) * s + l;
                }
            }
        });
    });
}
