//! A graph executed in candle ops: slow, plain, and differentiable.

use super::{language, ops, window};
use crate::model::{Dim, Graph, Node, Op, Symbols, infer_shapes};
use crate::{Error, Model, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

/// Runs a model's graph in candle ops, so that candle can differentiate the outputs with respect
/// to the inputs and to any weight that is given as a variable.
///
/// | Operators | How |
/// |---|---|
/// | `Conv` | candle's `conv2d` on an input padded and cropped to what the windows read; uneven strides by subsampling, uneven dilations by zeros in the kernel; depthwise as a sum over taps |
/// | `MaxPool`, `AveragePool` | maximum or sum over slices, for every padding, dilation and rounding; refused at run time where a window holds only padding |
/// | `BatchNormalization` | from the running statistics; [`Reference::run_by_batch`] takes those of the batch |
/// | `Pad` | every mode, negative pads too; a reflection longer than the axis is refused at run time |
/// | `Slice` | steps of both signs |
/// | `Relu`, `LeakyRelu`, `Clip`, `HardSigmoid`, `HardSwish`, `Sigmoid`, `Tanh`, `Softmax`, `GlobalAveragePool`, `ReduceMean`, `Gemm`, `MatMul`, `Add`, `Sub`, `Mul`, `Div`, `Concat`, `Reshape`, `Flatten`, `Transpose`, `Squeeze`, `Unsqueeze`, `Identity` | the candle op of that meaning |
///
/// | `Swish`, `Gelu`, `RMSNormalization`, `LayerNormalization`, `LpNormalization`, `MaskedMean` | sums, products and roots; zeros of a vanishing length or an empty mask stay zeros |
/// | `FastGRNN` | its formula |
/// | `Gather` | `index_select`; indices outside of the axis are refused at run time |
/// | `RotaryEmbedding`, `PositionEmbedding` | cosines and sines, or the rows of the table, of positions from 0 on; frequencies get no gradient |
/// | `Attention` | all scores at once, over the tokens of the run: nothing is kept between runs |
///
/// [`Reference::refuses`] lists what is left out; now that is nothing.
#[derive(Clone, Debug)]
pub struct Reference {
    model: Model,
    weights: HashMap<String, Tensor>,
    /// For each value, the index of the last node that reads it.
    last_use: HashMap<String, usize>,
}

impl Reference {
    /// Prepares `model`, its weights decoded to f32 in CPU memory.
    ///
    /// # Errors
    /// When the graph holds an operator that [`Reference::refuses`], or a weight is not of a
    /// floating-point dtype.
    pub fn new(model: &Model) -> Result<Reference> {
        Reference::with_weights(model, HashMap::new())
    }

    /// Prepares `model` with candle tensors in place of the weights that they are named after,
    /// for instance the variables of an optimiser. The other weights are decoded beside them.
    ///
    /// # Errors
    /// As [`Reference::new`], and when a name or a shape is not that of a weight of the model.
    pub fn with_weights(model: &Model, weights: HashMap<String, Tensor>) -> Result<Reference> {
        for node in &model.graph().nodes {
            if let Some(reason) = Reference::refuses(&node.op) {
                return Err(Error::node(
                    node,
                    format!("the reference refuses: {reason}"),
                ));
            }
        }
        let mut last_use = HashMap::new();
        for (i, node) in model.graph().nodes.iter().enumerate() {
            for name in &node.inputs {
                last_use.insert(name.clone(), i);
            }
        }
        for name in &model.graph().outputs {
            last_use.insert(name.clone(), usize::MAX);
        }
        let mut reference = Reference {
            model: model.clone(),
            weights: HashMap::new(),
            last_use,
        };
        for (name, weight) in model.weights() {
            if !weights.contains_key(name) {
                let refuse = |what: String| Error::Weight {
                    weight: name.clone(),
                    what,
                };
                let tensor = match (weight.to_i64(), weight.to_f32()) {
                    (Some(values), _) => Tensor::from_vec(values, weight.shape(), &Device::Cpu)?,
                    (None, Some(values)) => Tensor::from_vec(values, weight.shape(), &Device::Cpu)?,
                    _ => return Err(refuse(format!("dtype {}", weight.dtype()))),
                };
                reference.weights.insert(name.clone(), tensor);
            }
        }
        for (name, tensor) in weights {
            reference.set_weight(&name, tensor)?;
        }
        Ok(reference)
    }

    /// Replaces a weight, for instance by the product of a variable and a mask.
    ///
    /// # Errors
    /// When the model has no such weight, or the shape differs.
    pub fn set_weight(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let refuse = |what: String| Error::Weight {
            weight: name.to_owned(),
            what,
        };
        let weight = (self.model.weights().get(name))
            .ok_or_else(|| refuse("the model has no such weight".into()))?;
        if weight.shape() != tensor.dims() {
            return Err(refuse(format!(
                "shape {:?} instead of {:?}",
                tensor.dims(),
                weight.shape()
            )));
        }
        let tensor = tensor.to_dtype(if weight.element_dtype().is_float() {
            DType::F32
        } else {
            DType::I64
        })?;
        self.weights.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// The weights in use, by name: f32, and I64 those of integers.
    pub fn weights(&self) -> &HashMap<String, Tensor> {
        &self.weights
    }

    /// The same reference with its weights on another device. Inputs of a run must lie there too.
    ///
    /// # Errors
    /// When candle cannot copy a weight.
    pub fn to_device(&self, device: &Device) -> Result<Reference> {
        let mut moved = self.clone();
        for tensor in moved.weights.values_mut() {
            *tensor = tensor.to_device(device)?;
        }
        Ok(moved)
    }

    /// Why the reference does not execute `op`; `None` when it does.
    pub const fn refuses(op: &Op) -> Option<&'static str> {
        match op {
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
            | Op::Pad { .. }
            | Op::Slice { .. }
            | Op::Reshape { .. }
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
            | Op::RotaryEmbedding { .. }
            | Op::PositionEmbedding
            | Op::Attention { .. }
            | Op::MaskedMean
            | Op::FastGRNN => None,
        }
    }

    /// Runs the graph. `inputs` stand in the graph's order; symbolic dimensions take their sizes
    /// from them. Other dtypes become f32; inputs of I64 take any integer dtype. Returns the graph's outputs in order.
    ///
    /// # Errors
    /// When an input does not fit, or a node fails on these shapes.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.run_observed(inputs, &mut |_, _, _| Ok(()))
    }

    /// Runs the graph and shows `observe` every node as it is done, with its inputs (`None` where
    /// an optional one is absent) and its output: what a calibration collects from.
    ///
    /// # Errors
    /// As [`Reference::run`], and whatever `observe` returns.
    pub fn run_observed(
        &self,
        inputs: &[Tensor],
        observe: &mut Observer<'_>,
    ) -> Result<Vec<Tensor>> {
        self.walk(inputs, observe, None)
    }

    /// Runs the graph as training does: `BatchNormalization` takes mean and variance from the values that it is given
    /// instead of the running ones, differentiably, and `statistics` is told of them.
    ///
    /// # Errors
    /// As [`Reference::run`], and whatever `statistics` returns.
    pub fn run_by_batch(
        &self,
        inputs: &[Tensor],
        statistics: &mut Statistics<'_>,
    ) -> Result<Vec<Tensor>> {
        self.walk(inputs, &mut |_, _, _| Ok(()), Some(statistics))
    }

    fn walk(
        &self,
        inputs: &[Tensor],
        observe: &mut Observer<'_>,
        mut statistics: Option<&mut Statistics<'_>>,
    ) -> Result<Vec<Tensor>> {
        let graph = self.model.graph();
        let symbols = bind(graph, inputs)?;
        let shapes = infer_shapes(graph, self.model.weights(), &symbols)?;
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        for (input, tensor) in graph.inputs.iter().zip(inputs) {
            let dtype = match input.dtype {
                crate::DType::I64 if tensor.dtype().is_float() => {
                    return Err(Error::Binding {
                        kind: "input",
                        name: input.name.clone(),
                        what: format!("elements of {:?}, the model takes I64", tensor.dtype()),
                    });
                }
                crate::DType::I64 => DType::I64,
                _ => DType::F32,
            };
            values.insert(&input.name, tensor.to_dtype(dtype)?);
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            let shape = fixed(shapes.get(&node.output).map_or(&[], Vec::as_slice))
                .filter(|s| s.iter().product::<usize>() <= ops::MAX_ELEMENTS)
                .ok_or_else(|| Error::node(node, "its output is too large, or has no shape"))?;
            let tensors: Vec<Option<Tensor>> = node
                .inputs
                .iter()
                .map(|name| {
                    let value = values.get(name.as_str());
                    value.or_else(|| self.weights.get(name)).cloned()
                })
                .collect();
            let failed = |error: candle_core::Error| Error::node(node, error.to_string());
            let output = match (&node.op, &mut statistics, tensors.as_slice()) {
                (
                    Op::BatchNormalization { epsilon },
                    Some(statistics),
                    [Some(x), Some(scale), Some(bias), ..],
                ) => {
                    let (y, moments) =
                        ops::batch_norm_by_batch(x, [scale, bias], *epsilon).map_err(failed)?;
                    statistics(node, x, [&moments[0], &moments[1]])?;
                    y
                }
                _ => execute(&node.op, &tensors, &shape).map_err(failed)?,
            };
            if output.dims() != shape {
                return Err(Error::node(
                    node,
                    format!("computed shape {:?} instead of {shape:?}", output.dims()),
                ));
            }
            observe(node, &tensors, &output)?;
            values.insert(&node.output, output);
            for name in &node.inputs {
                if self.last_use.get(name) == Some(&i) {
                    values.remove(name.as_str());
                }
            }
        }
        graph
            .outputs
            .iter()
            .map(|name| {
                let value = values.get(name.as_str());
                let value = value.or_else(|| self.weights.get(name)).cloned();
                value.ok_or_else(|| Error::Graph {
                    graph: graph.name.clone(),
                    what: format!("output `{name}` is computed by no node"),
                })
            })
            .collect()
    }
}

