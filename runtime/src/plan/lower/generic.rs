//! Element-wise operators, copies, reductions, and products of activations.

use super::{Context, Lowered, LoweredStep, Place};
use crate::Result;
use crate::kernels::cpu::Kernel;
use crate::kernels::cpu::elementwise::{Elementwise, Function};
use crate::kernels::cpu::generic::{Binary, Generic, Part, Unary};
use crate::model::{Op, PadMode, axis_index, axis_set, slice_range, taps};
use crate::plan::rewrite::{UNCLAMPED, batch_norm_affine};
use std::sync::Arc;

/// The longest axis of operators that have a table of indices for each.
const LONGEST: usize = 1 << 28;

pub(super) fn lower(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let x = context.input_shape(0)?;
    let out = context.output_shape()?;
    let len: usize = out.iter().product();
    if let Some(&n) = x.iter().chain(&out).find(|&&n| n > LONGEST) {
        return Err(context.refuse(format!("an axis of {n} elements, the limit is {LONGEST}")));
    }
    let unary = |function| Generic::Unary { function, len };
    let kernel = match &unit.node.op {
        Op::Relu => unary(Unary::Clamp(0.0, f32::INFINITY)),
        Op::Clip { min, max } => unary(Unary::Clamp(
            min.unwrap_or(UNCLAMPED.0),
            max.unwrap_or(UNCLAMPED.1),
        )),
        Op::LeakyRelu { alpha } => unary(Unary::LeakyRelu(*alpha)),
        Op::HardSigmoid { alpha, beta } => unary(Unary::HardSigmoid(*alpha, *beta)),
        Op::HardSwish => unary(Unary::HardSwish),
        Op::Erf => unary(Unary::Erf),
        Op::BatchNormalization { epsilon } => {
            let (scale, shift) = batch_norm_affine(context.model, unit.node, *epsilon)?;
            let plane = x.get(2..).unwrap_or_default().iter().product();
            Generic::ScaleShift {
                batch: x[0],
                plane,
                scale,
                shift,
            }
        }
        Op::InstanceNormalization { epsilon } => Generic::InstanceNorm {
            batch: x[0],
            plane: x.get(2..).unwrap_or_default().iter().product(),
            scale: context.constant(1)?,
            shift: context.constant(2)?,
            epsilon: *epsilon,
        },
        Op::Resize {
            resized,
            interpolation,
            coordinates,
        } => {
            let along = |i: usize| taps(*resized, *interpolation, *coordinates, i, x[2 + i]);
            Generic::Interpolate {
                planes: x[0] * x[1],
                input: [x[2], x[3]],
                rows: along(0),
                columns: along(1),
            }
        }
        Op::GlobalAveragePool => mean(&x, &[2, 3]),
        Op::ReduceMean { axes, .. } => {
            let axes = axis_set(axes, x.len()).map_err(|e| context.refuse(e))?;
            if axes.is_empty() {
                mean(&x, &(0..x.len()).collect::<Vec<_>>())
            } else {
                mean(&x, &axes)
            }
        }
        Op::Softmax { axis } => {
            let axis = axis_index(*axis, x.len()).map_err(|e| context.refuse(e))?;
            let (outer, inner) = (x[..axis].iter().product(), x[axis + 1..].iter().product());
            if inner == 1 && x[axis] > 0 {
                return softmax_rows(context, x[axis], lowered);
            }
            Generic::Softmax {
                outer,
                axis: x[axis],
                inner,
            }
        }
        Op::Sigmoid | Op::Tanh | Op::Swish { .. } | Op::Gelu { .. } => {
            return activation(context, lowered);
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::PRelu
            if x == out && context.input_shape(1)? == out =>
        {
            return equal_shapes(context, lowered);
        }
        Op::Add => binary(context, Binary::Add)?,
        Op::Sub => binary(context, Binary::Sub)?,
        Op::Mul => binary(context, Binary::Mul)?,
        Op::Div => binary(context, Binary::Div)?,
        Op::PRelu => binary(context, Binary::PRelu)?,
        Op::Transpose { perm } => {
            let strides = contiguous(&x);
            copy(
                perm.iter().map(|&p| every(x[p], strides[p])).collect(),
                &out,
                0.0,
            )
        }
        Op::Slice {
            axes,
            starts,
            ends,
            steps,
        } => {
            let strides = contiguous(&x);
            let mut tables: Vec<Table> = (0..x.len()).map(|i| every(x[i], strides[i])).collect();
            for i in 0..axes.len() {
                let axis = axis_index(axes[i], x.len()).map_err(|e| context.refuse(e))?;
                let (start, count) = slice_range(x[axis], starts[i], ends[i], steps[i])
                    .ok_or_else(|| context.refuse("a step of 0"))?;
                let at = |n: usize| (start as i64 + n as i64 * steps[i]) as usize;
                tables[axis] = (0..count).map(|n| Some(at(n) * strides[axis])).collect();
            }
            copy(tables, &out, 0.0)
        }
        Op::Pad { pads, mode } => {
            let strides = contiguous(&x);
            let mut tables = Vec::with_capacity(x.len());
            for (axis, &size) in x.iter().enumerate() {
                let mut table = Vec::with_capacity(out[axis]);
                for i in 0..out[axis] as i64 {
                    let at = pad_source(i - pads[axis], size as i64, *mode)
                        .map_err(|e| context.refuse(format!("axis {axis}: {e}")))?;
                    table.push(at.map(|a| a * strides[axis]));
                }
                tables.push(table);
            }
            let fill = if let PadMode::Constant(c) = mode {
                *c
            } else {
                0.0
            };
            copy(tables, &out, fill)
        }
        Op::Concat { axis } => {
            let axis = axis_index(*axis, x.len()).map_err(|e| context.refuse(e))?;
            let (strides, mut offset, mut parts) = (contiguous(&out), 0, Vec::new());
            for input in 0..unit.inputs.len() {
                let shape = context.input_shape(input)?;
                let from = contiguous(&shape);
                let tables = shape
                    .iter()
                    .zip(&from)
                    .map(|(&n, &s)| every(n, s))
                    .collect();
                parts.push(Part {
                    input,
                    tables,
                    strides: strides.clone(),
                    offset,
                    fill: 0.0,
                });
                offset += shape[axis] * strides[axis];
            }
            Generic::Copy { parts }
        }
        Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Squeeze { .. }
        | Op::Unsqueeze { .. }
        | Op::Identity => {
            return Err(context.refuse("a view reached lowering"));
        }
        Op::Gather { .. }
        | Op::RMSNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LpNormalization { .. }
        | Op::RotaryEmbedding { .. }
        | Op::PositionEmbedding
        | Op::Attention { .. }
        | Op::MaskedMean
        | Op::FastGRNN
        | Op::Conv { .. }
        | Op::ConvTranspose { .. }
        | Op::Gemm { .. }
        | Op::MatMul { .. }
        | Op::MaxPool(_)
        | Op::AveragePool { .. } => {
            return Err(context.refuse("is lowered elsewhere"));
        }
    };
    // Normalisations hold their vectors.
    let count = match unit.node.op {
        Op::BatchNormalization { .. } | Op::InstanceNormalization { .. } => 1,
        _ => unit.inputs.len(),
    };
    let inputs = unit.inputs[..count]
        .iter()
        .map(|n| lowered.place(n))
        .collect::<Result<Vec<_>>>()?;
    let elements = x.iter().product::<usize>() + len;
    let name = format!("f32_{}", unit.node.op.name().to_lowercase());
    let info = context.info(name, "", elements)?;
    let value = lowered.named(&unit.output);
    lowered.steps.push(LoweredStep {
        kernel: Kernel::Generic(kernel),
        inputs,
        out: value,
        out_len: len,
    });
    lowered.infos.push(info);
    Ok(())
}

/// An activation, gated by the unit's second input if it has one.
fn activation(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let function = match unit.node.op {
        Op::Swish { alpha } => Function::Swish(alpha),
        Op::Gelu { approximate: false } => Function::Gelu,
        Op::Gelu { approximate: true } => Function::GeluTanh,
        Op::Sigmoid => Function::Sigmoid,
        Op::Tanh => Function::Tanh,
        _ => return Err(context.refuse("is no activation")),
    };
    let extent = context.extent(&unit.output, &context.output_shape()?, 1);
    let (kernel, word) = if unit.inputs.len() > 1 {
        (Elementwise::Gated { function, extent }, "_mul")
    } else {
        (Elementwise::Unary { function, extent }, "")
    };
    elementwise(context, kernel, word, lowered)
}

/// A sum, difference, product or quotient without broadcast.
fn equal_shapes(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let function = match unit.node.op {
        Op::Add => Binary::Add,
        Op::Sub => Binary::Sub,
        Op::Mul => Binary::Mul,
        Op::PRelu => Binary::PRelu,
        _ => Binary::Div,
    };
    let extent = context.extent(&unit.output, &context.output_shape()?, 1);
    let kernel = Elementwise::Binary {
        function,
        extent,
        clamp: unit.clamp,
    };
    elementwise(context, kernel, "", lowered)
}

fn softmax_rows(context: &Context<'_>, width: usize, lowered: &mut Lowered) -> Result<()> {
    let shape = context.output_shape()?;
    let extent = context.extent(&context.unit.output, &shape, width);
    elementwise(context, Elementwise::Softmax { extent, width }, "", lowered)
}

fn elementwise(
    context: &Context<'_>,
    kernel: Elementwise,
    word: &str,
    lowered: &mut Lowered,
) -> Result<()> {
    let name = context.unit.node.op.name().to_lowercase();
    let name = format!("f32_{name}{word}_{}", context.isa());
    let inputs = context.unit.inputs.len();
    lowered.push(context, Kernel::Elementwise(kernel), inputs, name, "")
}

pub(super) type Table = Vec<Option<usize>>;

fn every(n: usize, stride: usize) -> Table {
    (0..n).map(|i| Some(i * stride)).collect()
}

fn copy(tables: Vec<Table>, out: &[usize], fill: f32) -> Generic {
    let part = Part {
        input: 0,
        tables,
        strides: contiguous(out),
        offset: 0,
        fill,
    };
    Generic::Copy { parts: vec![part] }
}

/// The input index that padded index `i` shows, if any.
fn pad_source(i: i64, size: i64, mode: PadMode) -> Result<Option<usize>, String> {
    if (0..size).contains(&i) {
        return Ok(Some(i as usize));
    }
    match mode {
        PadMode::Constant(_) => Ok(None),
        _ if size == 0 => Err("an empty axis has no edge".into()),
        PadMode::Edge => Ok(Some(i.clamp(0, size - 1) as usize)),
        PadMode::Reflect => {
            let mirrored = if i < 0 { -i } else { 2 * (size - 1) - i };
            match usize::try_from(mirrored) {
                Ok(m) if m < size as usize => Ok(Some(m)),
                _ => Err(format!("a reflection reaches beyond size {size}")),
            }
        }
    }
}

fn mean(x: &[usize], axes: &[usize]) -> Generic {
    let strides = contiguous(x);
    let pick = |reduced: bool| {
        let of = |i: &usize| axes.contains(i) == reduced;
        (0..x.len())
            .filter(of)
            .map(|i| (x[i], strides[i]))
            .collect()
    };
    Generic::Mean {
        kept: pick(false),
        reduced: pick(true),
    }
}

pub(super) fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Strides that read `shape` as if it were broadcast to `out`.
fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let strides = contiguous(shape);
    let missing = out.len() - shape.len();
    let mut wide = vec![0; out.len()];
    for i in 0..shape.len() {
        wide[missing + i] = if shape[i] == 1 { 0 } else { strides[i] };
    }
    wide
}

