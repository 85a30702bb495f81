//! Which weights of a layer go.

use crate::{Error, Layer, Result, select};
use lacuna::Weight;

/// Decides which weights a layer loses, and what happens to the others.
pub trait Solver: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// The layer's weight, dense and of the same shape and dtype, with `remove` elements set to 0.
    fn solve(&self, layer: &Layer<'_>, remove: usize) -> Result<Weight>;

    /// The elements of that weight that will be 0.
    fn zeros_after(&self, layer: &Layer<'_>, remove: usize) -> usize {
        layer.zeros.max(remove)
    }
}

/// The smallest magnitudes go, equal ones in flat order; the others stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct MagnitudeSolver;

impl Solver for MagnitudeSolver {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn solve(&self, layer: &Layer<'_>, remove: usize) -> Result<Weight> {
        Ok(select::zero_smallest(layer, remove))
    }
}

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

    fn solve(&self, layer: &Layer<'_>, remove: usize) -> Result<Weight> {
        let solved = Weight::from_f32(layer.weight.shape(), &ColumnSolver::solved(layer, remove));
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
