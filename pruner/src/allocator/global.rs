//! Global MP: one magnitude threshold for the whole network.

use super::{Allocation, Allocator, Budget, FloorMode, Ties, refine_layers};
use crate::select::{Cut, cut};
use crate::{Layer, Result};

/// Global magnitude pruning with an optional minimum of weights per layer (arXiv 2209.14624).
///
/// The magnitudes of all layers are ranked together and the smallest go, with no normalisation per layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct GlobalMagnitude;

impl Allocator for GlobalMagnitude {
    fn name(&self) -> &'static str {
        "global-magnitude"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let k = budget.remove;
        // The reference's `max(k, 1)` with k - 1 weights removed comes to the same.
        if k == 0 {
            return Ok(Allocation {
                remove: vec![0; layers.len()],
                floored: vec![false; layers.len()],
                threshold: None,
            });
        }
        let sizes: Vec<usize> = layers.iter().map(Layer::numel).collect();
        let removed = |cut: &Cut| match budget.ties {
            Ties::Exact => cut.exact(k),
            Ties::Keep => cut.below.clone(),
        };
        if budget.sigma > 0 && budget.floor == FloorMode::Refine {
            let first = removed(&cut(layers, &sizes, k));
            let start: Vec<f64> = (first.iter().zip(&sizes))
                .map(|(&k, &n)| ratio(k, n))
                .collect();
            let mut allocation = refine_layers(layers, &start, budget)?;
            for (i, layer) in layers.iter().enumerate() {
                allocation.floored[i] |= layer.numel() <= budget.sigma && first[i] > 0;
            }
            return Ok(allocation);
        }
        let caps = budget.caps(layers);
        let cut = cut(layers, &caps, k.min(caps.iter().sum()));
        Ok(Allocation {
            remove: removed(&cut),
            threshold: Some(cut.threshold),
            floored: cut.capped,
        })
    }
}

/// `part / whole`, and 0 of nothing.
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}
