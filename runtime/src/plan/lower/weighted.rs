//! Convolutions and linear layers: a form and packed weights for each, kernels, reports.

use super::super::choose::{Layer, Stored};
use super::super::form::{Chosen, Form};
use super::super::rewrite::{LinearUse, Unit, is_depthwise, linear_weight};
use super::decide::decide;
use super::matrix::{Matrix, Scale};
use super::packing::{Packing, packed_bytes, packed_rows, panel_name};
use super::{Context, Lowered, LoweredStep};
use crate::kernels::cpu::chunk::Chunk;
use crate::kernels::cpu::conv::{Conv, ConvGeometry, PanelSet};
use crate::kernels::cpu::linear::Linear;
use crate::kernels::cpu::lookup::{Lookup, LookupRows};
use crate::kernels::cpu::outputs::{OutputPanels, Outputs};
use crate::kernels::cpu::rows::Rows;
use crate::kernels::cpu::weights::PanelWeights;
use crate::kernels::cpu::{Isa, Kernel};
use crate::model::{Op, Storage, Weight, padding_for};
use crate::plan::{Residency, StepInfo, Weighted};
use crate::{DType, Model, Result};
use std::sync::Arc;

/// Inputs of a unit that its kernel takes in a form of its own.
pub(super) fn packed_inputs<'u>(model: &Model, unit: &'u Unit<'_>) -> Vec<&'u String> {
    match &unit.node.op {
        Op::Conv { .. } | Op::ConvTranspose { .. } => unit.inputs[1..].iter().collect(),
        Op::BatchNormalization { .. } => unit.inputs[1..].iter().collect(),
        Op::Gemm { .. } | Op::MatMul { .. } if linear_weight(model, unit).is_some() => {
            unit.inputs[1..].iter().collect()
        }
        Op::Gather { .. } => unit.inputs[..1].iter().collect(),
        Op::RotaryEmbedding { .. } | Op::PositionEmbedding => unit.inputs[1..].iter().collect(),
        _ => Vec::new(),
    }
}

/// The unit's `i`-th input as a weight of a floating-point dtype.
pub(super) fn weight_of<'m>(context: &Context<'m>, i: usize) -> Result<&'m Weight> {
    let name = &context.unit.inputs[i];
    let weight = context.model.weights().get(name);
    weight
        .filter(|w| w.element_dtype().is_float())
        .ok_or_else(|| {
            context.refuse(format!(
                "input {i}, `{name}`, must be a floating-point constant"
            ))
        })
}

/// A weighted layer with its form chosen and its weights made.
pub(super) struct Prepared {
    facts: Weighted,
    reason: String,
    density: f64,
    weights: Weights,
}

enum Weights {
    Panels(Arc<PanelSet>),
    Outputs(Arc<OutputPanels>),
    Lookup(Arc<LookupRows>),
    Rows(Rows, Residency),
}

/// Chooses and packs for a unit that is a convolution or a linear layer; `None` for any other.
pub(super) fn prepare(context: &Context<'_>) -> Result<Option<Prepared>> {
    let unit = context.unit;
    let prepared = match &unit.node.op {
        Op::Conv { .. } if is_depthwise(&unit.node.op, &context.shape(&unit.inputs[1])?) => None,
        Op::Conv { .. } => Some(prepare_conv(context)?),
        Op::Gemm { .. } | Op::MatMul { .. } => match linear_weight(context.model, unit) {
            Some(linear) => Some(prepare_linear(context, &linear)?),
            None => None,
        },
        _ => None,
    };
    if let Some(p) = &prepared
        && !matches!(p.weights, Weights::Rows(_, Residency::Mapped))
    {
        weight_of(context, 1)?.release();
    }
    Ok(prepared)
}

