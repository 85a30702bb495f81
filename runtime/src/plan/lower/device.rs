//! Lowering for a device: its own layers with weights of 16 bits; everything else as on the CPU.

use super::super::rewrite::{Unit, linear_weight};
use super::tokens::Tokens;
use super::weighted::{bias_of, linear_sizes, weight_of};
use super::{Context, Lowered, Place, lower_unit, places, transposed};
use crate::kernels::cpu::Kernel;
use crate::model::{Op, Shapes, padding_for};
use crate::plan::rewrite::{LinearUse, Units, is_depthwise};
use crate::plan::{PlanOptions, Residency, StepInfo};
use crate::{DType, Model, Result, Weight};

/// A step with values for buffers.
pub(in crate::plan) struct DeviceStep {
    pub op: DeviceOp,
    pub inputs: Vec<Place>,
    pub out: usize,
    pub out_len: usize,
    pub info: StepInfo,
}

/// What a step does.
pub(in crate::plan) enum DeviceOp {
    /// What the CPU's kernel would do.
    Plain(Kernel),
    /// A product with rows of activations.
    Linear(Weights, usize),
    /// A convolution.
    Conv(Weights, Geometry),
}

/// The weight of a layer, a matrix for each group, in 16 bits.
pub(in crate::plan) struct Weights {
    /// What it is shared by among plans of a model.
    pub key: String,
    pub groups: Vec<Weight>,
    pub bias: Vec<f32>,
    /// Inputs end with one that is added.
    pub residual: bool,
    pub limits: (f32, f32),
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(in crate::plan) struct Geometry {
    pub images: usize,
    pub channels: usize,
    pub outputs: usize,
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top and left.
    pub pads: [usize; 2],
}

/// Steps for a device; places of outputs are with what is returned beside.
pub(in crate::plan) fn lower_device(
    model: &Model,
    units: &Units<'_>,
    shapes: &Shapes,
    options: &PlanOptions,
    bf16: bool,
) -> Result<(Lowered, Vec<DeviceStep>)> {
    let mut lowered = Lowered::default();
    places(model, units, &mut lowered);
    let tokens = Tokens::find(model, shapes, options)?;
    let mut steps = Vec::new();
    for unit in &units.list {
        let context = Context {
            model,
            shapes,
            options,
            unit,
            tokens: &tokens,
            pack_cache: None,
            is_small: false,
        };
        steps_of(&context, bf16, &mut lowered, &mut steps)?;
    }
    Ok((lowered, steps))
}

fn steps_of(
    context: &Context<'_>,
    bf16: bool,
    lowered: &mut Lowered,
    steps: &mut Vec<DeviceStep>,
) -> Result<()> {
    if let Some(step) = weighted(context, bf16, lowered)? {
        steps.push(step);
        return Ok(());
    }
    let op = &context.unit.node.op;
    match op {
        Op::ConvTranspose { .. } => transposed::lower(context, lowered, &mut |inner, lowered| {
            let begun = steps.len();
            steps_of(inner, bf16, lowered, steps)?;
            steps[begun..]
                .iter_mut()
                .for_each(|s| s.info.op = op.name());
            Ok(())
        })?,
        _ => lower_unit(context, None, lowered)?,
    }
    let infos = std::mem::take(&mut lowered.infos);
    let plain = std::mem::take(&mut lowered.steps);
    steps.extend(plain.into_iter().zip(infos).map(|(step, info)| DeviceStep {
        op: DeviceOp::Plain(step.kernel),
        inputs: step.inputs,
        out: step.out,
        out_len: step.out_len,
        info,
    }));
    Ok(())
}

fn weighted(
    context: &Context<'_>,
    bf16: bool,
    lowered: &mut Lowered,
) -> Result<Option<DeviceStep>> {
    let unit = context.unit;
    let (op, shape, macs) = match &unit.node.op {
        Op::Conv { .. } if is_depthwise(&unit.node.op, &context.shape(&unit.inputs[1])?) => {
            return Ok(None);
        }
        Op::Conv { .. } => conv(context, bf16)?,
        Op::Gemm { .. } | Op::MatMul { .. } => match linear_weight(context.model, unit) {
            Some(linear) => product(context, &linear, bf16)?,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let mut inputs = vec![lowered.place(&unit.inputs[0])?];
    if let Some(residual) = &unit.residual {
        inputs.push(lowered.place(residual)?);
    }
    let out_len: usize = context.output_shape()?.iter().product();
    let x: usize = context.input_shape(0)?.iter().product();
    let mut info = context.info(String::new(), "", x + out_len)?;
    let weight = weight_of(context, 1)?;
    info.shape = shape;
    info.residency = Residency::Packed;
    info.density = weight.density();
    info.dense_macs = macs;
    let out = lowered.named(&unit.output);
    Ok(Some(DeviceStep {
        op,
        inputs,
        out,
        out_len,
        info,
    }))
}

fn weights(context: &Context<'_>, groups: Vec<Weight>, bias: Vec<f32>, how: &str) -> Weights {
    let unit: &Unit<'_> = context.unit;
    Weights {
        key: format!(
            "{}|{how}|{}",
            unit.inputs[1],
            unit.scale_shift.as_ref().map_or("", |_| &unit.node.name)
        ),
        groups,
        bias,
        residual: unit.residual.is_some(),
        limits: unit.clamp,
    }
}

fn product(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    bf16: bool,
) -> Result<(DeviceOp, String, u64)> {
    let weight = weight_of(context, 1)?;
    let (outer, inner, columns) = linear_sizes(context, linear, weight)?;
    let plain = linear.trans_b && linear.alpha == 1.0;
    let half = match plain {
        true => halved(context, weight, bf16)?,
        false => {
            let values = weight.to_f32().unwrap_or_default();
            let at = |i: usize| match linear.trans_b {
                true => values[i],
                false => values[i % inner * outer + i / inner],
            };
            let rows: Vec<f32> = (0..outer * inner).map(|i| at(i) * linear.alpha).collect();
            halved(context, &Weight::from_f32(&[outer, inner], &rows), bf16)?
        }
    };
    let how = format!("{}|{}", linear.trans_b, linear.alpha);
    let weights = weights(context, vec![half], bias_of(context, linear)?, &how);
    let shape = format!("{outer}x{inner} @ {columns}");
    let macs = (outer * inner * columns) as u64;
    Ok((DeviceOp::Linear(weights, columns), shape, macs))
}

fn conv(context: &Context<'_>, bf16: bool) -> Result<(DeviceOp, String, u64)> {
    let unit = context.unit;
    let weight = weight_of(context, 1)?;
    let (
        Op::Conv {
            strides,
            padding,
            dilations,
            groups,
        },
        &[o, ci, kh, kw],
    ) = (&unit.node.op, weight.shape())
    else {
        return Err(context.refuse("the weight has not four axes"));
    };
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let (input, output) = ([x[2], x[3]], [out[2], out[3]]);
    let pads = padding_for(*padding, input, [kh, kw], *strides, *dilations);
    let mut bias = match unit.inputs.get(2).filter(|b| !b.is_empty()) {
        Some(_) => context.constant(2)?,
        None => Vec::new(),
    };
    let (rows, cols) = (o / groups, ci * kh * kw);
    if let Some((scale, shift)) = &unit.scale_shift {
        bias.resize(o, 0.0);
        for (b, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(shift)) {
            *b = *b * scale + shift;
        }
    }
    let parts = match (groups, &unit.scale_shift) {
        (1, None) => vec![halved(context, weight, bf16)?],
        _ => {
            let mut values = weight.to_f32().unwrap_or_default();
            if let Some((scale, _)) = &unit.scale_shift {
                for (row, scale) in values.chunks_mut(cols.max(1)).zip(scale) {
                    row.iter_mut().for_each(|v| *v *= scale);
                }
            }
            let part = |values: &[f32]| {
                let part = Weight::from_f32(&[rows, cols], values);
                let part = if weight.is_sparse() {
                    part.encode()
                } else {
                    part
                };
                halved(context, &part, bf16)
            };
            values
                .chunks((rows * cols).max(1))
                .map(part)
                .collect::<Result<_>>()?
        }
    };
    let geometry = Geometry {
        images: x[0],
        channels: x[1],
        outputs: o,
        input,
        output,
        kernel: [kh, kw],
        strides: *strides,
        dilations: *dilations,
        pads: [pads[0], pads[1]],
    };
    let shape = format!("{o}x{ci}x{kh}x{kw} @ {}x{}", output[0], output[1]);
    let macs = (o * cols * output[0] * output[1] * x[0]) as u64;
    let weights = weights(context, parts, bias, "conv");
    Ok((DeviceOp::Conv(weights, geometry), shape, macs))
}

/// The weight as a matrix of f16, or of bfloat16 where it is stored so and the device has it.
fn halved(context: &Context<'_>, weight: &Weight, bf16: bool) -> Result<Weight> {
    let (rows, cols) = weight.matrix();
    let refuse = |what: String| {
        let name = &context.unit.inputs[1];
        context.refuse(format!("weight `{name}` on a GPU: {what}"))
    };
    let kept = match weight.dtype() {
        DType::F16 => true,
        DType::BF16 => bf16,
        _ => false,
    };
    let half = match kept && weight.scales().is_none() {
        true => weight.clone(),
        false => {
            let values = weight.to_f32().unwrap_or_default();
            if let Some(large) = values.iter().find(|v| v.abs() >= 65520.0 || v.is_nan()) {
                return Err(refuse(format!("{large} is no number of f16")));
            }
            let wide = Weight::from_f32(&[rows, cols], &values);
            let half = wide.to_dtype(DType::F16).map_err(refuse)?;
            if weight.is_sparse() {
                half.encode()
            } else {
                half
            }
        }
    };
    half.reshape(vec![rows, cols])
        .ok_or_else(|| refuse("is no matrix".into()))
}
