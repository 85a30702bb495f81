//! Nodes of the file as operators of the graph.

use super::call::{Call, two};
use super::convert::Converter;
use super::fold::Arithmetic;
use super::value::Value;
use super::{axes, constants, fold, language};
use lacuna::model::{Dim, Op, PadMode, Window};

/// The operators that are computed at run time.
pub(super) const COMPUTED: [&str; 44] = [
    "Add",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Dropout",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "LpNormalization",
    "MatMul",
    "MaxPool",
    "Mul",
    "PRelu",
    "Pad",
    "RMSNormalization",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Resize",
    "RotaryEmbedding",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];

/// The operators that are understood over constants and shapes only.
pub(super) const FOLDED: [&str; 7] = [
    "Cast",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Floor",
    "Shape",
    "Size",
];

type Converted = Result<Value, String>;

/// Converts one node: adds what it computes to the graph, or folds it.
pub(super) fn convert(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    match call.op {
        "Conv" => conv(c, call),
        "BatchNormalization" => batch_norm(c, call),
        "InstanceNormalization" => {
            call.attrs.ignore(&["consumed_inputs"]);
            call.at_most(3)?;
            let epsilon = call.attrs.float("epsilon")?.unwrap_or(1e-5);
            call.weight(1)?;
            call.weight(2)?;
            let inputs = [call.input(0)?, call.input(1)?, call.input(2)?];
            c.emit(call, Op::InstanceNormalization { epsilon }, &inputs)
        }
        "Relu" => unary(c, call, Op::Relu),
        "Sigmoid" => unary(c, call, Op::Sigmoid),
        "Tanh" => unary(c, call, Op::Tanh),
        "HardSwish" => unary(c, call, Op::HardSwish),
        "LeakyRelu" => {
            let alpha = call.attrs.float("alpha")?.unwrap_or(0.01);
            unary(c, call, Op::LeakyRelu { alpha })
        }
        "PRelu" => {
            call.at_most(2)?;
            let (x, slope) = (call.input(0)?, call.input(1)?.clone());
            // Before operator set 7 one slope for each channel.
            let rank = x.shape().len();
            let slope = match slope.shape()[..] {
                [Dim::Fixed(n)] if call.opset < 7 && n > 1 && rank > 2 => {
                    let mut shape = vec![n];
                    shape.resize(rank - 1, 1);
                    let name = c.fresh(&format!("{}_slope", call.output));
                    fold::reshape(&name, &slope, shape, &mut c.reader.budget)?
                }
                _ => slope,
            };
            c.emit(call, Op::PRelu, &[x, &slope])
        }
        "HardSigmoid" => {
            let alpha = call.attrs.float("alpha")?.unwrap_or(0.2);
            let beta = call.attrs.float("beta")?.unwrap_or(0.5);
            unary(c, call, Op::HardSigmoid { alpha, beta })
        }
        "Clip" => clip(c, call),
        "MaxPool" => {
            // The order of the indices, which are the second output.
            call.attrs.ignore(&["storage_order"]);
            let window = window(call)?;
            unary(c, call, Op::MaxPool(window))
        }
        "AveragePool" => {
            let window = window(call)?;
            let count_include_pad = call.attrs.flag("count_include_pad", false)?;
            let op = Op::AveragePool {
                window,
                count_include_pad,
            };
            unary(c, call, op)
        }
        "GlobalAveragePool" => unary(c, call, Op::GlobalAveragePool),
        "Resize" | "Upsample" => super::resize::convert(c, call),
        "Gemm" => gemm(c, call),
        "MatMul" => matmul(c, call),
        "Pad" => pad(c, call),
        "ReduceMean" => reduce_mean(c, call),
        "Softmax" => softmax(c, call),
        "Identity" => {
            call.at_most(1)?;
            call.input(0).cloned()
        }
        "Dropout" => dropout(call),
        "Add" | "Sub" | "Mul" | "Div" => constants::arithmetic(c, call),
        "Sum" => sum(c, call),
        "Concat" | "Slice" | "Reshape" | "Flatten" | "Transpose" | "Squeeze" | "Unsqueeze" => {
            axes::convert(c, call)
        }
        "Attention" | "Gather" | "Gelu" | "LayerNormalization" | "LpNormalization"
        | "RMSNormalization" | "RotaryEmbedding" | "Swish" => language::convert(c, call),
        op if FOLDED.contains(&op) => constants::fold(c, call),
        _ => Err(format!(
            "this operator is not supported; supported: {}",
            super::supported_ops().join(", ")
        )),
    }
}

