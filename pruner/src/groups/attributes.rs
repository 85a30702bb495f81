//! Attributes that count channels, in a graph that has fewer.

use super::cut::Cutter;
use super::maps::{Origin, Run, origins, wrapped};
use super::sets::Axis;
use crate::{Error, Result};
use lacuna::model::{Dim, Node, Op};

/// The operator of `node` over what is left of its inputs.
pub(super) fn updated(cutter: &Cutter<'_, '_>, node: &Node) -> Result<Op> {
    let mut op = node.op.clone();
    let fault = |what: &str| Error::Cut {
        node: node.name.clone(),
        what: what.to_owned(),
    };
    let whole = |input: usize, axis: usize| -> Result<usize> {
        let shape = cutter.groups.coupling.shapes.get(&node.inputs[input]);
        match shape.and_then(|s| s.get(axis)) {
            Some(Dim::Fixed(n)) => Ok(*n),
            _ => Err(fault("an axis without a size")),
        }
    };
    let left = |input: usize, axis: usize| -> Result<usize> {
        match cutter.size(&node.inputs[input], axis) {
            Dim::Fixed(n) => Ok(n),
            Dim::Symbol(_) => Err(fault("an axis without a size")),
        }
    };
    // `count` parts of an axis, of which whole ones went.
    let parts = |input: usize, axis: usize, count: usize| -> Result<usize> {
        let part = whole(input, axis)? / count.max(1);
        let left = left(input, axis)?;
        match part > 0 && left.is_multiple_of(part) {
            true => Ok(left / part),
            false => Err(fault("a part of a head or a group went")),
        }
    };
    match &mut op {
        Op::Conv { groups, .. } | Op::ConvTranspose { groups, .. } if *groups > 1 => {
            *groups = parts(0, 1, *groups)?
        }
        Op::RotaryEmbedding { heads, .. } => *heads = parts(0, 2, *heads)?,
        Op::Attention {
            heads, kv_heads, ..
        } => {
            *heads = parts(0, 2, *heads)?;
            *kv_heads = parts(1, 2, *kv_heads)?;
        }
        Op::Reshape { shape } => {
            for (axis, size) in shape.iter_mut().enumerate() {
                if let Some(Axis::Ids(_)) = cutter.groups.axes(&node.output).get(axis)
                    && *size != -1
                    && let Dim::Fixed(n) = cutter.size(&node.output, axis)
                {
                    *size = n as i64;
                }
            }
        }
        Op::Slice {
            axes, starts, ends, ..
        } => {
            let rank = cutter.groups.axes(&node.inputs[0]).len();
            for ((&axis, start), end) in axes.iter().zip(starts).zip(ends) {
                let Some(axis) = wrapped(axis, rank) else {
                    continue;
                };
                let (Some(own), Dim::Fixed(count)) = (
                    cutter
                        .groups
                        .axes(&node.inputs[0])
                        .get(axis)
                        .and_then(|a| cutter.kept(a)),
                    cutter.size(&node.output, axis),
                ) else {
                    continue;
                };
                let first = super::maps::clamped(*start, whole(0, axis)?);
                let before = own.iter().filter(|&&i| i < first).count();
                (*start, *end) = (before as i64, (before + count) as i64);
            }
        }
        Op::Pad { pads, .. } => {
            let shape = |name: &str| {
                cutter
                    .groups
                    .coupling
                    .shapes
                    .get(name)
                    .cloned()
                    .unwrap_or_default()
            };
            let (x, y) = (shape(&node.inputs[0]), shape(&node.output));
            let axes = cutter.groups.axes(&node.output);
            let list = origins(&node.op, &[&x], &y).unwrap_or_default();
            for (axis, origin) in list.iter().enumerate() {
                let (Origin::Runs(runs), Some(Axis::Ids(ids))) = (origin, axes.get(axis)) else {
                    continue;
                };
                let [Run::Fill { len: before }, Run::Copy { len, .. }, _] = runs[..] else {
                    continue;
                };
                let stay =
                    |part: &[u32]| part.iter().filter(|&&id| !cutter.is_gone(id)).count() as i64;
                pads[axis] = stay(&ids[..before]);
                pads[axis + x.len()] = stay(&ids[before + len..]);
            }
        }
        Op::Conv { .. }
        | Op::ConvTranspose { .. }
        | Op::BatchNormalization { .. }
        | Op::InstanceNormalization { .. }
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
        | Op::Resize { .. }
        | Op::Gemm { .. }
        | Op::MatMul { .. }
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::PRelu
        | Op::Concat { .. }
        | Op::Flatten { .. }
        | Op::Transpose { .. }
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. }
        | Op::ReduceMean { .. }
        | Op::Softmax { .. }
        | Op::Identity
        | Op::Swish { .. }
        | Op::Gelu { .. }
        | Op::Gather { .. }
        | Op::RMSNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LpNormalization { .. }
        | Op::PositionEmbedding
        | Op::MaskedMean
        | Op::FastGRNN => {}
    }
    // Without a factor of its own, attention takes it from the size of a head, which stays.
    Ok(op)
}
