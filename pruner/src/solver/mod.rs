//! Which weights of a layer go, and what happens to the others.

mod admm;
mod columns;
mod mask;
mod sparsegpt;
#[cfg(test)]
mod tests;
mod wanda;

pub use admm::{Alps, LAdmm};
pub use columns::ColumnSolver;
pub use mask::Pattern;
pub(crate) use mask::zeros_under;
pub use sparsegpt::SparseGpt;
pub use wanda::Wanda;

use crate::calibration::Gram;
use crate::matrix::Matrix;
use crate::{Error, Layer, Result, select};
use lacuna::Weight;

/// Decides which weights a layer loses, and what happens to the others.
pub trait Solver: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// What the solver needs to know of the layer's inputs.
    fn statistics(&self) -> Statistics {
        Statistics::None
    }

    /// The layer's weight, dense and of the same shape and dtype, with the task's elements set to 0.
    fn solve(&self, task: &Task<'_>) -> Result<Weight>;

    /// The elements of that weight that will be 0 where `remove` go and no pattern matters.
    fn zeros_after(&self, layer: &Layer<'_>, remove: usize) -> usize {
        layer.zeros.max(remove)
    }
}

/// What is known of a layer's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statistics {
    /// Nothing.
    None,
    /// The second moment of each feature.
    Diagonal,
    /// Those of all pairs of features.
    Full,
}

/// A layer to prune.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The layer as it was.
    pub layer: &'a Layer<'a>,
    /// Elements that go; those that are zero already count first.
    pub remove: usize,
    /// How the elements that go lie, if it matters; `remove` is what it takes then.
    pub pattern: Option<Pattern>,
    /// Second moments of its inputs, where the run is calibrated.
    pub gram: Option<&'a Gram>,
}

impl Task<'_> {
    pub(crate) fn gram(&self) -> Result<&Gram> {
        let none = || self.refuse("the method is calibrated: give a text".into());
        self.gram.ok_or_else(none)
    }

    pub(crate) fn refuse(&self, what: String) -> Error {
        Gram::refuse(self.layer.name, what)
    }
}

/// The smallest magnitudes go, equal ones in flat order; the others stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct MagnitudeSolver;

impl Solver for MagnitudeSolver {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn solve(&self, task: &Task<'_>) -> Result<Weight> {
        let Some(pattern) = task.pattern else {
            return Ok(select::zero_smallest(task.layer, task.remove));
        };
        let mut weight = Matrix::of(task.layer.weight);
        let keep = mask::by_groups(
            &weight.data.iter().map(|w| w.abs()).collect::<Vec<_>>(),
            pattern,
        );
        mask::apply(&mut weight.data, &keep);
        weight.to_weight(task.layer)
    }
}