/// What [`Reference::run_observed`] calls: the node, its inputs, its output.
pub type Observer<'a> = dyn FnMut(&Node, &[Option<Tensor>], &Tensor) -> Result<()> + 'a;

/// What [`Reference::run_by_batch`] calls for every `BatchNormalization`: the node, its input, and the mean and the biased
/// variance of each channel, of shape `[C]`.
pub type Statistics<'a> = dyn FnMut(&Node, &Tensor, [&Tensor; 2]) -> Result<()> + 'a;

/// Checks the inputs against the graph and reads the symbolic sizes from them.
fn bind(graph: &Graph, inputs: &[Tensor]) -> Result<Symbols> {
    if inputs.len() != graph.inputs.len() {
        return Err(Error::Graph {
            graph: graph.name.clone(),
            what: format!(
                "{} inputs given, {} needed",
                inputs.len(),
                graph.inputs.len()
            ),
        });
    }
    let mut symbols = Symbols::new();
    for (input, tensor) in graph.inputs.iter().zip(inputs) {
        let refuse = |what: String| Error::Binding {
            kind: "input",
            name: input.name.clone(),
            what,
        };
        let dims = tensor.dims();
        if dims.len() != input.shape.len() {
            return Err(refuse(format!(
                "{} axes, the graph has {}",
                dims.len(),
                input.shape.len()
            )));
        }
        for (i, (&size, dim)) in dims.iter().zip(&input.shape).enumerate() {
            let needed = match dim {
                Dim::Fixed(n) => *n,
                Dim::Symbol(s) => *symbols.entry(s.clone()).or_insert(size),
            };
            if size != needed {
                return Err(refuse(format!(
                    "axis {i} has size {size}, {dim} is {needed}"
                )));
            }
        }
    }
    Ok(symbols)
}

