//! What two models of one graph have in common: it is run once for all trials.

use crate::Result;
use lacuna::Model;
use lacuna::model::{Dim, Encoding, Graph, Input, Symbols, Weight, infer_shapes};
use std::collections::{HashMap, HashSet};

/// A model in two: what it has in common with another, and the rest.
pub(super) struct Split {
    /// The values between the parts; inputs of the model among them.
    pub between: Vec<String>,
    /// From those values to the outputs.
    pub rest: Model,
}

/// Splits `after` where it starts to differ from `before`, each with a fixed batch.
///
/// # Errors
/// When a shape cannot be inferred.
pub(super) fn split(before: &Model, after: &Model) -> Result<Split> {
    let old: HashMap<&str, _> = (before.graph().nodes.iter())
        .map(|n| (n.name.as_str(), n))
        .collect();
    let graph = after.graph();
    let mut known: HashSet<&str> = graph.inputs.iter().map(|i| i.name.as_str()).collect();
    let same = |name: &str| -> bool {
        match (before.weights().get(name), after.weights().get(name)) {
            (Some(a), Some(b)) => equal(a, b),
            _ => false,
        }
    };
    let mut rest = Vec::new();
    for node in &graph.nodes {
        let common = old.get(node.name.as_str()).is_some_and(|o| *o == node)
            && (node.inputs.iter()).all(|i| i.is_empty() || known.contains(i.as_str()) || same(i));
        match common {
            true => _ = known.insert(&node.output),
            false => rest.push(node.clone()),
        }
    }
    let mut between: Vec<String> = Vec::new();
    let reads = rest.iter().flat_map(|n| &n.inputs).chain(&graph.outputs);
    for name in reads {
        if known.contains(name.as_str()) && !between.contains(name) {
            between.push(name.clone());
        }
    }
    let shapes = infer_shapes(graph, after.weights(), &Symbols::new())?;
    let input = |name: &String| {
        let shape: &[Dim] = shapes.get(name).map_or(&[], Vec::as_slice);
        Input::f32(name, shape.to_vec())
    };
    let part = Graph {
        name: graph.name.clone(),
        inputs: between.iter().map(input).collect(),
        outputs: graph.outputs.clone(),
        nodes: rest,
    };
    Ok(Split {
        rest: crate::tasks::with_graph(after, part)?,
        between,
    })
}

/// `model` up to these values, which are not all its inputs.
pub(super) fn prefix(model: &Model, values: &[String]) -> Result<Model> {
    let mut graph = model.graph().clone();
    graph.outputs = values.to_vec();
    crate::tasks::drop_unread(&mut graph);
    crate::tasks::with_graph(model, graph)
}

fn equal(a: &Weight, b: &Weight) -> bool {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return false;
    }
    match (a.encoding(), b.encoding()) {
        (Encoding::Dense(a), Encoding::Dense(b)) => {
            std::ptr::eq(a.as_ptr(), b.as_ptr()) || **a == **b
        }
        _ => a.to_f32().is_some() && a.to_f32() == b.to_f32(),
    }
}
