//! Whole columns of factors of low rank.

use super::{Solver, Task};
use crate::{Error, Layer, Result};
use lacuna::Weight;

/// Whole slices of the first axis go, those of the smallest sums of magnitudes, equal ones in order: as many as fit into
/// the elements that are to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct ColumnSolver;

impl ColumnSolver {
    fn solved(layer: &Layer<'_>, remove: usize) -> Vec<f32> {
        let mut values = layer.weight.to_f32().unwrap_or_default();
        let each = values.len() / layer.weight.shape().first().map_or(1, |&n| n.max(1));
        let each = each.max(1);
        let sum = |row: &[f32]| row.iter().map(|&w| f64::from(w.abs())).sum::<f64>();
        let mut order: Vec<(f64, usize)> = (values.chunks_exact(each).map(sum)).zip(0..).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, row) in order.into_iter().take(remove / each) {
            values[row * each..][..each].fill(0.0);
        }
        values
    }
}

impl Solver for ColumnSolver {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        let layer = task.layer;
        let solved = ColumnSolver::solved(layer, task.remove);
        let solved = Weight::from_f32(layer.weight.shape(), &solved);
        let refuse = |what: String| Error::Factor {
            weight: layer.name.to_owned(),
            what,
        };
        solved.to_dtype(layer.weight.dtype()).map_err(refuse)
    }

    fn zeros_after(&self, layer: &Layer<'_>, remove: usize) -> usize {
        let solved = ColumnSolver::solved(layer, remove);
        solved.iter().filter(|w| **w == 0.0).count()
    }
}
