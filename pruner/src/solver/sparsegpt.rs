//! SparseGPT (arXiv 2301.00774): columns from left to right, each error spread over the columns behind it.

use super::{Solver, Statistics, Task, mask};
use crate::Result;
use crate::matrix::{Matrix, chunked_mut};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use lacuna::Weight;
use rayon::prelude::*;

/// Columns whose mask is chosen together.
const BLOCK: usize = 128;

/// With `H⁻¹ = Uᵀ U`: in every block of 128 columns the smallest `w² / U_jj²` go, and what a weight's going does to the
/// outputs is made up for by the weights behind it in its row.
#[derive(Clone, Copy, Debug, Default)]
pub struct SparseGpt;

impl Solver for SparseGpt {
    fn name(&self) -> &'static str {
        "sparsegpt"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Full
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        let gram = task.gram()?;
        let upper = gram.inverse_factor().map_err(|e| task.refuse(e))?;
        // What a weight's going costs; of an input that is always 0, nothing.
        let costs: Vec<f64> = (gram.diagonal().iter().enumerate())
            .map(|(j, &d)| match d > 0.0 {
                true => upper.data[j * upper.cols + j].powi(-2),
                false => 0.0,
            })
            .collect();
        let mut weight = Matrix::of(task.layer.weight);
        let (rows, cols) = (weight.rows, weight.cols);
        let block = task.pattern.map_or(BLOCK, |p| BLOCK / p.of * p.of);
        let mut gone = 0;
        for first in (0..cols).step_by(block) {
            let end = (first + block).min(cols);
            let keep = match task.pattern {
                Some(_) => Vec::new(),
                None => {
                    // What is to be gone by this column, so that the total comes out exact.
                    let due = (task.remove as u128 * end as u128 / cols as u128) as usize;
                    let scores = scores(&weight, &costs[first..end], first..end);
                    let keep = mask::lowest(&scores, due - gone);
                    gone = due;
                    keep
                }
            };
            let width = end - first;
            let mut errors = vec![0.0; rows * width];
            let parts = chunked_mut(&mut weight.data, cols).zip(chunked_mut(&mut errors, width));
            parts.enumerate().for_each(|(part, (w, errors))| {
                let at = part * crate::matrix::ROWS;
                for (r, (w, errors)) in w
                    .chunks_exact_mut(cols)
                    .zip(errors.chunks_exact_mut(width))
                    .enumerate()
                {
                    let mut group = Vec::new();
                    for j in first..end {
                        let stays = match task.pattern {
                            None => keep[(at + r) * width + j - first],
                            Some(p) => {
                                if (j - first) % p.of == 0 {
                                    let score = |k: usize| w[k] * w[k] * costs[k];
                                    let scores: Vec<f64> = (j..j + p.of).map(score).collect();
                                    group = mask::by_groups(&scores, p);
                                }
                                group[(j - first) % p.of]
                            }
                        };
                        if stays {
                            continue;
                        }
                        let factors = &upper.data[j * cols..][..cols];
                        let error = w[j] / factors[j];
                        for (w, u) in w[j + 1..end].iter_mut().zip(&factors[j + 1..end]) {
                            *w -= error * u;
                        }
                        w[j] = 0.0;
                        errors[j - first] = error;
                    }
                }
                if end < cols {
                    let count = w.len() / cols;
                    let factors = upper.view().submatrix(first, end, width, cols - end);
                    matmul(
                        MatMut::from_row_major_slice_mut(w, count, cols)
                            .subcols_mut(end, cols - end),
                        Accum::Add,
                        MatRef::from_row_major_slice(&*errors, count, width),
                        factors,
                        -1.0,
                        Par::Seq,
                    );
                }
            });
        }
        weight.to_weight(task.layer)
    }
}

fn scores(weight: &Matrix, costs: &[f64], columns: std::ops::Range<usize>) -> Vec<f64> {
    let rows = weight.data.chunks_exact(weight.cols);
    rows.flat_map(|row| {
        let row = row[columns.clone()].iter().zip(costs);
        row.map(|(w, cost)| w * w * cost)
    })
    .collect()
}
