//! Rewriting: nodes become units of execution. Views vanish; batch normalization, bias-like
//! additions, residual sums and clamps join the unit that produces their input.

use super::fixed_shape;
use crate::model::{Node, Op, Shapes};
use crate::{Error, Model, Result};
use std::collections::HashMap;

/// No limit.
pub(super) const UNCLAMPED: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

/// One unit of execution: a node and what was fused into it.
#[derive(Clone, Debug)]
pub(super) struct Unit<'a> {
    pub node: &'a Node,
    /// Inputs after views were resolved.
    pub inputs: Vec<String>,
    /// The value that the unit produces, after fusion.
    pub output: String,
    /// Per output channel `y * scale + shift`, from batch normalization.
    pub scale_shift: Option<(Vec<f32>, Vec<f32>)>,
    /// Added before the clamp.
    pub residual: Option<String>,
    /// Limits of the output.
    pub clamp: (f32, f32),
    pub fused: Vec<String>,
}

pub(super) struct Units<'a> {
    pub list: Vec<Unit<'a>>,
    /// The graph's outputs after views were resolved.
    pub outputs: Vec<String>,
}

/// Whether a convolution works on one input channel per output channel.
pub(super) fn is_depthwise(op: &Op, weight_shape: &[usize]) -> bool {
    matches!(op, Op::Conv { groups, .. } if *groups > 1 && weight_shape.get(1) == Some(&1))
}

pub(super) fn rewrite<'a>(model: &'a Model, shapes: &Shapes) -> Result<Units<'a>> {
    let graph = model.graph();
    let mut views: HashMap<&str, String> = HashMap::new();
    let resolve = |views: &HashMap<&str, String>, name: &str| {
        views.get(name).cloned().unwrap_or(name.to_owned())
    };
    for node in &graph.nodes {
        if is_view(&node.op) {
            let source = resolve(&views, &node.inputs[0]);
            views.insert(&node.output, source);
        }
    }
    let outputs: Vec<String> = graph.outputs.iter().map(|o| resolve(&views, o)).collect();
    let mut uses: HashMap<String, usize> = HashMap::new();
    let reads = graph
        .nodes
        .iter()
        .filter(|n| !is_view(&n.op))
        .flat_map(|n| &n.inputs);
    for name in reads
        .map(|n| resolve(&views, n))
        .chain(outputs.iter().cloned())
    {
        *uses.entry(name).or_default() += 1;
    }

    let mut list: Vec<Unit<'a>> = Vec::new();
    let mut producer: HashMap<String, usize> = HashMap::new();
    for node in graph.nodes.iter().filter(|n| !is_view(&n.op)) {
        let inputs: Vec<String> = node.inputs.iter().map(|n| resolve(&views, n)).collect();
        let fuse = Fusion {
            model,
            shapes,
            uses: &uses,
            producer: &producer,
            list: &mut list,
        };
        let at = match fuse.into_producer(node, &inputs)? {
            Some(at) => {
                list[at].fused.push(node.name.clone());
                at
            }
            None => {
                list.push(Unit {
                    node,
                    inputs,
                    output: String::new(),
                    scale_shift: None,
                    residual: None,
                    clamp: UNCLAMPED,
                    fused: Vec::new(),
                });
                list.len() - 1
            }
        };
        list[at].output.clone_from(&node.output);
        producer.insert(node.output.clone(), at);
    }
    super::gate::fuse(&mut list, &uses, model, shapes);
    Ok(Units { list, outputs })
}

fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Identity
    )
}

struct Fusion<'f, 'a> {
    model: &'a Model,
    shapes: &'f Shapes,
    uses: &'f HashMap<String, usize>,
    producer: &'f HashMap<String, usize>,
    list: &'f mut Vec<Unit<'a>>,
}

impl Fusion<'_, '_> {
    /// Fuses `node` into the unit that produces one of its inputs, and returns that unit.
    fn into_producer(self, node: &Node, inputs: &[String]) -> Result<Option<usize>> {
        match &node.op {
            Op::BatchNormalization { epsilon } => self.batch_norm(node, inputs, *epsilon),
            Op::Relu => Ok(self.clamp(inputs, (0.0, f32::INFINITY))),
            Op::Clip { min, max } => {
                let limits = (min.unwrap_or(UNCLAMPED.0), max.unwrap_or(UNCLAMPED.1));
                Ok(self.clamp(inputs, limits))
            }
            Op::Add => self.residual(node, inputs),
            _ => Ok(None),
        }
    }

    /// The unit that produces `value` for one reader only, and nothing was clamped yet.
    fn open_producer(&self, value: &str) -> Option<usize> {
        let at = *self.producer.get(value)?;
        (self.uses.get(value) == Some(&1) && self.list[at].clamp == UNCLAMPED).then_some(at)
    }

    fn batch_norm(self, node: &Node, inputs: &[String], epsilon: f32) -> Result<Option<usize>> {
        let Some(at) = self.open_producer(&inputs[0]) else {
            return Ok(None);
        };
        let unit = &mut self.list[at];
        let weight = matches!(unit.node.op, Op::Conv { .. } | Op::ConvTranspose { .. });
        if !weight || unit.residual.is_some() || unit.scale_shift.is_some() {
            return Ok(None);
        }
        unit.scale_shift = Some(batch_norm_affine(self.model, node, epsilon)?);
        Ok(Some(at))
    }

