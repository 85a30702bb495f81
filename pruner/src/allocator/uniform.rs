//! The baseline: every layer the same sparsity.

use super::{Allocation, Allocator, Budget, counts_at, refine_layers};
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
        if budget.sigma > 0 && budget.remove > 0 {
            let mut allocation = refine_layers(layers, &start, budget)?;
            for (held, layer) in allocation.floored.iter_mut().zip(layers) {
                *held |= layer.numel() <= budget.sigma;
            }
            return Ok(allocation);
        }
        Ok(Allocation {
            remove: counts_at(layers, &start, budget),
            floored: vec![false; layers.len()],
            threshold: None,
        })
    }
}
