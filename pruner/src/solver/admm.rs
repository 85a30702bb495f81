//! Layer-wise pruning by the alternating direction method of multipliers: L-ADMM and ALPS.
//!
//! Both minimise `tr((W - Ŵ) H (W - Ŵ)ᵀ)` over weights `Ŵ` with so many non-zeros, in coordinates where the diagonal of
//! `H` is 1. The weights alternate between the quadratic alone (`B`) and the zeros alone (`Z`), and `V` pulls them
//! together. Iterations are in f32, the eigenvectors and what is kept at the end in f64.

use super::{Pattern, Solver, Statistics, Task, mask};
use crate::Result;
use crate::calibration::Gram;
use crate::matrix::{Matrix, chunked, chunked_mut};
use crate::refiner::refit;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use lacuna::Weight;
use rayon::prelude::*;

/// ALPS (arXiv 2406.07831): ADMM with a growing penalty until the zeros settle, then conjugate gradients on what is
/// left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alps;

/// L-ADMM (arXiv 2401.02938): twenty iterations with a fixed penalty; sparsity grows over the first fifteen.
#[derive(Clone, Copy, Debug, Default)]
pub struct LAdmm;

/// Steps of conjugate gradients behind ALPS.
const REFIT: usize = 10;

impl Solver for Alps {
    fn name(&self) -> &'static str {
        "alps"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Full
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        let gram = task.gram()?;
        let refuse = |e| task.refuse(e);
        let mut scaled = Scaled::new(task, gram).map_err(refuse)?;
        let found = alps(&scaled, gram, task).map_err(refuse)?;
        let mut pruned = Matrix::new(scaled.weight.rows, scaled.weight.cols, found);
        let h = gram.correlations().map_err(refuse)?;
        refit(&scaled.weight, &mut pruned, h, REFIT);
        scaled.weight = pruned;
        scaled.weight(task)
    }
}

impl Solver for LAdmm {
    fn name(&self) -> &'static str {
        "l-admm"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Full
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        const ITERATIONS: usize = 20;
        const RAMP: usize = 15;
        const DAMPING: f64 = 0.1;
        let gram = task.gram()?;
        let mut scaled = Scaled::new(task, gram).map_err(|e| task.refuse(e))?;
        let eigen = gram.eigen().map_err(|e| task.refuse(e))?;
        let quadratic = Quadratic::new(&eigen.vectors, &eigen.values, 1.0 + DAMPING);
        // `G` of the damped quadratic; a penalty of 1 leaves `V` the sum of the gaps.
        let mut target = scaled.target(gram).map_err(|e| task.refuse(e))?;
        for (t, w) in target.iter_mut().zip(&scaled.weight.data) {
            *t += (DAMPING * w) as f32;
        }
        let mut b: Vec<f32> = scaled.weight.data.iter().map(|&w| w as f32).collect();
        let mut v = vec![0f32; b.len()];
        let mut keep = Vec::new();
        for step in 1..=ITERATIONS {
            let sum: Vec<f32> = b.iter().zip(&v).map(|(b, v)| b + v).collect();
            if step <= RAMP {
                let left = 1.0 - step as f64 / RAMP as f64;
                let share = 1.0 - left.powi(3);
                keep = support(
                    &sum,
                    task.pattern,
                    (task.remove as f64 * share).round() as usize,
                );
            }
            let z = |i: usize| if keep[i] { sum[i] } else { 0.0 };
            if step == ITERATIONS {
                scaled.weight.data = (0..b.len()).map(|i| f64::from(z(i))).collect();
                break;
            }
            let mut right = target.clone();
            for i in 0..b.len() {
                v[i] += b[i] - z(i);
                right[i] += z(i) - v[i];
            }
            b = quadratic.solve(right);
        }
        scaled.weight(task)
    }
}

/// A layer in coordinates where the diagonal of `H` is 1.
struct Scaled {
    weight: Matrix,
    scale: Vec<f64>,
}

impl Scaled {
    fn new(task: &Task<'_>, gram: &Gram) -> Result<Scaled, String> {
        let mut weight = Matrix::of(task.layer.weight);
        let scale = gram.scale()?;
        for row in weight.data.chunks_exact_mut(weight.cols) {
            row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s);
        }
        Ok(Scaled { weight, scale })
    }

    /// `W H`.
    fn target(&self, gram: &Gram) -> Result<Vec<f32>, String> {
        let image = self.weight.times(gram.correlations()?);
        Ok(image.data.iter().map(|&v| v as f32).collect())
    }

    fn weight(mut self, task: &Task<'_>) -> Result<Weight> {
        for row in self.weight.data.chunks_exact_mut(self.weight.cols) {
            row.iter_mut().zip(&self.scale).for_each(|(w, s)| *w /= s);
        }
        self.weight.to_weight(task.layer)
    }
}