    fn clamp(self, inputs: &[String], limits: (f32, f32)) -> Option<usize> {
        let at = self.open_producer(&inputs[0])?;
        let unit = &mut self.list[at];
        let takes = match &unit.node.op {
            Op::Conv { .. } | Op::ConvTranspose { .. } => true,
            Op::Add | Op::Sub | Op::Mul | Op::Div => true,
            // Products of two activations, and unusual Gemms, have no clamp.
            Op::Gemm { .. } | Op::MatMul { .. } => linear_weight(self.model, unit).is_some(),
            _ => false,
        };
        takes.then(|| {
            unit.clamp = limits;
            at
        })
    }

    fn residual(self, node: &Node, inputs: &[String]) -> Result<Option<usize>> {
        let order = |i: &String| self.producer.get(i).copied();
        let (mut late, mut other) = (&inputs[0], &inputs[1]);
        if order(late) < order(other) {
            (late, other) = (other, late);
        }
        let Some(at) = self.open_producer(late) else {
            return Ok(None);
        };
        let shape = |name: &str| fixed_shape(self.shapes, name);
        let (out, is_constant) = (
            shape(&node.output)?,
            self.model.weights().contains_key(other),
        );
        if is_constant {
            return self.bias(at, other, shape(late)? == out);
        }
        // The views of a value have its size but not its shape; only equal shapes add one to one.
        if late == other || shape(late)? != out || shape(other)? != out {
            return Ok(None);
        }
        let unit = &mut self.list[at];
        let takes = match &unit.node.op {
            Op::Conv { .. } => !is_depthwise(&unit.node.op, &shape(&unit.inputs[1])?),
            Op::Gemm { .. } | Op::MatMul { .. } => linear_weight(self.model, unit).is_some(),
            _ => false,
        };
        if unit.residual.is_some() || !takes {
            return Ok(None);
        }
        unit.residual = Some(other.clone());
        Ok(Some(at))
    }

    /// A constant with a value for each output joins a `MatMul` as its third input.
    fn bias(self, at: usize, constant: &str, same_shape: bool) -> Result<Option<usize>> {
        let (model, unit) = (self.model, &mut self.list[at]);
        let Op::MatMul { trans_b } = unit.node.op else {
            return Ok(None);
        };
        let linear = linear_weight(model, unit).is_some();
        if !same_shape || !linear || unit.inputs.len() != 2 || unit.residual.is_some() {
            return Ok(None);
        }
        let weight = fixed_shape(self.shapes, &unit.inputs[1])?;
        let outer = weight[if trans_b { 0 } else { 1 }];
        let shape = fixed_shape(self.shapes, constant)?;
        let fits = shape.last() == Some(&outer) && shape.iter().product::<usize>() == outer;
        Ok(fits.then(|| {
            unit.inputs.push(constant.to_owned());
            at
        }))
    }
}

/// `(scale, shift)` of an inference batch normalization.
pub(super) fn batch_norm_affine(
    model: &Model,
    node: &Node,
    epsilon: f32,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let constant = |i: usize| {
        let weight = model.weights().get(&node.inputs[i]);
        weight.and_then(|w| w.to_f32()).ok_or_else(|| {
            Error::node(
                node,
                format!(
                    "input {i}, `{}`, must be a floating-point constant",
                    node.inputs[i]
                ),
            )
        })
    };
    let (gamma, beta, mean, variance) = (constant(1)?, constant(2)?, constant(3)?, constant(4)?);
    let scale: Vec<f32> = gamma
        .iter()
        .zip(&variance)
        .map(|(g, v)| (f64::from(*g) / (f64::from(*v) + f64::from(epsilon)).sqrt()) as f32)
        .collect();
    let shift = beta
        .iter()
        .zip(&mean)
        .zip(&scale)
        .map(|((b, m), s)| b - m * s)
        .collect();
    Ok((scale, shift))
}

/// How a unit uses its weight (input 1), when the unit is a linear layer: `x [.., inner]` times a
/// constant matrix, plus a bias per output.
pub(super) struct LinearUse<'a> {
    /// The constant is `[outer, inner]`.
    pub trans_b: bool,
    pub alpha: f32,
    pub bias: Option<(&'a str, f32)>,
}

pub(super) fn linear_weight<'u>(model: &Model, unit: &'u Unit<'_>) -> Option<LinearUse<'u>> {
    let constant = |name: &str| model.weights().get(name);
    let weight = constant(&unit.inputs[1])?;
    if weight.shape().len() != 2 || constant(&unit.inputs[0]).is_some() {
        return None;
    }
    match &unit.node.op {
        Op::MatMul { trans_b } => Some(LinearUse {
            trans_b: *trans_b,
            alpha: 1.0,
            // Only a fused bias stands there.
            bias: unit.inputs.get(2).map(|name| (name.as_str(), 1.0)),
        }),
        Op::Gemm {
            alpha,
            beta,
            trans_a: false,
            trans_b,
        } => {
            let outer = weight.shape()[if *trans_b { 0 } else { 1 }];
            let bias = match unit.inputs.get(2).filter(|b| !b.is_empty()) {
                None => None,
                Some(name) => {
                    let shape = constant(name)?.shape();
                    (shape == [outer] || shape == [1, outer]).then_some(())?;
                    Some((name.as_str(), *beta))
                }
            };
            Some(LinearUse {
                trans_b: *trans_b,
                alpha: *alpha,
                bias,
            })
        }
        _ => None,
    }
}
