//! From a graph to the steps of a tape, for one batch size.

use super::axes::{axis, mean, pad, select, slice};
use super::cell;
use super::conv::Conv;
use super::dense::Dense;
use super::instance::Planes;
use super::layout::{Moved, Selection, broadcast, reshaped, stored, stored_axis};
use super::network::Parameter;
use super::pointwise::{Activation, Binary};
use super::prepare::{BATCH, at, refuse, refuses};
use super::recurrent::Recurrent;
use super::resample::Resample;
use super::tape::Limits;
use super::window::Pool;
use crate::Result;
use lacuna::Model;
use lacuna::model::{Dim, Node, Op, Shapes, Symbols, infer_shapes, padding_for, taps};
use std::collections::HashMap;

/// An input of a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// Value 0 is the input of the graph, value `i + 1` the output of step `i`.
    Value(usize),
    Parameter(usize),
}

/// What a step does, with every size.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Conv(Conv),
    /// The way back through a convolution from the output to the input.
    ConvTranspose(Conv),
    /// Every plane by its own mean and variance.
    Planes(Planes),
    Norm {
        epsilon: f32,
        batch: usize,
        limits: Option<Limits>,
    },
    Activation(Activation),
    /// A sum of equal shapes.
    Sum {
        limits: Option<Limits>,
    },
    Binary {
        op: Binary,
        dims: Vec<usize>,
        a: Vec<usize>,
        b: Vec<usize>,
    },
    Dense(Dense),
    /// Inputs: what those of every step come to, the cell's four vectors, the matrices of the state's products.
    Recurrent(Recurrent),
    MaxPool(Pool),
    /// Whether padding counts.
    AveragePool(Pool, bool),
    Select(Selection),
    Resize(Resample),
    /// Elements of each input behind the axis, that axis included.
    Concat {
        inner: Vec<usize>,
    },
    Copy,
    Move(Moved),
    Reshape([Moved; 2]),
    /// Mean over the axes whose stride in the output is 0.
    Mean {
        dims: Vec<usize>,
        strides: Vec<usize>,
        count: usize,
    },
    Softmax {
        len: usize,
        inner: usize,
    },
}

/// One step of a pass.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub kind: Kind,
    pub inputs: Vec<Option<Source>>,
    /// For each input, whether a gradient goes back through it.
    pub wanted: Vec<bool>,
    /// Elements of the output.
    pub len: usize,
}

impl Step {
    /// The value that input `i` is, where its gradient is wanted.
    pub fn wants(&self, i: usize) -> Option<usize> {
        match self.inputs.get(i) {
            Some(Some(Source::Value(v))) if self.wanted[i] => Some(*v),
            _ => None,
        }
    }
}

fn fixed(shape: &[Dim]) -> Option<Vec<usize>> {
    let size = |d: &Dim| match d {
        Dim::Fixed(n) => Some(*n),
        Dim::Symbol(_) => None,
    };
    shape.iter().map(size).collect()
}

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sample {
    /// Channels, height and width.
    Image([usize; 3]),
    /// Channels of each step.
    Sequence(usize),
}

/// A graph for one batch size.
pub(super) struct Compiled {
    pub steps: Vec<Step>,
    /// What one of the samples is.
    pub sample: Sample,
    /// The value and the shape of each output.
    pub outputs: Vec<(usize, Vec<usize>)>,
}

