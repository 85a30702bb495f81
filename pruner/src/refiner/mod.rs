//! What happens to a layer after its weights went.

mod refit;
mod swaps;

pub use refit::Refit;
pub(crate) use refit::refit;
pub use swaps::SparseSwaps;

use crate::{Result, Task};
use lacuna::Weight;

/// Mends a pruned layer without bringing more weights back.
pub trait Refiner: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// A better `pruned`, with as many zeros in each row; the task has the layer as it was and the second moments of
    /// its inputs.
    fn refine(&self, task: &Task<'_>, pruned: Weight) -> Result<Weight>;
}

/// One refiner behind the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwapsThenRefit;

impl Refiner for SwapsThenRefit {
    fn name(&self) -> &'static str {
        "sparse-swaps-refit"
    }

    fn refine(&self, task: &Task<'_>, pruned: Weight) -> Result<Weight> {
        Refit.refine(task, SparseSwaps.refine(task, pruned)?)
    }
}