fn prepare_conv(context: &Context<'_>) -> Result<Prepared> {
    let unit = context.unit;
    let Op::Conv {
        strides,
        dilations,
        groups,
        ..
    } = unit.node.op
    else {
        return Err(context.refuse("is no convolution"));
    };
    let out = context.output_shape()?;
    let weight = weight_of(context, 1)?;
    let &[o, ci, kh, kw] = weight.shape() else {
        return Err(context.refuse("the weight has not four axes"));
    };
    let nonzeros = weight.count_nonzero();
    let density = nonzeros as f64 / weight.numel().max(1) as f64;
    let layer = Layer::new(
        o / groups,
        ci * kh * kw,
        nonzeros / groups,
        out[2] * out[3],
        context.options.isa,
    );
    let key = format!(
        "conv {o}x{ci}x{kh}x{kw} s{}x{} d{}x{} g{groups} @ {}x{} b{} {}",
        strides[0],
        strides[1],
        dilations[0],
        dilations[1],
        out[2],
        out[3],
        out[0],
        short(weight.dtype()),
    );
    let (decision, legal) = decide(context, &layer, &key, density)?;
    let scale_shift = unit.scale_shift.as_ref();
    let bias = match unit.inputs.get(2).filter(|b| !b.is_empty()) {
        Some(_) => context.constant(2)?,
        None => Vec::new(),
    };
    let packing = Packing {
        weight,
        transpose: false,
        scale: scale_shift.map_or(Scale::All(1.0), |s| Scale::Rows(&s.0)),
        groups,
        bias: match scale_shift {
            None => bias,
            Some((scale, shift)) => {
                let b = |r: usize| bias.get(r).copied().unwrap_or(0.0);
                (0..o).map(|r| b(r) * scale[r] + shift[r]).collect()
            }
        },
        variant: decision.variant,
    };
    Ok(Prepared {
        weights: Weights::Panels(packing.get(context)),
        facts: Weighted {
            weight: unit.inputs[1].clone(),
            form: decision.variant,
            by: decision.by,
            legal,
            key,
        },
        reason: decision.reason,
        density,
    })
}

pub(super) fn conv(context: &Context<'_>, prepared: Prepared, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let (
        Op::Conv {
            strides,
            padding,
            dilations,
            groups,
        },
        Weights::Panels(packed),
    ) = (&unit.node.op, prepared.weights)
    else {
        return Err(context.refuse("is no convolution"));
    };
    let (strides, dilations, groups) = (*strides, *dilations, *groups);
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let &[o, ci, kh, kw] = weight_of(context, 1)?.shape() else {
        return Err(context.refuse("the weight has not four axes"));
    };
    let (input, output) = ([x[2], x[3]], [out[2], out[3]]);
    let pads = padding_for(*padding, input, [kh, kw], strides, dilations);
    let geometry = ConvGeometry {
        batch: x[0],
        groups,
        channels: ci,
        input,
        rows: o / groups,
        output,
        kernel: [kh, kw],
        strides,
        dilations,
        pads: [pads[0], pads[1]],
    };
    let columns = output[0] * output[1];
    let info = StepInfo {
        node: unit.node.name.clone(),
        op: unit.node.op.name(),
        fused: unit.fused.clone(),
        shape: format!("{o}x{ci}x{kh}x{kw} @ {}x{}", output[0], output[1]),
        kernel: panel_name("conv", prepared.facts.form, context),
        reason: prepared.reason,
        residency: Residency::Packed,
        density: prepared.density,
        weight_bytes: packed_bytes(&packed),
        activation_bytes: (x.iter().product::<usize>() + out.iter().product::<usize>()) * 4,
        macs: (packed.groups.iter().map(PanelWeights::macs).sum::<usize>() * columns * x[0]) as u64,
        dense_macs: (o * ci * kh * kw * columns * x[0]) as u64,
        weighted: Some(prepared.facts),
    };
    let mut inputs = vec![lowered.place(&unit.inputs[0])?];
    if let Some(residual) = &unit.residual {
        inputs.push(lowered.place(residual)?);
    }
    let kernel = Kernel::Conv(Conv::new(geometry, packed, unit.clamp));
    let out_value = lowered.named(&unit.output);
    lowered.steps.push(LoweredStep {
        kernel,
        inputs,
        out: out_value,
        out_len: out.iter().product(),
    });
    lowered.infos.push(info);
    Ok(())
}

