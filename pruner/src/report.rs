//! What is in a model: sizes, zeros, multiply-accumulates and bytes, by layer and in all.

use crate::{Plan, PlannedLayer, Result};
use lacuna::model::{Dim, Node, Op, Shapes, Storage, Symbols, Weight, infer_shapes};
use lacuna::{DType, Model};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// How multiply-accumulates are counted, for printing beside a figure.
pub const MAC_CONVENTION: &str = "1 MAC = one multiplication and one addition; convolutions and linear layers only \
(no bias, normalisation, activation or pooling); sparse MACs count the non-zeros only";

/// One prunable weight and the work that it makes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// The weight's name.
    pub weight: String,
    /// The node that reads it first.
    pub node: String,
    /// That node's operator.
    pub op: &'static str,
    /// The weight's logical shape.
    pub shape: Vec<usize>,
    /// Its dtype.
    pub dtype: &'static str,
    /// "dense", "bitmask" or "2:4".
    pub encoding: &'static str,
    /// Its elements.
    pub size: usize,
    /// Elements that are not zero.
    pub nonzeros: usize,
    /// Multiply-accumulates of every node that reads it, were it dense.
    pub dense_macs: u64,
    /// Multiply-accumulates with its non-zeros alone.
    pub sparse_macs: u64,
    /// Bytes of the weight as it is stored.
    pub bytes: usize,
}

impl LayerReport {
    /// The share of elements that are zero.
    pub fn sparsity(&self) -> f64 {
        1.0 - self.nonzeros as f64 / self.size.max(1) as f64
    }
}

/// A model in figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelReport {
    /// The graph's name.
    pub name: String,
    /// Its inputs, as "name [1, 3, 224, 224]".
    pub inputs: Vec<String>,
    /// Its outputs, as "name [1, 1000]".
    pub outputs: Vec<String>,
    /// Nodes of the graph.
    pub nodes: usize,
    /// The prunable weights in graph order.
    pub layers: Vec<LayerReport>,
    /// The sums.
    pub totals: Totals,
    /// SHA-256 of the recipe that made the model.
    pub recipe: Option<String>,
    /// SHA-256 of the file that the model was converted from.
    pub source: Option<String>,
}

/// Sums over a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Elements of the prunable weights.
    pub prunable: usize,
    /// Those that are zero.
    pub prunable_zeros: usize,
    /// Elements that training changes: every weight but the running statistics of batch normalisations.
    pub trained: usize,
    /// Elements of every weight, biases and BatchNorm statistics included.
    pub parameters: usize,
    /// Those that are zero.
    pub parameter_zeros: usize,
    /// Multiply-accumulates of the prunable weights, were they dense.
    pub dense_macs: u64,
    /// Multiply-accumulates of their non-zeros.
    pub sparse_macs: u64,
    /// Bytes of every weight as it is stored.
    pub weight_bytes: usize,
}

impl Totals {
    /// The share of the prunable elements that are zero.
    pub fn sparsity(&self) -> f64 {
        self.prunable_zeros as f64 / self.prunable.max(1) as f64
    }

    /// The share of all elements that are zero.
    pub fn sparsity_of_all(&self) -> f64 {
        self.parameter_zeros as f64 / self.parameters.max(1) as f64
    }
}

/// How a weight is stored, or will be.
#[derive(Clone, Copy, Debug)]
struct Stored {
    nonzeros: usize,
    storage: Storage,
    bytes: usize,
}

impl Stored {
    fn becomes(weight: &Weight, nonzeros: usize, two_four: bool, keep_dense: bool) -> Stored {
        let storage = match keep_dense {
            true => Storage::Dense,
            false => weight.best_storage(nonzeros, two_four),
        };
        Stored {
            nonzeros,
            storage,
            bytes: weight.bytes_as(storage, nonzeros),
        }
    }
}

/// The weights of a model by name.
type Stores<'m> = BTreeMap<&'m str, Stored>;

/// The figures of a model. Symbolic dimensions that `symbols` does not name count as 1.
pub fn report(model: &Model, symbols: &Symbols) -> Result<ModelReport> {
    figures(model, symbols, &storage(model, &BTreeMap::new()))
}

/// The figures of `model` before and after `plan`, which was made for it, without carrying it out: the layers
/// of the plan are not read again.
pub fn forecast(
    model: &Model,
    plan: &Plan,
    keep_dense: bool,
) -> Result<(ModelReport, ModelReport)> {
    let planned = |left: fn(&PlannedLayer) -> usize| -> BTreeMap<&str, usize> {
        let layers = plan.layers.iter();
        layers.map(|l| (l.weight.as_str(), left(l))).collect()
    };
    let before = storage(model, &planned(|l| l.size - l.zeros_before));
    let left = planned(|l| l.size - l.zeros_after);
    let layers = plan.layers.iter();
    let two_four: BTreeMap<&str, bool> = layers.map(|l| (l.weight.as_str(), l.two_four)).collect();
    let mut after = before.clone();
    let products: BTreeSet<&str> = model.product_weights().iter().map(|p| p.0).collect();
    for (name, stored) in &mut after {
        if keep_dense || products.contains(name) {
            let weight = &model.weights()[*name];
            let nonzeros = left.get(name).copied().unwrap_or(stored.nonzeros);
            let two_four = match two_four.get(name) {
                Some(planned) => *planned,
                None => weight.is_two_four(),
            };
            *stored = Stored::becomes(weight, nonzeros, two_four, keep_dense);
        }
    }
    let symbols = Symbols::new();
    Ok((
        figures(model, &symbols, &before)?,
        figures(model, &symbols, &after)?,
    ))
}

