//! Least squares on the weights that are left.

use super::Refiner;
use crate::matrix::{Matrix, chunked, chunked_mut, product};
use crate::{Result, Task};
use lacuna::Weight;
use rayon::prelude::*;

/// The weights that are left move to where the outputs on the calibration differ least from those of the layer as it
/// was; zeros stay. Up to 100 steps of conjugate gradients for each row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refit;

const STEPS: usize = 100;

impl Refiner for Refit {
    fn name(&self) -> &'static str {
        "refit"
    }

    fn refine(&self, task: &Task<'_>, pruned: Weight) -> Result<Weight> {
        let gram = task.gram()?;
        let h = gram.correlations().map_err(|e| task.refuse(e))?;
        let scale = gram.scale().map_err(|e| task.refuse(e))?;
        let (mut dense, mut pruned) = (Matrix::of(task.layer.weight), Matrix::of(&pruned));
        for m in [&mut dense, &mut pruned] {
            for row in m.data.chunks_exact_mut(m.cols) {
                row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s);
            }
        }
        refit(&dense, &mut pruned, h, STEPS);
        for row in pruned.data.chunks_exact_mut(pruned.cols) {
            row.iter_mut().zip(&scale).for_each(|(w, s)| *w /= s);
        }
        pruned.to_weight(task.layer)
    }
}

/// Conjugate gradients on `tr((W - Ŵ) H (W - Ŵ)ᵀ)` over the non-zeros of `pruned`, each row for itself, until its residual
/// is a ten thousandth or after so many steps. No step makes a row worse.
pub(crate) fn refit(dense: &Matrix, pruned: &mut Matrix, h: &Matrix, steps: usize) {
    let cols = dense.cols;
    let parts = chunked_mut(&mut pruned.data, cols).zip(chunked(&dense.data, cols));
    parts.for_each(|(pruned, dense)| {
        let count = pruned.len() / cols;
        let free: Vec<f64> = pruned
            .iter()
            .map(|&w| f64::from(u8::from(w != 0.0)))
            .collect();
        let gap: Vec<f64> = dense.iter().zip(&*pruned).map(|(d, p)| d - p).collect();
        let mut residual = vec![0.0; pruned.len()];
        product(&mut residual, &gap, h, count);
        residual.iter_mut().zip(&free).for_each(|(r, f)| *r *= f);
        let squares = |values: &[f64]| -> Vec<f64> {
            let rows = values.chunks_exact(cols);
            rows.map(|row| row.iter().map(|v| v * v).sum()).collect()
        };
        let first = squares(&residual);
        let mut size = first.clone();
        let mut direction = residual.clone();
        let mut image = vec![0.0; pruned.len()];
        for _ in 0..steps {
            let done = |r: usize| size[r] <= 1e-8 * first[r];
            let open: Vec<usize> = (0..count).filter(|&r| !done(r)).collect();
            if open.is_empty() {
                break;
            }
            product(&mut image, &direction, h, count);
            for r in open {
                let row = r * cols..(r + 1) * cols;
                let d = &mut direction[row.clone()];
                let curve: f64 = d.iter().zip(&image[row.clone()]).map(|(d, i)| d * i).sum();
                if curve.is_nan() || curve <= 0.0 {
                    size[r] = 0.0;
                    continue;
                }
                let far = size[r] / curve;
                let (w, rest) = (&mut pruned[row.clone()], &mut residual[row.clone()]);
                for i in 0..cols {
                    w[i] += far * d[i];
                    rest[i] -= far * image[r * cols + i] * free[r * cols + i];
                }
                let left: f64 = rest.iter().map(|v| v * v).sum();
                let keep = left / size[r];
                d.iter_mut()
                    .zip(&*rest)
                    .for_each(|(d, r)| *d = r + keep * *d);
                size[r] = left;
            }
        }
    });
}
