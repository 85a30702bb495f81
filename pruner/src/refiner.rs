//! What happens to a model after its weights went.

use crate::{Plan, Result};
use lacuna::Model;

/// Mends a pruned model without bringing weights back. No refiner is built in yet.
pub trait Refiner: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// A better `pruned`, with the same zeros; `dense` is the model before.
    fn refine(&self, dense: &Model, pruned: Model, plan: &Plan) -> Result<Model>;
}