/// An operator over one input.
fn unary(c: &mut Converter<'_>, call: &mut Call<'_>, op: Op) -> Converted {
    call.attrs.ignore(&["consumed_inputs"]);
    call.at_most(1)?;
    c.emit(call, op, &[call.input(0)?])
}

/// A chain of additions.
fn sum(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    let mut total = call.input(0)?.clone();
    for i in 1..call.inputs.len() {
        let next = call.input(i)?;
        total = if total.is_constant() && next.is_constant() {
            let name = c.fresh(call.output);
            Arithmetic::Add.fold(&name, &total, next, &mut c.reader.budget)?
        } else if i + 1 == call.inputs.len() {
            c.emit(call, Op::Add, &[&total, next])?
        } else {
            c.emit_step(call, "part", Op::Add, &[&total, next])?
        };
    }
    Ok(total)
}

fn conv(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(3)?;
    let strides = call.pair("strides")?;
    let dilations = call.pair("dilations")?;
    let padding = call.padding()?;
    let groups = call.attrs.int("group")?.unwrap_or(1);
    let groups = usize::try_from(groups).map_err(|_| format!("group {groups}"))?;
    let kernel = call.attrs.ints("kernel_shape")?;
    let shape = call.weight(1)?.weight.shape();
    let [_, _, height, width] = *shape else {
        return Err(format!(
            "a weight of shape {shape:?}; only convolutions over two spatial axes are supported"
        ));
    };
    if let Some(kernel) = kernel
        && two(kernel)? != [height, width]
    {
        return Err(format!("kernel_shape {kernel:?}, the weight is {shape:?}"));
    }
    let op = Op::Conv {
        strides,
        padding,
        dilations,
        groups,
    };
    let mut inputs = vec![call.input(0)?, call.input(1)?];
    if call.optional(2).is_some() {
        call.weight(2)?;
        inputs.push(call.input(2)?);
    }
    c.emit(call, op, &inputs)
}

fn window(call: &mut Call<'_>) -> Result<Window, String> {
    let kernel = call.attrs.ints("kernel_shape")?;
    let kernel = kernel.ok_or("attribute `kernel_shape` is missing")?;
    Ok(Window {
        kernel: two(kernel).map_err(|e| format!("kernel_shape {e}"))?,
        strides: call.pair("strides")?,
        padding: call.padding()?,
        dilations: call.pair("dilations")?,
        ceil_mode: call.attrs.flag("ceil_mode", false)?,
    })
}

fn batch_norm(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.attrs.ignore(&["momentum"]);
    call.at_most(5)?;
    let epsilon = call.attrs.float("epsilon")?.unwrap_or(1e-5);
    if call.attrs.flag("training_mode", false)? {
        return Err("training_mode 1; only inference is supported".into());
    }
    if !call.attrs.flag("spatial", true)? {
        return Err("spatial 0 is not supported".into());
    }
    for i in 1..5 {
        call.weight(i)?;
    }
    let inputs: Vec<&Value> = call.inputs.iter().flatten().collect();
    c.emit(call, Op::BatchNormalization { epsilon }, &inputs)
}

fn clip(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    let (min, max) = if call.opset < 11 {
        call.at_most(1)?;
        (call.attrs.float("min")?, call.attrs.float("max")?)
    } else {
        call.at_most(3)?;
        (call.scalar(1)?, call.scalar(2)?)
    };
    c.emit(call, Op::Clip { min, max }, &[call.input(0)?])
}

fn gemm(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(3)?;
    let alpha = call.attrs.float("alpha")?.unwrap_or(1.0);
    let beta = call.attrs.float("beta")?.unwrap_or(1.0);
    let trans_a = call.attrs.flag("transA", false)?;
    let mut trans_b = call.attrs.flag("transB", false)?;
    let mut b = call.input(1)?.clone();
    // A weight is stored as [outputs, inputs].
    if let Value::Weight(weight) = &b
        && weight.weight.shape().len() == 2
        && !trans_b
    {
        b = Value::Weight(c.transposed(weight)?);
        trans_b = true;
    }
    let op = Op::Gemm {
        alpha,
        beta,
        trans_a,
        trans_b,
    };
    let mut inputs = vec![call.input(0)?, &b];
    inputs.extend(call.optional(2));
    c.emit(call, op, &inputs)
}