/// `(H + shift I)⁻¹`, from the eigenvectors of `H`.
struct Quadratic<'a> {
    vectors: &'a [f32],
    inverse: Vec<f32>,
}

impl Quadratic<'_> {
    fn new<'a>(vectors: &'a [f32], values: &[f64], shift: f64) -> Quadratic<'a> {
        let inverse = values.iter().map(|l| (1.0 / (l + shift)) as f32).collect();
        Quadratic { vectors, inverse }
    }

    /// The rows of `right` times the inverse.
    fn solve(&self, mut right: Vec<f32>) -> Vec<f32> {
        let n = self.inverse.len();
        let q = MatRef::from_row_major_slice(self.vectors, n, n);
        chunked_mut(&mut right, n).for_each(|rows| {
            let count = rows.len() / n;
            let mut turned = vec![0f32; rows.len()];
            let times = |out: &mut [f32], rows: &[f32], q| {
                let out = MatMut::from_row_major_slice_mut(out, count, n);
                let rows = MatRef::from_row_major_slice(rows, count, n);
                matmul(out, Accum::Replace, rows, q, 1.0, Par::Seq);
            };
            times(&mut turned, rows, q);
            for row in turned.chunks_exact_mut(n) {
                row.iter_mut().zip(&self.inverse).for_each(|(v, i)| *v *= i);
            }
            times(rows, &turned, q.transpose());
        });
        right
    }
}

/// The largest stay: of the whole layer, or of each group of the pattern.
fn support(values: &[f32], pattern: Option<Pattern>, remove: usize) -> Vec<bool> {
    let scores: Vec<f64> = values.iter().map(|v| f64::from(v.abs())).collect();
    match pattern {
        Some(pattern) => mask::by_groups(&scores, pattern),
        None => mask::lowest(&scores, remove),
    }
}

/// The weights on whose zeros ALPS settles.
fn alps(scaled: &Scaled, gram: &Gram, task: &Task<'_>) -> Result<Vec<f64>, String> {
    const ITERATIONS: usize = 300;
    const LOOK: usize = 3;
    const ENOUGH: usize = 30;
    /// A penalty that no longer moves anything.
    const LEAST: f64 = 1e-8;
    let eigen = gram.eigen()?;
    let target = scaled.target(gram)?;
    let start: Vec<f32> = scaled.weight.data.iter().map(|&w| w as f32).collect();
    let kept = (start.len() - task.remove).max(1) as f64;
    let first = support(&start, task.pattern, task.remove);
    let masked = |values: &[f32], keep: &[bool]| -> Vec<f32> {
        let all = values.iter().zip(keep);
        all.map(|(&v, &k)| if k { v } else { 0.0 }).collect()
    };
    let mut seen = first.clone();
    let (mut z, mut v) = (masked(&start, &first), vec![0f32; start.len()]);
    let (mut penalty, mut grown) = (0.1f64, false);
    let mut quadratic = Quadratic::new(&eigen.vectors, &eigen.values, penalty);
    for step in 1..=ITERATIONS {
        let p = penalty as f32;
        let n = scaled.weight.cols;
        let mut right = vec![0f32; start.len()];
        let parts = chunked_mut(&mut right, n).zip(chunked(&target, n));
        parts
            .zip(chunked(&v, n).zip(chunked(&z, n)))
            .for_each(|((right, target), (v, z))| {
                for i in 0..right.len() {
                    right[i] = target[i] - v[i] + p * z[i];
                }
            });
        let b = quadratic.solve(right);
        let sum: Vec<f32> = b.iter().zip(&v).map(|(b, v)| b + v / p).collect();
        let keep = support(&sum, task.pattern, task.remove);
        z = masked(&sum, &keep);
        for ((v, b), z) in v.iter_mut().zip(&b).zip(&z) {
            *v += p * (b - z);
        }
        if step % LOOK != 0 {
            continue;
        }
        let flips = keep.iter().zip(&seen).filter(|(a, b)| a != b).count() as f64;
        seen = keep;
        let share = flips / kept;
        if step >= ENOUGH && grown && share < 3e-4 {
            break;
        }
        let factor = match (share, flips > 0.5, grown) {
            (s, _, _) if s > 0.1 => 1.3,
            (s, _, _) if s > 0.005 => 1.2,
            (_, true, true) => 1.1,
            (_, true, false) => {
                // The penalty is too large from the start: nothing moves any more.
                (z, seen) = (masked(&start, &first), first.clone());
                v.fill(0.0);
                0.2
            }
            (_, false, true) => break,
            (_, false, false) => 0.2,
        };
        grown |= factor > 1.0;
        penalty *= factor;
        if penalty < LEAST {
            break;
        }
        quadratic = Quadratic::new(&eigen.vectors, &eigen.values, penalty);
    }
    Ok(z.into_iter().map(f64::from).collect())
}