fn fixed(shape: &[Dim]) -> Option<Vec<usize>> {
    shape
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => Some(*n),
            Dim::Symbol(_) => None,
        })
        .collect()
}

/// One operator on its inputs, into an output of shape `output`.
fn execute(op: &Op, inputs: &[Option<Tensor>], output: &[usize]) -> candle_core::Result<Tensor> {
    let optional = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let need = |i: usize| {
        optional(i).ok_or_else(|| candle_core::Error::msg(format!("input {i} is missing")))
    };
    let x = need(0)?;
    if output.contains(&0) {
        return Tensor::zeros(output, DType::F32, x.device());
    }
    match op {
        Op::Conv {
            strides,
            padding,
            dilations,
            groups,
        } => {
            let attributes = (*strides, *padding, *dilations, *groups);
            window::conv(x, need(1)?, optional(2), attributes, output)
        }
        Op::ConvTranspose {
            strides,
            pads,
            dilations,
            groups,
            ..
        } => {
            let attributes = (*strides, *pads, *dilations, *groups);
            window::conv_transpose(x, need(1)?, optional(2), attributes, output)
        }
        Op::BatchNormalization { epsilon } => {
            ops::batch_norm(x, [need(1)?, need(2)?, need(3)?, need(4)?], *epsilon)
        }
        Op::InstanceNormalization { epsilon } => {
            ops::instance_norm(x, need(1)?, need(2)?, *epsilon)
        }
        Op::Relu => x.relu(),
        Op::LeakyRelu { alpha } => ops::leaky_relu(x, *alpha),
        Op::PRelu => x
            .relu()?
            .broadcast_sub(&x.neg()?.relu()?.broadcast_mul(need(1)?)?),
        Op::Clip { min, max } => ops::clip(x, *min, *max),
        Op::HardSigmoid { alpha, beta } => ops::hard_sigmoid(x, *alpha, *beta),
        Op::HardSwish => x * ops::hard_sigmoid(x, 1.0 / 6.0, 0.5)?,
        Op::Sigmoid => candle_nn::ops::sigmoid(x),
        Op::Tanh => x.tanh(),
        Op::Erf => x.erf(),
        Op::MaxPool(window) => window::max_pool(x, window, output),
        Op::AveragePool {
            window,
            count_include_pad,
        } => window::average_pool(x, window, *count_include_pad, output),
        Op::Resize {
            resized,
            interpolation,
            coordinates,
        } => {
            let along = |i: usize, n: usize| {
                crate::model::taps(*resized, *interpolation, *coordinates, i, n)
            };
            let rows = ops::interpolate(x, 2, &along(0, x.dim(2)?))?;
            ops::interpolate(&rows, 3, &along(1, x.dim(3)?))
        }
        Op::GlobalAveragePool => x.mean_keepdim((2, 3)),
        Op::Gemm {
            alpha,
            beta,
            trans_a,
            trans_b,
        } => {
            let factors = (*alpha, *beta);
            ops::gemm(x, need(1)?, optional(2), factors, (*trans_a, *trans_b))
        }
        Op::MatMul { trans_b } => ops::matmul(x, need(1)?, *trans_b, output),
        Op::Add => x.broadcast_add(need(1)?),
        Op::Sub => x.broadcast_sub(need(1)?),
        Op::Mul => x.broadcast_mul(need(1)?),
        Op::Div => x.broadcast_div(need(1)?),
        Op::Concat { axis } => {
            let axis =
                crate::model::axis_index(*axis, x.rank()).map_err(candle_core::Error::msg)?;
            let parts: Vec<&Tensor> = inputs.iter().flatten().collect();
            Tensor::cat(&parts, axis)
        }
        Op::Pad { pads, mode } => ops::pad(x, pads, *mode, output),
        Op::Slice {
            axes,
            starts,
            ends,
            steps,
        } => ops::slice(x, axes, starts, ends, steps),
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
            x.reshape(output)
        }
        Op::Transpose { perm } => x.permute(perm.as_slice()),
        Op::ReduceMean { axes, .. } => ops::reduce_mean(x, axes, output),
        Op::Softmax { axis } => ops::softmax(x, *axis),
        Op::Identity => Ok(x.clone()),
        Op::Swish { alpha } => language::swish(x, *alpha),
        Op::Gelu { approximate: true } => x.gelu(),
        Op::Gelu { approximate: false } => x.gelu_erf(),
        Op::Gather { axis } => language::gather(x, need(1)?, *axis, output),
        Op::RMSNormalization { epsilon } => language::rms_norm(x, need(1)?, *epsilon),
        Op::LayerNormalization { epsilon } => {
            language::layer_norm(x, need(1)?, optional(2), *epsilon)
        }
        Op::LpNormalization { axis } => language::length_norm(x, *axis),
        Op::RotaryEmbedding {
            heads,
            interleaved,
            scale,
        } => language::rotary(x, need(1)?, *heads, *interleaved, *scale),
        Op::PositionEmbedding => language::positions(x, need(1)?),
        Op::Attention {
            heads,
            kv_heads,
            causal,
            cache: _,
            scale,
        } => {
            let attributes = language::Heads {
                heads: *heads,
                kv_heads: *kv_heads,
                causal: *causal,
                scale: *scale,
            };
            language::attention([x, need(1)?, need(2)?], optional(3), &attributes)
        }
        Op::MaskedMean => language::masked_mean(x, need(1)?),
        Op::FastGRNN => ops::fast_grnn([x, need(1)?, need(2)?, need(3)?, need(4)?, need(5)?]),
    }
}