fn matmul(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(2)?;
    let mut b = call.input(1)?.clone();
    let mut trans_b = false;
    if let Value::Weight(weight) = &b
        && weight.weight.shape().len() == 2
    {
        b = Value::Weight(c.transposed(weight)?);
        trans_b = true;
    }
    c.emit(call, Op::MatMul { trans_b }, &[call.input(0)?, &b])
}

fn pad(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    let rank = call.input(0)?.shape().len();
    let (pads, value) = if call.opset < 11 {
        call.at_most(1)?;
        let pads = call.attrs.ints("pads")?.map(<[i64]>::to_vec);
        (pads, call.attrs.float("value")?)
    } else {
        call.at_most(4)?;
        (call.ints(1)?, call.scalar(2)?)
    };
    let pads = pads.ok_or("the pads are missing")?;
    let pads = match call.ints(3)? {
        None => pads,
        Some(listed) => {
            if pads.len() != 2 * listed.len() {
                return Err(format!("{} pads for {} axes", pads.len(), listed.len()));
            }
            let mut all = vec![0; 2 * rank];
            for (i, axis) in axes::indices(&listed, rank)?.into_iter().enumerate() {
                all[axis] = pads[i];
                all[axis + rank] = pads[i + listed.len()];
            }
            all
        }
    };
    let mode = match call.attrs.text("mode")? {
        None | Some("constant") => PadMode::Constant(value.unwrap_or(0.0)),
        Some("reflect") => PadMode::Reflect,
        Some("edge") => PadMode::Edge,
        Some(other) => {
            return Err(format!(
                "mode `{other}`; supported: constant, reflect, edge"
            ));
        }
    };
    if pads.len() == 2 * rank && pads.iter().all(|&p| p == 0) {
        return call.input(0).cloned();
    }
    c.emit(call, Op::Pad { pads, mode }, &[call.input(0)?])
}

fn reduce_mean(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    let axes = call.axes(18)?.unwrap_or_default();
    let keepdims = call.attrs.flag("keepdims", true)?;
    let nothing = call.opset >= 18 && call.attrs.flag("noop_with_empty_axes", false)?;
    if axes.is_empty() && nothing {
        return call.input(0).cloned();
    }
    c.emit(call, Op::ReduceMean { axes, keepdims }, &[call.input(0)?])
}

/// Before operator set 13 the input is taken as a matrix of the axes before and from `axis`.
fn softmax(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(1)?;
    let since_13 = call.opset >= 13;
    let axis = call.attrs.int("axis")?;
    let axis = axis.unwrap_or(if since_13 { -1 } else { 1 });
    let x = call.input(0)?;
    let shape = x.shape();
    if since_13 {
        return c.emit(call, Op::Softmax { axis }, &[x]);
    }
    let first = if axis == shape.len() as i64 {
        shape.len()
    } else {
        axes::index(axis, shape.len())?
    };
    let mut wide = (first..shape.len()).filter(|&i| shape[i] != Dim::Fixed(1));
    if let (Some(one), None) = (wide.next(), wide.next()) {
        let axis = one as i64;
        return c.emit(call, Op::Softmax { axis }, &[x]);
    }
    let axis = first as i64;
    let flat = c.emit_step(call, "flat", Op::Flatten { axis }, &[x])?;
    let soft = c.emit_step(call, "soft", Op::Softmax { axis: 1 }, &[&flat])?;
    let target = super::ints::reshape_target(&soft.shape(), &x.shape_ints(), false)?;
    c.emit(call, Op::Reshape { shape: target }, &[&soft])
}

/// At inference nothing is dropped.
fn dropout(call: &mut Call<'_>) -> Converted {
    call.attrs.ignore(&["ratio", "seed"]);
    call.at_most(3)?;
    match call.optional(2) {
        None => {}
        Some(Value::Ints(flag)) if flag.known().is_some_and(|f| f == [0]) => {}
        Some(_) => return Err("training_mode is not constantly false".into()),
    }
    call.input(0).cloned()
}