/// Outputs, inputs and input rows of a linear layer.
pub(super) fn linear_sizes(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    weight: &Weight,
) -> Result<(usize, usize, usize)> {
    let (rows, cols) = weight.matrix();
    let (outer, inner) = if linear.trans_b {
        (rows, cols)
    } else {
        (cols, rows)
    };
    let x = context.input_shape(0)?;
    Ok((outer, inner, x.iter().product::<usize>() / inner.max(1)))
}

pub(super) fn bias_of(context: &Context<'_>, linear: &LinearUse<'_>) -> Result<Vec<f32>> {
    Ok(match linear.bias {
        None => Vec::new(),
        Some((_, beta)) => context.constant(2)?.iter().map(|b| b * beta).collect(),
    })
}

fn prepare_linear(context: &Context<'_>, linear: &LinearUse<'_>) -> Result<Prepared> {
    let unit = context.unit;
    let weight = weight_of(context, 1)?;
    let (outer, inner, columns) = linear_sizes(context, linear, weight)?;
    let nonzeros = weight.count_nonzero();
    let density = nonzeros as f64 / (outer * inner).max(1) as f64;
    let only = context.options.capacity.is_some() || weight.dtype() != DType::F32;
    // Rows of a copy of the transpose are not 2:4.
    let storage = match weight.storage() {
        Storage::TwoFour if !is_as_stored(linear) => Storage::Bitmask,
        storage => storage,
    };
    let shared = match (only, storage) {
        (true, Storage::TwoFour) => " shared 2:4",
        (true, _) => " shared",
        (false, _) => "",
    };
    let dtype = short(weight.dtype());
    let key = |columns: usize| format!("linear {outer}x{inner} @ {columns} {dtype}{shared}");
    let mut layer = Layer {
        linear: true,
        stored: None,
        ..Layer::new(outer, inner, nonzeros, columns, context.options.isa)
    };
    let mut measured = false;
    if is_as_stored(linear) || only {
        // Plans of one decoder share its weights: what is fastest for one token holds for all of them.
        let one = if context.options.capacity.is_some() {
            1
        } else {
            columns
        };
        let times = context.measured(&key(one), density).unwrap_or(&[]);
        let rows = times.iter().find(|(v, _)| !v.form.is_stream());
        measured = only && rows.is_some();
        layer.stored = Some(Stored {
            element: weight.dtype().size(),
            storage,
            only,
            expand: match rows {
                Some((v, _)) => v.form.is_dense(),
                None => context.is_small && weight.scales().is_none(),
            },
        });
    }
    let (mut decision, legal) = match measured {
        true => decide(context, &layer, "", density)?,
        false => decide(context, &layer, &key(columns), density)?,
    };
    if measured && decision.by == Chosen::Estimated {
        let words = decision.variant.form.words();
        decision.reason = format!("density {density:.2}: {words}, measured for one token");
        decision.by = Chosen::Measured;
    }
    let variant = decision.variant;
    let weights = match variant.form {
        Form::DensePanel | Form::DenseByRow | Form::StreamPanel | Form::PairPanel => {
            let packing = Packing {
                weight,
                transpose: !linear.trans_b,
                scale: Scale::All(linear.alpha),
                groups: 1,
                bias: bias_of(context, linear)?,
                variant,
            };
            Weights::Panels(packing.get(context))
        }
        Form::DenseOutputs => {
            let many = context.options.isa.has_many_registers();
            let bias = bias_of(context, linear)?;
            let pack = |matrix: &Matrix<'_>| OutputPanels::pack(outer, inner, many, bias, matrix);
            Weights::Outputs(packed_rows(context, linear, weight, variant, pack))
        }
        Form::LookupRows => {
            let bias = bias_of(context, linear)?;
            let pack = |matrix: &Matrix<'_>| LookupRows::pack(outer, inner, bias, matrix);
            Weights::Lookup(packed_rows(context, linear, weight, variant, pack))
        }
        form => {
            let (rows, residency) = weight_rows(context, linear, weight, form)?;
            Weights::Rows(rows, residency)
        }
    };
    Ok(Prepared {
        weights,
        facts: Weighted {
            weight: unit.inputs[1].clone(),
            form: variant,
            by: decision.by,
            legal,
            key: key(columns),
        },
        reason: decision.reason,
        density,
    })
}