fn binary(context: &Context<'_>, function: Binary) -> Result<Generic> {
    let (a, b) = (context.input_shape(0)?, context.input_shape(1)?);
    let out = context.output_shape()?;
    let flat = a == b;
    let shape = if flat {
        vec![out.iter().product()]
    } else {
        out.clone()
    };
    let strides = if flat {
        [vec![1], vec![1]]
    } else {
        [broadcast_strides(&a, &out), broadcast_strides(&b, &out)]
    };
    Ok(Generic::Binary {
        function,
        shape,
        strides,
        clamp: context.unit.clamp,
    })
}

/// `Gemm` and `MatMul` whose right side is no plain linear weight.
pub(super) fn matrix_product(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let (mut a, mut b) = (context.input_shape(0)?, context.input_shape(1)?);
    let out = context.output_shape()?;
    let (trans_a, trans_b, alpha, beta) = match unit.node.op {
        Op::Gemm {
            alpha,
            beta,
            trans_a,
            trans_b,
        } => (trans_a, trans_b, alpha, beta),
        Op::MatMul { trans_b } => (false, trans_b, 1.0, 0.0),
        _ => return Err(context.refuse("is no matrix product")),
    };
    let vector_b = b.len() == 1;
    if a.len() == 1 {
        a.insert(0, 1);
    }
    if vector_b {
        b.push(1);
    }
    let (ra, rb) = (a.len(), b.len());
    let trans_b = trans_b && !vector_b;
    let (m, k) = if trans_a {
        (a[ra - 1], a[ra - 2])
    } else {
        (a[ra - 2], a[ra - 1])
    };
    let n = if trans_b { b[rb - 2] } else { b[rb - 1] };
    let strides = [
        if trans_a { 1 } else { k },
        if trans_a { m } else { 1 },
        if trans_b { 1 } else { n },
        if trans_b { k } else { 1 },
    ];
    let rank = ra.max(rb) - 2;
    let at = |s: &[usize], i: usize| (i + s.len() - 2).checked_sub(rank).map_or(1, |j| s[j]);
    let batch_shape: Vec<usize> = (0..rank).map(|i| at(&a, i).max(at(&b, i))).collect();
    let offsets = |s: &[usize], matrix: usize| {
        broadcast_strides(&s[..s.len() - 2], &batch_shape)
            .iter()
            .map(|v| v * matrix)
            .collect::<Vec<_>>()
    };
    let (sa, sb) = (offsets(&a, m * k), offsets(&b, k * n));
    let batch = (0..batch_shape.iter().product())
        .map(|mut flat: usize| {
            let mut at = (0, 0);
            for i in (0..rank).rev() {
                let index = flat % batch_shape[i];
                flat /= batch_shape[i];
                at = (at.0 + index * sa[i], at.1 + index * sb[i]);
            }
            at
        })
        .collect();
    let len: usize = out.iter().product();
    let product = Generic::MatMul {
        batch,
        m,
        k,
        n,
        strides,
    };
    let mut inputs = vec![
        lowered.place(&unit.inputs[0])?,
        lowered.place(&unit.inputs[1])?,
    ];
    let c = unit.inputs.get(2).filter(|c| !c.is_empty());

    let mut info = context.info("f32_matmul".into(), "no constant weight", len)?;
    info.macs = (len * k) as u64;
    info.dense_macs = info.macs;
    let mut chain = vec![(product, std::mem::take(&mut inputs))];
    if alpha != 1.0 {
        chain.push((
            Generic::Unary {
                function: Unary::Affine(alpha, 0.0),
                len,
            },
            Vec::new(),
        ));
    }
    if let Some(c) = c {
        let shape = context.input_shape(2)?;
        let strides = [
            broadcast_strides(&out, &out),
            broadcast_strides(&shape, &out),
        ];
        let scaled = match lowered.place(c)? {
            Place::Constant(v) => Place::Constant(Arc::new(v.iter().map(|x| x * beta).collect())),
            place if beta == 1.0 => place,
            place => {
                let count = shape.iter().product();
                let value = lowered.temporary();
                let kernel = Kernel::Generic(Generic::Unary {
                    function: Unary::Affine(beta, 0.0),
                    len: count,
                });
                lowered.steps.push(LoweredStep {
                    kernel,
                    inputs: vec![place],
                    out: value,
                    out_len: count,
                });
                lowered
                    .infos
                    .push(context.info("f32_scale".into(), "beta", 2 * count)?);
                Place::Value(value)
            }
        };
        let add = Generic::Binary {
            function: Binary::Add,
            shape: out.clone(),
            strides,
            clamp: UNCLAMPED,
        };
        chain.push((add, vec![scaled]));
    }
    let last = chain.len() - 1;
    let mut previous: Option<usize> = None;
    for (i, (kernel, mut inputs)) in chain.into_iter().enumerate() {
        if let Some(value) = previous {
            inputs.insert(0, Place::Value(value));
        }
        let value = if i == last {
            lowered.named(&unit.output)
        } else {
            lowered.temporary()
        };
        lowered.steps.push(LoweredStep {
            kernel: Kernel::Generic(kernel),
            inputs,
            out: value,
            out_len: len,
        });
        lowered.infos.push(info.clone());
        (info.macs, info.dense_macs) = (0, 0);
        info.kernel = "f32_elementwise".into();
        previous = Some(value);
    }
    Ok(())
}
