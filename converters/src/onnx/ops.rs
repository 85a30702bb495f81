//! Nodes of the file as operators of the graph.

use super::call::{Call, two};
use super::convert::Converter;
use super::fold::Arithmetic;
use super::value::Value;
use super::{axes, constants, fold, language};
use lacuna::model::{Dim, Op, PadMode, Padding, Window};

/// The operators that are computed at run time.
pub(super) const COMPUTED: [&str; 47] = [
    "Add",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Div",
    "Dropout",
    "Erf",
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
    "Pow",
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
        "ConvTranspose" => conv_transpose(c, call),
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
        "Erf" => unary(c, call, Op::Erf),
        "Pow" => power(c, call),
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
    let groups = groups(call)?;
    kernel(call)?;
    let op = Op::Conv {
        strides,
        padding,
        dilations,
        groups,
    };
    over_weights(c, call, op)
}

fn groups(call: &mut Call<'_>) -> Result<usize, String> {
    let groups = call.attrs.int("group")?.unwrap_or(1);
    usize::try_from(groups).map_err(|_| format!("group {groups}"))
}

/// Height and width of a convolution's weight.
fn kernel(call: &mut Call<'_>) -> Result<[usize; 2], String> {
    let kernel = call.attrs.ints("kernel_shape")?;
    let shape = call.weight(1)?.weight.shape();
    let [_, _, height, width] = *shape else {
        return Err(format!(
            "a weight of shape {shape:?}; only convolutions over two spatial axes are supported"
        ));
    };
    match kernel {
        Some(kernel) if two(kernel)? != [height, width] => {
            Err(format!("kernel_shape {kernel:?}, the weight is {shape:?}"))
        }
        _ => Ok([height, width]),
    }
}

/// The node of a convolution, whose weight and bias are constants.
fn over_weights(c: &mut Converter<'_>, call: &Call<'_>, op: Op) -> Converted {
    let mut inputs = vec![call.input(0)?, call.input(1)?];
    if call.optional(2).is_some() {
        call.weight(2)?;
        inputs.push(call.input(2)?);
    }
    c.emit(call, op, &inputs)
}

/// Padding that is to come to a size, `output_shape` or the input's times the stride, is worked out here.
fn conv_transpose(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(3)?;
    let strides = call.pair("strides")?;
    let dilations = call.pair("dilations")?;
    let padding = call.padding()?;
    let groups = groups(call)?;
    let kernel = kernel(call)?;
    let two_of = |list: Option<&[i64]>| list.map(two).transpose();
    let mut output_padding = two_of(call.attrs.ints("output_padding")?)
        .map_err(|e| format!("output_padding {e}"))?
        .unwrap_or([0; 2]);
    let wanted = match call.attrs.ints("output_shape")? {
        // Older files have batch and channels too.
        Some([_, _, rest @ ..]) if rest.len() == 2 => Some(two(rest)?),
        list => two_of(list).map_err(|e| format!("output_shape {e}"))?,
    };
    let mut pads = match padding {
        Padding::Explicit(pads) => pads,
        Padding::SameUpper | Padding::SameLower => [0; 4],
    };
    let same = !matches!(padding, Padding::Explicit(_));
    if wanted.is_some() || same {
        let shape = call.input(0)?.shape();
        for i in 0..2 {
            let beyond = |what: &str| format!("{what} are beyond what is supported");
            let over = |a: usize, b: usize| a.checked_mul(b).ok_or_else(|| beyond("its sizes"));
            let extent = over(kernel[i].saturating_sub(1), dilations[i])?.saturating_add(1);
            let extent = extent.saturating_add(output_padding[i]);
            // What the output is larger by than the input times the stride, but for the padding.
            let (have, want) = match wanted {
                None => (extent.max(strides[i]), strides[i]),
                Some(want) => match shape.get(2 + i) {
                    Some(Dim::Fixed(n)) => {
                        let steps = over(n.saturating_sub(1), strides[i])?;
                        (steps.saturating_add(extent), want[i])
                    }
                    _ => {
                        return Err("output_shape, and an input of a size that is not known".into());
                    }
                },
            };
            let total = have.saturating_sub(want);
            output_padding[i] = output_padding[i].saturating_add(want.saturating_sub(have));
            let (small, large) = (total / 2, total - total / 2);
            (pads[i], pads[i + 2]) = match padding {
                Padding::SameUpper => (small, large),
                _ => (large, small),
            };
        }
    }
    let op = Op::ConvTranspose {
        strides,
        pads,
        output_padding,
        dilations,
        groups,
    };
    over_weights(c, call, op)
}

/// A small whole power, as products.
fn power(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(2)?;
    let exponent = match call.input(1)? {
        Value::Ints(n) if n.items.len() == 1 => n.known().map(|n| n[0] as f32),
        _ => call.scalar(1)?,
    };
    let x = call.input(0)?;
    match exponent {
        Some(1.0) => Ok(x.clone()),
        Some(2.0) => c.emit(call, Op::Mul, &[x, x]),
        Some(3.0) => {
            let square = c.emit_step(call, "square", Op::Mul, &[x, x])?;
            c.emit(call, Op::Mul, &[&square, x])
        }
        Some(n) => Err(format!("a power of {n}; supported: 1, 2, 3")),
        None => Err("an exponent that is no single known number".into()),
    }
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
