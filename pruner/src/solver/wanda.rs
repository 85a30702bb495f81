//! Wanda (arXiv 2306.11695): magnitudes times the norms of the inputs.

use super::{Solver, Statistics, Task, mask};
use crate::Result;
use crate::matrix::Matrix;
use lacuna::Weight;

/// In each row the smallest `|w| ‖x‖` go, for the norm of the input feature over the calibration; the others stay as
/// they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanda;

impl Solver for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Diagonal
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        let mut weight = Matrix::of(task.layer.weight);
        let norms: Vec<f64> = task.gram()?.diagonal().iter().map(|d| d.sqrt()).collect();
        let rows = weight.data.chunks_exact(weight.cols);
        let scores: Vec<f64> = rows
            .flat_map(|row| row.iter().zip(&norms).map(|(w, n)| w.abs() * n))
            .collect();
        let keep = match task.pattern {
            Some(pattern) => mask::by_groups(&scores, pattern),
            None => mask::by_rows(&scores, weight.cols, task.remove),
        };
        mask::apply(&mut weight.data, &keep);
        weight.to_weight(task.layer)
    }
}