/// The steps for `batch` images, or sequences of `time` steps.
pub(super) fn compile(
    model: &Model,
    parameters: &[Parameter],
    batch: usize,
    time: usize,
) -> Result<Compiled> {
    let graph = model.graph();
    let cell = match cell::is_recurrent(model) {
        true => Some(cell::find(graph)?),
        false => None,
    };
    let infer = |rows: usize| {
        let symbols = Symbols::from([(BATCH.to_owned(), rows)]);
        let symbols = crate::report::bind(model, &symbols);
        infer_shapes(graph, model.weights(), &symbols)
            .map_err(|e| refuse(format!("with {batch} samples at a time: {e}")))
    };
    // What does not depend on the state is done for all steps at once.
    let (ahead, shapes) = match cell {
        Some(_) => (infer(batch * time)?, infer(batch)?),
        None => (Shapes::new(), infer(batch)?),
    };
    let is_ahead = |name: &str| {
        cell.as_ref()
            .is_some_and(|c| name != c.node.output && !c.after.contains(name))
    };
    let shape = |name: &str| -> Result<Vec<usize>> {
        let shapes = if is_ahead(name) { &ahead } else { &shapes };
        let known = shapes.get(name).and_then(|s| fixed(s));
        let known = known.filter(|s| !s.contains(&0));
        known.ok_or_else(|| refuse(format!("`{name}` has no shape, or no elements")))
    };
    let input = graph.inputs.iter().find(|i| i.carried.is_none());
    let input = input.ok_or_else(|| refuse("the model takes nothing"))?;
    let sample = match shape(&input.name)?[..] {
        [_, channels, height, width] => Sample::Image([channels, height, width]),
        [_, channels] if cell.is_some() => Sample::Sequence(channels),
        _ => return Err(refuse(format!("input `{}` is no image", input.name))),
    };
    let mut sources: HashMap<&str, Source> =
        HashMap::from([(input.name.as_str(), Source::Value(0))]);
    for (i, p) in parameters.iter().enumerate() {
        sources.insert(&p.name, Source::Parameter(i));
    }
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for name in graph
        .nodes
        .iter()
        .flat_map(|n| &n.inputs)
        .chain(&graph.outputs)
    {
        *readers.entry(name).or_default() += 1;
    }
    // Whether a gradient is wanted of each value.
    let mut wanted = vec![false];
    let mut steps: Vec<Step> = Vec::new();
    for node in &graph.nodes {
        if let Some(cell) = &cell {
            if cell.inside.contains(node.output.as_str()) {
                continue;
            }
            let behind = cell.after.contains(node.output.as_str());
            if let Some(early) = node.inputs.iter().find(|i| {
                behind && is_ahead(i) && matches!(sources.get(i.as_str()), Some(Source::Value(_)))
            }) {
                return Err(at(
                    node,
                    format!("it reads `{early}` of the last step alone"),
                ));
            }
        }
        let order = match &cell {
            Some(cell) if cell.node == node => cell.order(),
            _ => node.inputs.iter().map(String::as_str).collect(),
        };
        let inputs: Vec<Option<Source>> = order.iter().map(|n| sources.get(n).cloned()).collect();
        if let (Some(limits), Some(Some(Source::Value(v)))) = (limits_of(&node.op), inputs.first())
            && *v == steps.len()
            && readers.get(node.inputs[0].as_str()) == Some(&1)
            && let Some(Step {
                kind: Kind::Norm { limits: own, .. } | Kind::Sum { limits: own },
                ..
            }) = steps.last_mut()
            && own.is_none()
        {
            *own = Some(limits);
            sources.insert(&node.output, Source::Value(steps.len()));
            continue;
        }
        let ins: Result<Vec<Vec<usize>>> = node
            .inputs
            .iter()
            .map(|n| match n.is_empty() {
                true => Ok(Vec::new()),
                false => shape(n),
            })
            .collect();
        let ins = ins?;
        let out = shape(&node.output)?;
        let is_parameter: Vec<bool> = inputs
            .iter()
            .map(|s| matches!(s, Some(Source::Parameter(_))))
            .collect();
        let kind = match &cell {
            Some(cell) if cell.node == node => cell.kind(&shape, [batch, time], &is_parameter)?,
            _ => kind(node, &ins, &out, &is_parameter)?,
        };
        let wants: Vec<bool> = inputs
            .iter()
            .map(|s| match s {
                Some(Source::Value(v)) => wanted[*v],
                Some(Source::Parameter(p)) => parameters[*p].role.descends(),
                None => false,
            })
            .collect();
        wanted.push(wants.iter().any(|w| *w));
        steps.push(Step {
            kind,
            inputs,
            wanted: wants,
            len: out.iter().product(),
        });
        sources.insert(&node.output, Source::Value(steps.len()));
    }
    let carried = |name: &String| {
        graph
            .inputs
            .iter()
            .any(|i| i.carried.as_ref() == Some(name))
    };
    let outputs = graph.outputs.iter().enumerate();
    let outputs = outputs.filter(|(i, name)| *i == 0 || !carried(name));
    let output = |(_, name): (usize, &String)| match (sources.get(name.as_str()), shape(name)?) {
        (Some(&Source::Value(v)), shape) if v > 0 && shape[0] == batch => Ok((v, shape)),
        (_, shape) => Err(refuse(format!(
            "output `{name}` has shape {shape:?} for {batch} images, and is not made of them"
        ))),
    };
    let outputs = outputs.map(output).collect::<Result<_>>()?;
    Ok(Compiled {
        steps,
        sample,
        outputs,
    })
}

/// The limits of an activation that only limits.
fn limits_of(op: &Op) -> Option<Limits> {
    let (low, high) = match op {
        Op::Relu => (0.0, f32::INFINITY),
        Op::Clip { min, max } => (
            min.unwrap_or(f32::NEG_INFINITY),
            max.unwrap_or(f32::INFINITY),
        ),
        _ => return None,
    };
    Some(Limits { low, high })
}

