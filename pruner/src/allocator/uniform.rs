//! The baseline: every layer the same sparsity.

use super::{Allocation, Allocator, Budget, at_sparsities};
use crate::{Layer, Result};

/// Every layer loses the same share. With a floor, what the layers that it holds cannot lose is
/// spread over the others; both floor modes give the same answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uniform;

impl Allocator for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let start = vec![budget.sparsity; layers.len()];
        let mut allocation = at_sparsities(layers, &start, budget)?;
        if budget.sigma > 0 && budget.remove > 0 {
            for (held, layer) in allocation.floored.iter_mut().zip(layers) {
                *held |= layer.numel() <= budget.sigma;
            }
        }
        Ok(allocation)
    }
}
