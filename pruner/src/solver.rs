//! Which weights of a layer go.

use crate::{Layer, Result, select};
use lacuna::Weight;

/// Decides which weights a layer loses, and what happens to the others.
pub trait Solver: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// The layer's weight, dense and of the same shape and dtype, with `remove` elements set to 0.
    fn solve(&self, layer: &Layer<'_>, remove: usize) -> Result<Weight>;
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