pub(super) fn linear(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    prepared: Prepared,
    lowered: &mut Lowered,
) -> Result<()> {
    let unit = context.unit;
    let weight = weight_of(context, 1)?;
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let (outer, inner, columns) = linear_sizes(context, linear, weight)?;
    let variant = prepared.facts.form;
    let few = variant.form.is_rows();
    let tokens = are_tokens(context, columns)?;
    let (kernel, residency, weight_bytes, macs, name) = match prepared.weights {
        Weights::Panels(packed) => {
            let (bytes, macs) = (
                packed_bytes(&packed),
                packed.groups.iter().map(PanelWeights::macs).sum(),
            );
            let kernel = Kernel::Conv(Conv::linear(columns, packed, unit.clamp));
            let name = panel_name("linear", variant, context);
            (kernel, Residency::Packed, bytes, macs, name)
        }
        Weights::Outputs(weights) => {
            let name = format!("f32_linear_dense_outputs_{}", context.isa());
            let bytes = weights.byte_len();
            let kernel = Kernel::Outputs(Outputs {
                weights,
                count: columns,
                clamp: unit.clamp,
            });
            (kernel, Residency::Packed, bytes, outer * inner, name)
        }
        Weights::Lookup(weights) => {
            let name = format!("f32_linear_lookup_rows_{}", context.isa());
            let (bytes, macs) = (weights.byte_len(), weights.nonzeros());
            let kernel = Kernel::Lookup(Lookup {
                weights,
                count: columns,
                clamp: unit.clamp,
            });
            (kernel, Residency::Packed, bytes, macs, name)
        }
        Weights::Rows(rows, residency) => {
            let bias = bias_of(context, linear)?;
            let bytes = rows.byte_len() + bias.len() * 4;
            let rounded = is_rounded(context, &rows, few);
            let operands = operands(&rows, rounded);
            let isa = isa_of(context, &rows, rounded, few);
            let form = variant.form.name();
            if few {
                let macs = rows.stored();
                let name = format!("{operands}_linear_{form}_rows_{isa}");
                let kernel = Kernel::Linear(Linear {
                    rows,
                    bias: bias.into(),
                    count: columns,
                    tokens,
                    rounded,
                    clamp: unit.clamp,
                });
                (kernel, residency, bytes, macs, name)
            } else {
                let set = context.options.isa;
                let ((m, v), macs) = match variant.form {
                    Form::TwoOfFourChunk => (set.select_tile(), rows.stored()),
                    _ => (set.chunk_tile(), outer * inner),
                };
                let name = format!("{operands}_linear_{form}_chunk_{m}x{v}_{isa}");
                let kernel = Chunk::new(rows, bias.into(), columns, tokens, rounded, unit.clamp);
                (Kernel::Chunk(kernel), residency, bytes, macs, name)
            }
        }
    };
    lowered.infos.push(StepInfo {
        node: unit.node.name.clone(),
        op: unit.node.op.name(),
        fused: unit.fused.clone(),
        shape: format!("{outer}x{inner} @ {columns}"),
        kernel: name,
        reason: prepared.reason,
        residency,
        density: prepared.density,
        weight_bytes,
        activation_bytes: (x.iter().product::<usize>() + out.iter().product::<usize>()) * 4,
        macs: (macs * columns) as u64,
        dense_macs: (outer * inner * columns) as u64,
        weighted: Some(prepared.facts),
    });
    let mut inputs = vec![lowered.place(&unit.inputs[0])?];
    if let Some(residual) = &unit.residual {
        inputs.push(lowered.place(residual)?);
    }
    let out_value = lowered.named(&unit.output);
    lowered.steps.push(LoweredStep {
        kernel,
        inputs,
        out: out_value,
        out_len: out.iter().product(),
    });
    Ok(())
}