fn kind(node: &Node, ins: &[Vec<usize>], out: &[usize], is_parameter: &[bool]) -> Result<Kind> {
    let x = ins[0].as_slice();
    if is_parameter[0] && !matches!(node.op, Op::Add | Op::Sub | Op::Mul | Op::Div) {
        return Err(at(node, "its input is a weight"));
    }
    let binary = |op| {
        let strides = |i: usize| broadcast(&ins[i], is_parameter[i], out);
        Kind::Binary {
            op,
            dims: stored(out),
            a: strides(0),
            b: strides(1),
        }
    };
    Ok(match &node.op {
        Op::Conv {
            strides,
            padding,
            dilations,
            groups,
        } => {
            if !is_parameter[1] || is_parameter.len() > 2 && !ins[2].is_empty() && !is_parameter[2]
            {
                return Err(at(node, "its weight is computed"));
            }
            let (input, kernel) = ([x[2], x[3]], [ins[1][2], ins[1][3]]);
            Kind::Conv(Conv {
                batch: x[0],
                input,
                output: [out[2], out[3]],
                channels: [x[1], out[1]],
                kernel,
                strides: *strides,
                pads: padding_for(*padding, input, kernel, *strides, *dilations),
                dilations: *dilations,
                groups: *groups,
            })
        }
        Op::ConvTranspose {
            strides,
            pads,
            dilations,
            groups,
            ..
        } => {
            if !is_parameter[1] || is_parameter.len() > 2 && !ins[2].is_empty() && !is_parameter[2]
            {
                return Err(at(node, "its weight is computed"));
            }
            Kind::ConvTranspose(Conv {
                batch: x[0],
                input: [out[2], out[3]],
                output: [x[2], x[3]],
                channels: [out[1], x[1]],
                kernel: [ins[1][2], ins[1][3]],
                strides: *strides,
                pads: *pads,
                dilations: *dilations,
                groups: *groups,
            })
        }
        Op::InstanceNormalization { epsilon } => {
            if !is_parameter[1] || !is_parameter[2] || x.len() != 4 {
                return Err(at(
                    node,
                    "its scale or bias is computed, or its input is no image",
                ));
            }
            Kind::Planes(Planes {
                channels: x[1],
                size: x[2] * x[3],
                epsilon: *epsilon,
            })
        }
        Op::BatchNormalization { epsilon } => {
            if !is_parameter[1..].iter().all(|p| *p) {
                return Err(at(node, "its scale or statistics are computed"));
            }
            if x.len() != 4 && x.len() != 2 {
                return Err(at(
                    node,
                    format!("an input of {} axes, not 2 or 4", x.len()),
                ));
            }
            if x.iter().product::<usize>() / x[1] < 2 {
                return Err(at(
                    node,
                    "one value of each channel has no variance: give larger batches",
                ));
            }
            Kind::Norm {
                epsilon: *epsilon,
                batch: x[0],
                limits: None,
            }
        }
        Op::Relu => Kind::Activation(Activation::Clamp(0.0, f32::INFINITY)),
        Op::Clip { .. } => {
            let Limits { low, high } = limits_of(&node.op).unwrap_or(Limits {
                low: 0.0,
                high: 0.0,
            });
            Kind::Activation(Activation::Clamp(low, high))
        }
        Op::LeakyRelu { alpha } => Kind::Activation(Activation::LeakyRelu(*alpha)),
        Op::HardSigmoid { alpha, beta } => Kind::Activation(Activation::HardSigmoid(*alpha, *beta)),
        Op::HardSwish => Kind::Activation(Activation::HardSwish),
        Op::Sigmoid => Kind::Activation(Activation::Sigmoid),
        Op::Tanh => Kind::Activation(Activation::Tanh),
        Op::Erf => Kind::Activation(Activation::Erf),
        Op::Swish { alpha } => Kind::Activation(Activation::Swish(*alpha)),
        Op::Gelu { approximate } => Kind::Activation(Activation::Gelu(*approximate)),
        Op::MaxPool(window) | Op::AveragePool { window, .. } => {
            let input = [x[2], x[3]];
            let pool = Pool {
                batch: x[0],
                channels: x[1],
                input,
                output: [out[2], out[3]],
                pads: padding_for(
                    window.padding,
                    input,
                    window.kernel,
                    window.strides,
                    window.dilations,
                ),
                window: *window,
            };
            match &node.op {
                Op::AveragePool {
                    count_include_pad, ..
                } => Kind::AveragePool(pool, *count_include_pad),
                _ => Kind::MaxPool(pool),
            }
        }
        Op::GlobalAveragePool => mean(x, &[2, 3], out),
        Op::ReduceMean { axes, keepdims } => {
            let axes: Result<Vec<usize>> = axes.iter().map(|&a| axis(node, a, x.len())).collect();
            let axes = match axes? {
                none if none.is_empty() => (0..x.len()).collect(),
                some => some,
            };
            // Axes that go leave the others in their order only where that is the stored one.
            let kept: Vec<usize> = (0..x.len())
                .map(|a| if axes.contains(&a) { 1 } else { x[a] })
                .collect();
            let plain = *keepdims || x.len() != 4 || kept[1] == 1 || kept[2] * kept[3] == 1;
            if !plain || !*keepdims && out.len() == 4 {
                return Err(at(node, "it drops an axis between others of an image"));
            }
            mean(x, &axes, &kept)
        }
        Op::Gemm {
            alpha,
            beta,
            trans_b,
            ..
        } => {
            if !is_parameter[1] || is_parameter.len() > 2 && !ins[2].is_empty() && !is_parameter[2]
            {
                return Err(at(node, "its weight is computed"));
            }
            let bias = ins.get(2).map_or(&[][..], Vec::as_slice);
            let len: usize = bias.iter().product();
            if !bias.is_empty() && len != 1 && (len != out[1] || bias.last() != Some(&out[1])) {
                return Err(at(
                    node,
                    format!("a bias of shape {bias:?}, not one number for each output"),
                ));
            }
            Kind::Dense(Dense {
                rows: x[0],
                inputs: x[1],
                outputs: out[1],
                transposed: *trans_b,
                alpha: *alpha,
                beta: *beta,
            })
        }
        Op::MatMul { trans_b } => {
            if !is_parameter[1] || ins[1].len() != 2 {
                return Err(at(
                    node,
                    "a product of two computed values, or with a weight of other than two axes",
                ));
            }
            let (inputs, outputs) = match trans_b {
                true => (ins[1][1], ins[1][0]),
                false => (ins[1][0], ins[1][1]),
            };
            if x.len() == 4 {
                return Err(at(node, "a product over four axes"));
            }
            let rows = x.iter().product::<usize>() / inputs;
            Kind::Dense(Dense {
                rows,
                inputs,
                outputs,
                transposed: *trans_b,
                alpha: 1.0,
                beta: 1.0,
            })
        }
        Op::Add if ins[0] == ins[1] && !is_parameter[0] && !is_parameter[1] => {
            Kind::Sum { limits: None }
        }
        Op::Add => binary(Binary::Add),
        Op::Sub => binary(Binary::Sub),
        Op::Mul => binary(Binary::Mul),
        Op::Div => binary(Binary::Div),
        Op::PRelu => binary(Binary::PRelu),
        Op::Concat { axis: a } => {
            if is_parameter.iter().any(|p| *p) {
                return Err(at(node, "it joins a weight"));
            }
            let axis = stored_axis(axis(node, *a, x.len())?, x.len());
            let inner = ins.iter().map(|s| stored(s)[axis..].iter().product());
            Kind::Concat {
                inner: inner.collect(),
            }
        }
        Op::Pad { pads, mode } => Kind::Select(pad(node, x, pads, *mode)?),
        Op::Slice {
            axes,
            starts,
            steps,
            ..
        } => {
            let mut maps: Vec<Vec<Option<usize>>> =
                x.iter().map(|&n| (0..n).map(Some).collect()).collect();
            for i in 0..axes.len() {
                let axis = axis(node, axes[i], x.len())?;
                maps[axis] = slice(x[axis], out[axis], starts[i], steps[i]);
            }
            Kind::Select(select(x, maps, 0.0))
        }
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
            match reshaped(x, out) {
                Some(moves) => Kind::Reshape(moves),
                None => Kind::Copy,
            }
        }
        Op::Transpose { perm } => Kind::Move(Moved::transposed(x, perm)),
        Op::Softmax { axis: a } => {
            let axis = stored_axis(axis(node, *a, x.len())?, x.len());
            let dims = stored(x);
            Kind::Softmax {
                len: dims[axis],
                inner: dims[axis + 1..].iter().product(),
            }
        }
        Op::Resize {
            resized,
            interpolation,
            coordinates,
        } => {
            let of = |i: usize| taps(*resized, *interpolation, *coordinates, i, x[2 + i]);
            Kind::Resize(Resample {
                channels: x[1],
                input: [x[2], x[3]],
                taps: [of(0), of(1)],
            })
        }
        Op::Identity => Kind::Copy,
        Op::Gather { .. }
        | Op::RMSNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LpNormalization { .. }
        | Op::RotaryEmbedding { .. }
        | Op::PositionEmbedding
        | Op::Attention { .. }
        | Op::MaskedMean => {
            return Err(at(node, refuses(&node.op).unwrap_or_default()));
        }
        Op::FastGRNN => return Err(at(node, "its state is not carried from step to step")),
    })
}
