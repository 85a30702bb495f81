//! What is trained: which graphs and operators, and what happens to each weight.

use super::cell::is_recurrent;
use super::network::{Parameter, Role};
use crate::tasks::{drop_unread, with_graph};
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op};
use std::collections::HashSet;

/// The name of the open batch.
pub(super) const BATCH: &str = "N";

/// Why training refuses an operator; `None` where it does not.
pub const fn refuses(op: &Op) -> Option<&'static str> {
    match op {
        Op::Conv { .. }
        | Op::ConvTranspose { .. }
        | Op::BatchNormalization { .. }
        | Op::InstanceNormalization { .. }
        | Op::PRelu
        | Op::Relu
        | Op::LeakyRelu { .. }
        | Op::Clip { .. }
        | Op::HardSigmoid { .. }
        | Op::HardSwish
        | Op::Sigmoid
        | Op::Tanh
        | Op::Erf
        | Op::MaxPool(_)
        | Op::AveragePool { .. }
        | Op::GlobalAveragePool
        | Op::Gemm { trans_a: false, .. }
        | Op::MatMul { .. }
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Concat { .. }
        | Op::Pad { .. }
        | Op::Slice { .. }
        | Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Transpose { .. }
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. }
        | Op::ReduceMean { .. }
        | Op::Softmax { .. }
        | Op::Resize { .. }
        | Op::Identity
        | Op::Swish { .. }
        | Op::Gelu { .. }
        | Op::FastGRNN => None,
        Op::Gemm { trans_a: true, .. } => {
            Some("a transposed left operand mixes the images of a batch")
        }
        Op::Gather { .. }
        | Op::RMSNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LpNormalization { .. }
        | Op::RotaryEmbedding { .. }
        | Op::PositionEmbedding
        | Op::Attention { .. }
        | Op::MaskedMean => {
            Some("it belongs to language models; training is for networks over images or sequences")
        }
    }
}

pub(super) fn refuse(what: impl Into<String>) -> Error {
    Error::Training(what.into())
}

pub(super) fn at(node: &Node, what: impl std::fmt::Display) -> Error {
    Error::Training(format!("node `{}` ({}): {what}", node.name, node.op.name()))
}

/// The model with an open batch, and its weights.
pub(super) fn prepare(model: &Model) -> Result<(Model, Vec<Parameter>)> {
    let mut graph = model.graph().clone();
    if let Some(node) = graph.nodes.iter().find(|n| refuses(&n.op).is_some()) {
        return Err(at(node, refuses(&node.op).unwrap_or_default()));
    }
    match (is_recurrent(model), graph.inputs.as_mut_slice()) {
        (false, [input]) => open_batch(input, 4)?,
        (true, [a, b]) if a.carried.is_some() != b.carried.is_some() => {
            open_batch(a, 2)?;
            open_batch(b, 2)?;
        }
        (recurrent, inputs) => {
            let what = if recurrent {
                "sequences and a state need exactly two"
            } else {
                "images need exactly one"
            };
            return Err(refuse(format!(
                "the model has {} inputs; {what}",
                inputs.len()
            )));
        }
    }
    let weights = model.weights().clone();
    let parameters: Result<Vec<Parameter>> = (weights.iter())
        .map(|(name, weight)| {
            let data = weight
                .to_f32()
                .ok_or_else(|| refuse(format!("weight `{name}` is {}", weight.dtype())))?;
            if let Some(bad) = data.iter().find(|x| !x.is_finite()) {
                return Err(refuse(format!("weight `{name}` holds {bad}")));
            }
            let role = role(&graph, name, data.len());
            Ok(Parameter {
                name: name.clone(),
                shape: weight.shape().to_vec(),
                role,
                data,
            })
        })
        .collect();
    let parameters = parameters?;
    if !parameters.iter().any(|p| p.role.descends()) {
        return Err(refuse("the model has no weight to train"));
    }
    Ok((Model::new(graph, weights)?, parameters))
}

fn open_batch(input: &mut Input, axes: usize) -> Result<()> {
    if input.shape.len() != axes {
        return Err(refuse(format!(
            "input `{}` has {} axes, not {axes}: images have 4, a step of sequences has 2",
            input.name,
            input.shape.len()
        )));
    }
    input.shape[0] = Dim::Symbol(BATCH.into());
    Ok(())
}

/// The model with its first output and what is carried, and the logits where the first is a softmax of them.
pub(super) fn strip(model: &Model) -> Result<Model> {
    let mut graph = model.graph().clone();
    let carried: Vec<&String> = graph
        .inputs
        .iter()
        .filter_map(|i| i.carried.as_ref())
        .collect();
    let mut first = true;
    graph
        .outputs
        .retain(|o| std::mem::take(&mut first) || carried.contains(&o));
    let end = graph.outputs.first().cloned().unwrap_or_default();
    if let Some(last) = graph.nodes.iter().find(|n| n.output == end)
        && matches!(last.op, Op::Softmax { .. })
    {
        graph.outputs[0] = last.inputs[0].clone();
    }
    drop_unread(&mut graph);
    with_graph(model, graph)
}

/// What training does with the weight `name`.
fn role(graph: &Graph, name: &str, len: usize) -> Role {
    let mut role = Role::Constant;
    let mut learned: HashSet<&str> = HashSet::new();
    for node in &graph.nodes {
        let behind = node.inputs.iter().any(|i| learned.contains(i.as_str()));
        for (i, input) in node.inputs.iter().enumerate() {
            if input != name {
                continue;
            }
            role = match node.op {
                _ if node.op.weight_input() == Some(i) => Role::Weight,
                Op::Conv { .. } | Op::ConvTranspose { .. } | Op::Gemm { .. } if i == 2 => {
                    Role::Vector
                }
                Op::PRelu | Op::InstanceNormalization { .. } if i > 0 => Role::Vector,
                Op::BatchNormalization { .. } if i < 3 => Role::Vector,
                Op::BatchNormalization { .. } => return Role::Statistic,
                Op::FastGRNN => Role::Vector,
                // A linear layer's bias may be a sum of its own; what stands before every layer prepares images.
                Op::Add | Op::Sub | Op::Mul | Op::Div if behind && len > 1 => Role::Vector,
                _ => role,
            };
        }
        if behind || node.op.weight_input().is_some() {
            learned.insert(&node.output);
        }
    }
    role
}