/// How every weight is stored; the non-zeros of `known` ones are not counted again.
fn storage<'m>(model: &'m Model, known: &BTreeMap<&str, usize>) -> Stores<'m> {
    let weights = model.weights().par_iter();
    weights
        .map(|(name, weight)| {
            let nonzeros = known.get(name.as_str()).copied().unwrap_or_else(|| {
                let counted = weight.count_nonzero();
                weight.release();
                counted
            });
            let stored = Stored {
                nonzeros,
                storage: weight.storage(),
                bytes: weight.byte_len(),
            };
            (name.as_str(), stored)
        })
        .collect()
}

fn figures(model: &Model, symbols: &Symbols, stored: &Stores<'_>) -> Result<ModelReport> {
    let symbols = bind(model, symbols);
    let shapes = infer_shapes(model.graph(), model.weights(), &symbols)?;
    let layers: Vec<LayerReport> = model
        .prunable()
        .into_iter()
        .map(|(name, node)| layer(model, &shapes, name, node, stored[name]))
        .collect();
    let statistics = statistics(model);
    let totals = Totals {
        prunable: layers.iter().map(|l| l.size).sum(),
        prunable_zeros: layers.iter().map(|l| l.size - l.nonzeros).sum(),
        trained: model
            .weights()
            .iter()
            .filter(|(name, _)| !statistics.contains(name.as_str()))
            .map(|(_, w)| w.numel())
            .sum(),
        parameters: model.weights().values().map(Weight::numel).sum(),
        parameter_zeros: (model.weights().iter())
            .map(|(name, w)| w.numel() - stored[name.as_str()].nonzeros)
            .sum(),
        dense_macs: layers.iter().map(|l| l.dense_macs).sum(),
        sparse_macs: layers.iter().map(|l| l.sparse_macs).sum(),
        weight_bytes: stored.values().map(|s| s.bytes).sum(),
    };
    let shaped = |name: &str| {
        let dims = shapes.get(name).map(|s| s.as_slice()).unwrap_or_default();
        let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
        format!("{name} [{}]", dims.join(", "))
    };
    let graph = model.graph();
    Ok(ModelReport {
        name: graph.name.clone(),
        inputs: graph.inputs.iter().map(|i| shaped(&i.name)).collect(),
        outputs: graph.outputs.iter().map(|o| shaped(o)).collect(),
        nodes: graph.nodes.len(),
        layers,
        totals,
        recipe: model.metadata.recipe.clone(),
        source: model.metadata.source.clone(),
    })
}

/// The running statistics of batch normalisations, which training does not change by gradients.
pub(crate) fn statistics(model: &Model) -> BTreeSet<&str> {
    let nodes = model.graph().nodes.iter();
    let norms = nodes.filter(|n| matches!(n.op, Op::BatchNormalization { .. }));
    norms
        .flat_map(|n| n.inputs.iter().skip(3).map(String::as_str))
        .collect()
}

/// Every symbolic dimension of the model's inputs, at its size in `symbols` or at 1.
pub fn bind(model: &Model, symbols: &Symbols) -> Symbols {
    let mut bound = symbols.clone();
    for dim in model.graph().inputs.iter().flat_map(|i| &i.shape) {
        if let Dim::Symbol(s) = dim {
            bound.entry(s.clone()).or_insert(1);
        }
    }
    bound
}

fn layer(model: &Model, shapes: &Shapes, name: &str, first: &Node, stored: Stored) -> LayerReport {
    let weight = &model.weights()[name];
    let (size, nonzeros) = (weight.numel(), stored.nonzeros);
    let readers = model.graph().nodes.iter().filter(|n| {
        let at = n.op.weight_input();
        at.and_then(|i| n.inputs.get(i)).is_some_and(|i| i == name)
    });
    let dense_macs: u64 = readers.map(|n| macs(n, weight, shapes)).sum();
    let sparse = u128::from(dense_macs) * nonzeros as u128 / size.max(1) as u128;
    LayerReport {
        weight: name.to_owned(),
        node: first.name.clone(),
        op: first.op.name(),
        shape: weight.shape().to_vec(),
        dtype: DType::name(weight.dtype()),
        encoding: stored.storage.name(),
        size,
        nonzeros,
        dense_macs,
        sparse_macs: u64::try_from(sparse).unwrap_or(u64::MAX),
        bytes: stored.bytes,
    }
}

/// Multiply-accumulates of one node: output elements times the length of the sum behind each; of a transposed convolution
/// input elements times the products of each, those that fall on padding included.
pub(crate) fn macs(node: &Node, weight: &Weight, shapes: &Shapes) -> u64 {
    let elements = |name: &String| {
        shapes.get(name).map_or(0, |shape| {
            let size = |d: &Dim| match d {
                Dim::Fixed(n) => *n as u64,
                Dim::Symbol(_) => 1,
            };
            shape.iter().map(size).product::<u64>()
        })
    };
    let counted = match node.op {
        Op::ConvTranspose { .. } => node.inputs.first().map_or(0, elements),
        _ => elements(&node.output),
    };
    let shape = weight.shape();
    let (last, last_but_one) = match shape {
        [.., b, a] => (*a, *b),
        [a] => (*a, *a),
        [] => (1, 1),
    };
    let depth = match node.op {
        Op::Conv { .. } | Op::ConvTranspose { .. } => shape.iter().skip(1).product(),
        Op::Gemm { trans_b, .. } | Op::MatMul { trans_b } => {
            if trans_b {
                last
            } else {
                last_but_one
            }
        }
        _ => 0,
    };
    counted.saturating_mul(depth as u64)
}
