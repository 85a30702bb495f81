//! Column pruning: the inner channels of a product of two factors.

use super::{Allocation, Allocator, Budget, share};
use crate::{Error, Layer, Result};
use lacuna::Model;
use lacuna::model::{Node, Op};
use std::collections::BTreeMap;

/// Takes whole inner channels of factors of low rank, `W = W1 W2`: each first factor loses a share of its channels, or keeps
/// as many as its rank says. The rule of Global MP for FastGRNN (arXiv 2209.14624), whose first factors are stored the
/// other way round: its columns are rows `[rank, inputs]` here.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// By the name of a first factor, the channels that it keeps; the others lose the budget's share.
    pub ranks: BTreeMap<String, usize>,
    /// How far pruning is, from 0 to 1: this part of the channels that are to go goes.
    pub progress: f64,
}

/// The same share of every factor.
pub(crate) static EVEN: Columns = Columns {
    ranks: BTreeMap::new(),
    progress: 1.0,
};

impl Allocator for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        if budget.sigma > 0 {
            return Err(Error::Recipe(
                "a floor of weights is not for columns; give ranks".into(),
            ));
        }
        for (name, rank) in &self.ranks {
            let layer = layers.iter().find(|l| l.name == name);
            let known: Vec<&str> = layers.iter().map(|l| l.name).collect();
            let layer = layer.ok_or_else(|| {
                Error::Recipe(format!(
                    "a rank for `{name}`, which is no first factor; those are {}",
                    known.join(", ")
                ))
            })?;
            let full = layer.weight.shape()[0];
            if *rank == 0 || *rank > full {
                return Err(Error::Recipe(format!(
                    "a rank of {rank} for `{name}`; give from 1 to {full}"
                )));
            }
        }
        let remove = |layer: &Layer<'_>| {
            let (rank, each) = (layer.weight.shape()[0], layer.weight.shape()[1]);
            let goes = match self.ranks.get(layer.name) {
                Some(kept) => share(self.progress, rank - kept),
                None => share(budget.sparsity, rank).min(rank - 1),
            };
            goes * each
        };
        Ok(Allocation {
            remove: layers.iter().map(remove).collect(),
            floored: vec![false; layers.len()],
            threshold: None,
        })
    }
}

/// Two products in a row, `x -> A x -> B A x`, with nothing else between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<'m> {
    /// The first product.
    pub first: &'m Node,
    /// The second.
    pub second: &'m Node,
}

/// The pairs of products whose weights nothing else reads: between them channels can go.
pub(crate) fn pairs(model: &Model) -> Vec<Pair<'_>> {
    let graph = model.graph();
    let readers = |name: &str| {
        let inputs = graph.nodes.iter().flat_map(|n| &n.inputs);
        inputs.chain(&graph.outputs).filter(|i| *i == name).count()
    };
    let product = |node: &Node| {
        let weight = model.weights().get(node.inputs.get(1)?)?;
        let fits = matches!(node.op, Op::MatMul { .. }) && weight.shape().len() == 2;
        (fits && readers(&node.inputs[1]) == 1).then_some(())
    };
    let pair = |second: &'_ Node| -> Option<usize> {
        product(second)?;
        let at = graph
            .nodes
            .iter()
            .position(|n| n.output == second.inputs[0])?;
        product(&graph.nodes[at])?;
        (readers(&graph.nodes[at].output) == 1).then_some(at)
    };
    (graph.nodes.iter())
        .filter_map(|second| {
            let first = &graph.nodes[pair(second)?];
            Some(Pair { first, second })
        })
        .collect()
}

/// Leaves the layers that are first factors, stored `[rank, inputs]`.
pub(crate) fn first_factors<'m>(model: &Model, layers: Vec<Layer<'m>>) -> Result<Vec<Layer<'m>>> {
    let pairs = pairs(model);
    let is_first = |layer: &Layer<'_>| {
        let own = |p: &Pair<'_>| p.first.inputs[1] == layer.name;
        pairs.iter().any(own) && layer.node.op == Op::MatMul { trans_b: true }
    };
    let found: Vec<Layer<'m>> = layers.into_iter().filter(is_first).collect();
    match found.is_empty() {
        true => Err(Error::Recipe(
            "columns are pruned of factors of low rank, two MatMul in a row; no selected weight is the first of such"
                .into(),
        )),
        false => Ok(found),
    }
}