/// Whether the inputs of a layer, of few columns or of many, are rounded as its weights are.
fn is_rounded(context: &Context<'_>, rows: &Rows, few: bool) -> bool {
    let dtype = rows.dtype();
    let multiplied = context.options.isa.multiplies(dtype, few);
    match context.options.round_inputs {
        None => multiplied,
        Some(true) => multiplied || dtype == DType::BF16 || dtype == DType::I8 && few,
        Some(false) => false,
    }
}

/// The instruction set of the kernel of a layer, of few columns or of many.
fn isa_of(context: &Context<'_>, rows: &Rows, rounded: bool, few: bool) -> Isa {
    match context.options.isa {
        isa if rounded && isa.multiplies(rows.dtype(), few) => isa,
        isa @ (Isa::NeonDot | Isa::NeonFhm | Isa::NeonBf16) => isa.base(),
        isa if rounded => isa,
        Isa::Avx512Bf16 if few => Isa::Avx512Vbmi2,
        isa if few => isa,
        isa => isa.base(),
    }
}

/// The words for the dtype of the weights, and of the inputs where they are rounded, in kernel names.
fn operands(rows: &Rows, rounded: bool) -> String {
    let name = short(rows.dtype());
    match rounded {
        true => format!("{name}x{name}"),
        false => name,
    }
}

/// The word for a dtype in kernel names.
fn short(dtype: DType) -> String {
    dtype.name().to_lowercase()
}

/// Whether rows of the weight are rows of the layer.
fn is_as_stored(linear: &LinearUse<'_>) -> bool {
    linear.trans_b && linear.alpha == 1.0
}

/// Whether a layer's columns are the tokens that a decoder's plan is made for.
fn are_tokens(context: &Context<'_>, columns: usize) -> Result<bool> {
    let (options, graph) = (context.options, context.model.graph());
    match graph.inputs.iter().find(|i| i.dtype == DType::I64) {
        Some(input) if options.capacity.is_some() => {
            Ok(context.shape(&input.name)?.iter().product::<usize>() == columns)
        }
        _ => Ok(false),
    }
}

/// Rows of the weight: the model's own bytes where they serve as they are, a copy otherwise.
fn weight_rows(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    weight: &Weight,
    form: Form,
) -> Result<(Rows, Residency)> {
    let refuse = || context.refuse("the weight does not take this form");
    let storage = form.storage();
    if is_as_stored(linear) && weight.storage() == storage {
        let rows = Rows::new(weight).ok_or_else(refuse)?;
        return Ok((rows, Residency::Mapped));
    }
    let encode = |w: &Weight| w.store_as(storage).ok().as_ref().and_then(Rows::new);
    // One copy serves every number of columns.
    let key = format!(
        "{}|rows|{}|{}",
        context.unit.node.name,
        storage.name(),
        context.unit.inputs[1]
    );
    let made = context.model.derived().get_or_make(&key, || {
        if is_as_stored(linear) {
            return encode(weight);
        }
        let matrix = Matrix::new(weight, !linear.trans_b, Scale::All(linear.alpha));
        let (outer, inner) = matrix.shape();
        let copy = Weight::from_f32(&[outer, inner], &matrix.dense());
        encode(&copy)
    });
    let rows = (*made).clone().ok_or_else(refuse)?;
    Ok((rows, Residency::Packed))
}

/// The values and shape of a depthwise convolution's weight.
pub(super) fn depthwise_weight(context: &Context<'_>) -> Result<(Vec<f32>, [usize; 4])> {
    let weight = weight_of(context, 1)?;
    let shape = weight.shape();
    match (shape, is_depthwise(&context.unit.node.op, shape)) {
        (&[o, i, kh, kw], true) => Ok((context.constant(1)?, [o, i, kh, kw])),
        _ => Err(context.refuse("the weight is not depthwise")),
    }
}
