//! Sums of equal shapes with an activation in the same pass, and softmax.

use super::parts::SPAN;
use super::tape::Limits;
use lacuna::Isa;
use rayon::prelude::*;

/// `y = limits(a + b)`.
pub(super) fn forward(isa: Isa, a: &[f32], b: &[f32], limits: Option<Limits>, y: &mut [f32]) {
    let Limits { low, high } = limits.unwrap_or(NONE);
    (y.par_chunks_mut(SPAN)
        .zip(a.par_chunks(SPAN))
        .zip(b.par_chunks(SPAN)))
    .for_each(|((y, a), b)| {
        isa.vectorize(|| {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                let v = a + b;
                let v = if v < low { low } else { v };
                *y = if v > high { high } else { v };
            }
        });
    });
}

const NONE: Limits = Limits {
    low: f32::NEG_INFINITY,
    high: f32::INFINITY,
};

/// The gradient of both operands, in place of that of the output `y`.
pub(super) fn backward(isa: Isa, y: &[f32], limits: Option<Limits>, gradient: &mut [f32]) {
    let Some(Limits { low, high }) = limits else {
        return;
    };
    (gradient.par_chunks_mut(SPAN).zip(y.par_chunks(SPAN))).for_each(|(g, y)| {
        isa.vectorize(|| {
            for (g, &y) in g.iter_mut().zip(y) {
                *g = if y > low && y < high { *g } else { 0.0 };
            }
        });
    });
}

/// Softmax over `len` elements that lie `inner` apart.
pub(super) fn softmax(x: &[f32], len: usize, inner: usize, y: &mut [f32]) {
    for (y, x) in y
        .chunks_exact_mut(len * inner)
        .zip(x.chunks_exact(len * inner))
    {
        for i in 0..inner {
            let at = |k: usize| k * inner + i;
            let largest = (0..len).map(|k| x[at(k)]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = (0..len).map(|k| (x[at(k)] - largest).exp()).sum();
            (0..len).for_each(|k| y[at(k)] = (x[at(k)] - largest).exp() / sum);
        }
    }
}

/// The gradient of the input, in place of that of the output `y`.
pub(super) fn softmax_back(y: &[f32], len: usize, inner: usize, gradient: &mut [f32]) {
    for (g, y) in gradient
        .chunks_exact_mut(len * inner)
        .zip(y.chunks_exact(len * inner))
    {
        for i in 0..inner {
            let at = |k: usize| k * inner + i;
            let mean: f32 = (0..len).map(|k| g[at(k)] * y[at(k)]).sum();
            (0..len).for_each(|k| g[at(k)] = (g[at(k)] - mean) * y[at(k)]);
        }
    }
}
