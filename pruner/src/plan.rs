//! What a run will do, layer by layer, before anything is changed.

use crate::solver::zeros_under;
use crate::{Allocator, Budget, FloorMode, Layer, Pattern, Result, Solver, Task, Ties};
use lacuna::model::Storage;
use lacuna::{Model, Weight};
use rayon::prelude::*;
use serde::Serialize;

/// What a run will do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The allocator.
    pub allocator: &'static str,
    /// The sparsity asked for, over the layers below.
    pub target: f64,
    /// Weights of the layers below.
    pub total: usize,
    /// Weights that are zero already.
    pub zeros_before: usize,
    /// Weights that will be zero.
    pub zeros_after: usize,
    /// The floor: weights that each layer keeps at least, 0 for none.
    pub sigma: usize,
    /// How the floor is kept.
    pub floor: FloorMode,
    /// What happens to equal magnitudes.
    pub ties: Ties,
    /// How the zeros lie, if it matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// The one magnitude below which weights go, where the method has one.
    pub threshold: Option<f32>,
    /// The layers, in graph order.
    pub layers: Vec<PlannedLayer>,
}

/// What will happen to one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// The weight's name.
    pub weight: String,
    /// The node that reads it.
    pub node: String,
    /// The node's operator.
    pub op: &'static str,
    /// The weight's shape.
    pub shape: Vec<usize>,
    /// Elements of the weight.
    pub size: usize,
    /// Elements that are zero already.
    pub zeros_before: usize,
    /// Elements that will be zero.
    pub zeros_after: usize,
    /// Elements that the allocator takes; those that are zero already count first.
    pub remove: usize,
    /// Whether the floor kept weights that would have gone.
    pub floored: bool,
    /// Whether the zeros will lie 2:4, by the pattern or as they lay before.
    #[serde(skip)]
    pub two_four: bool,
}

impl PlannedLayer {
    /// The share of elements that will be zero.
    pub fn sparsity(&self) -> f64 {
        self.zeros_after as f64 / self.size.max(1) as f64
    }

    /// Whether nothing of the layer will be left.
    pub fn is_empty(&self) -> bool {
        self.size > 0 && self.zeros_after == self.size
    }
}

impl Plan {
    /// The model with every weight of `Conv`, `Gemm` and `MatMul` in its best storage; one of the plan is 2:4 only
    /// where that was foreseen.
    pub(crate) fn encoded(&self, model: &Model) -> Result<Model> {
        let mut encoded = model.encoded();
        for layer in self.layers.iter().filter(|l| !l.two_four) {
            let Some(weight) = encoded.weights().get(&layer.weight) else {
                continue;
            };
            if weight.storage() == Storage::TwoFour {
                let weight = weight.decode();
                let other = weight.best_storage(weight.count_nonzero(), false);
                let weight = weight.store_as(other).unwrap_or(weight);
                encoded.set_weight(&layer.weight, weight)?;
            }
        }
        Ok(encoded)
    }

    /// Plans the allocation of `sparsity` over `layers`.
    pub(crate) fn new(
        layers: &[Layer<'_>],
        allocator: &dyn Allocator,
        solver: &dyn Solver,
        budget: &Budget,
        pattern: Option<Pattern>,
    ) -> Result<Plan> {
        let mut allocation = allocator.allocate(layers, budget)?;
        if let Some(pattern) = pattern {
            for (remove, layer) in allocation.remove.iter_mut().zip(layers) {
                *remove = pattern.remove(layer.name, layer.weight.matrix())?;
            }
        }
        let planned: Vec<PlannedLayer> = layers
            .iter()
            .zip(allocation.remove.iter().zip(&allocation.floored))
            .map(|(layer, (&remove, &floored))| PlannedLayer {
                weight: layer.name.to_owned(),
                node: layer.node.name.clone(),
                op: layer.node.op.name(),
                shape: layer.weight.shape().to_vec(),
                size: layer.numel(),
                zeros_before: layer.zeros,
                zeros_after: match pattern {
                    Some(pattern) if layer.zeros > 0 => zeros_under(layer.weight, pattern),
                    _ => solver.zeros_after(layer, remove),
                },
                remove,
                floored,
                two_four: pattern.is_some_and(Pattern::is_two_four) || layer.weight.is_two_four(),
            })
            .collect();
        Ok(Plan {
            allocator: allocator.name(),
            target: budget.sparsity,
            total: budget.total,
            zeros_before: planned.iter().map(|l| l.zeros_before).sum(),
            zeros_after: planned.iter().map(|l| l.zeros_after).sum(),
            sigma: budget.sigma,
            floor: budget.floor,
            ties: budget.ties,
            pattern,
            threshold: allocation.threshold,
            layers: planned,
        })
    }

    /// The share of the layers' weights that will be zero.
    pub fn sparsity(&self) -> f64 {
        self.zeros_after as f64 / self.total.max(1) as f64
    }

    /// The layers whose floor kept weights that would have gone.
    pub fn floored(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.layers.iter().filter(|l| l.floored)
    }

    /// The layers of which nothing will be left: with no path around them the model is dead.
    pub fn emptied(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.layers.iter().filter(|l| l.is_empty())
    }

    /// Carries the plan out on the model that it was made for.
    pub(crate) fn apply(
        &self,
        model: &Model,
        layers: &[Layer<'_>],
        solver: &dyn Solver,
    ) -> Result<Model> {
        let solved: Result<Vec<(&str, Weight)>> = layers
            .par_iter()
            .zip(&self.layers)
            .map(|(layer, planned)| {
                let task = Task {
                    layer,
                    remove: planned.remove,
                    pattern: self.pattern,
                    gram: None,
                };
                Ok((layer.name, solver.solve(&task)?))
            })
            .collect();
        let mut pruned = model.clone();
        for (name, weight) in solved? {
            pruned.set_weight(name, weight)?;
        }
        Ok(pruned)
    }
}
