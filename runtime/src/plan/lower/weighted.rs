//! Convolutions and linear layers: choose a form, pack the weights, report both.

use super::super::choose::{self, Form, Layer, Stored};
use super::super::rewrite::{LinearUse, Unit, is_depthwise, linear_weight};
use super::{Context, Lowered, LoweredStep};
use crate::kernels::cpu::chunk::Chunk;
use crate::kernels::cpu::conv::{Conv, ConvGeometry, PanelSet};
use crate::kernels::cpu::linear::Linear;
use crate::kernels::cpu::rows::Rows;
use crate::kernels::cpu::weights::{
    DensePanels, IndexStream, PANEL, PanelWeights, chunk_rows, stream_rows, stream_width,
};
use crate::kernels::cpu::{Kernel, l1_bytes};
use crate::model::{Encoding, Op, Weight, padding_for};
use crate::plan::{Residency, StepInfo};
use crate::{DType, Model, Result};

/// Inputs of a unit that its kernel takes in a form of its own.
pub(super) fn packed_inputs<'u>(model: &Model, unit: &'u Unit<'_>) -> Vec<&'u String> {
    match &unit.node.op {
        Op::Conv { .. } => unit.inputs[1..].iter().collect(),
        Op::BatchNormalization { .. } => unit.inputs[1..].iter().collect(),
        Op::Gemm { .. } | Op::MatMul { .. } if linear_weight(model, unit).is_some() => {
            unit.inputs[1..].iter().collect()
        }
        Op::Gather { .. } => unit.inputs[..1].iter().collect(),
        Op::RotaryEmbedding { .. } | Op::PositionEmbedding => unit.inputs[1..].iter().collect(),
        _ => Vec::new(),
    }
}

/// A weight matrix's rows as ascending columns and values, zeros left out.
struct SparseRows {
    rows: Vec<(Vec<u32>, Vec<f32>)>,
    cols: usize,
}

impl SparseRows {
    /// Rows of `[outer, inner]`, transposed first when `transpose`, each scaled.
    fn new(weight: &Weight, transpose: bool, scale: impl Fn(usize) -> f32) -> Option<SparseRows> {
        let (rows, cols) = weight.matrix();
        let (outer, inner) = if transpose {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let mut list = vec![(Vec::new(), Vec::new()); outer];
        let mut push = |r: usize, c: usize, v: f32| {
            let (r, c) = if transpose { (c, r) } else { (r, c) };
            if v != 0.0 {
                list[r].0.push(c as u32);
                list[r].1.push(v * scale(r));
            }
        };
        let stored = weight.stored_f32()?;
        match weight.encoding() {
            Encoding::Dense(_) => {
                for (i, v) in stored.into_iter().enumerate() {
                    push(i / cols, i % cols, v);
                }
            }
            Encoding::Bitmask(b) => {
                let mut values = stored.into_iter();
                for r in 0..rows {
                    for c in b.row_columns(r) {
                        push(r, c, values.next()?);
                    }
                }
            }
        }
        Some(SparseRows {
            rows: list,
            cols: inner,
        })
    }

    fn dense(&self, range: std::ops::Range<usize>) -> Vec<f32> {
        let mut out = vec![0.0; range.len() * self.cols];
        for (row, out) in self.rows[range]
            .iter()
            .zip(out.chunks_exact_mut(self.cols.max(1)))
        {
            for (c, v) in row.0.iter().zip(&row.1) {
                out[*c as usize] = *v;
            }
        }
        out
    }

    fn pack(
        &self,
        range: std::ops::Range<usize>,
        form: Form,
        mr: usize,
        width: usize,
    ) -> PanelWeights {
        let (rows, cols) = (range.len(), self.cols);
        match form {
            Form::StreamPanel => {
                let row = |r: usize| self.rows[range.start + r].clone();
                let nonzeros: usize = self.rows[range.clone()].iter().map(|r| r.0.len()).sum();
                let density = nonzeros as f64 / (rows * cols).max(1) as f64;
                let chunk = stream_rows(l1_bytes(), width, density);
                PanelWeights::Stream(IndexStream::pack(rows, cols, chunk, width, row))
            }
            _ => PanelWeights::Dense(DensePanels::pack(
                &self.dense(range),
                rows,
                cols,
                mr,
                2 * chunk_rows(l1_bytes(), PANEL),
            )),
        }
    }
}

/// The unit's `i`-th input as a weight of a floating-point dtype.
fn weight_of<'m>(context: &Context<'m>, i: usize) -> Result<&'m Weight> {
    let name = &context.unit.inputs[i];
    let weight = context.model.weights().get(name);
    weight.filter(|w| w.dtype().is_float()).ok_or_else(|| {
        context.refuse(format!(
            "input {i}, `{name}`, must be a floating-point constant"
        ))
    })
}

/// Identifies a packed form among those derived from a model.
fn key(context: &Context<'_>, form: Form, width: usize) -> String {
    let unit = context.unit;
    // Row groups of dense panels differ by instruction set, and streams by the width of the panels.
    let mr = context.options.isa.dense_rows();
    format!(
        "{}|{}|{form:?}|{mr}|{width}",
        unit.node.name,
        unit.fused.join(",")
    )
}

pub(super) fn conv(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let Op::Conv {
        strides,
        padding,
        dilations,
        groups,
    } = unit.node.op
    else {
        return Err(context.refuse("is no convolution"));
    };
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let weight = weight_of(context, 1)?;
    let &[o, ci, kh, kw] = weight.shape() else {
        return Err(context.refuse("the weight has not four axes"));
    };
    let (input, output) = ([x[2], x[3]], [out[2], out[3]]);
    let pads = padding_for(padding, input, [kh, kw], strides, dilations);
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
    let cols = ci * kh * kw;
    let columns = output[0] * output[1];
    let nonzeros = weight.count_nonzero();
    let width = stream_width(columns, context.options.isa.has_many_registers());
    let layer = Layer {
        rows: o / groups,
        cols,
        nonzeros: nonzeros / groups,
        columns,
        linear: false,
        stored: None,
    };
    let ranked = choose::rank(
        &layer,
        &choose::candidates(&layer, context.options.dense),
        width,
    );
    let form = ranked[0].form;

    let scale_shift = unit.scale_shift.as_ref();
    let bias = match unit.inputs.get(2).filter(|b| !b.is_empty()) {
        Some(_) => context.constant(2)?,
        None => Vec::new(),
    };
    let packed = context
        .model
        .derived()
        .get_or_make(&key(context, form, width), || {
            let scale = |r: usize| scale_shift.map_or(1.0, |s| s.0[r]);
            let rows = SparseRows::new(weight, false, scale);
            let per_group = o / groups;
            let mr = context.options.isa.dense_rows();
            PanelSet {
                groups: rows.map_or(Vec::new(), |rows| {
                    (0..groups)
                        .map(|g| rows.pack(g * per_group..(g + 1) * per_group, form, mr, width))
                        .collect()
                }),
                bias: match scale_shift {
                    None => bias,
                    Some((scale, shift)) => {
                        let b = |r: usize| bias.get(r).copied().unwrap_or(0.0);
                        (0..o).map(|r| b(r) * scale[r] + shift[r]).collect()
                    }
                },
            }
        });

    let info = StepInfo {
        node: unit.node.name.clone(),
        op: unit.node.op.name(),
        fused: unit.fused.clone(),
        shape: format!("{o}x{ci}x{kh}x{kw} @ {}x{}", output[0], output[1]),
        kernel: panel_name("conv", form, width, context),
        reason: choose::reason(&layer, &ranked, context.options.dense),
        residency: Residency::Packed,
        density: nonzeros as f64 / (o * cols).max(1) as f64,
        weight_bytes: packed_bytes(&packed),
        activation_bytes: (x.iter().product::<usize>() + out.iter().product::<usize>()) * 4,
        macs: (packed.groups.iter().map(PanelWeights::macs).sum::<usize>() * columns * x[0]) as u64,
        dense_macs: (o * cols * columns * x[0]) as u64,
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

fn packed_bytes(set: &PanelSet) -> usize {
    set.groups.iter().map(PanelWeights::byte_len).sum::<usize>() + set.bias.len() * 4
}

fn panel_name(op: &str, form: Form, width: usize, context: &Context<'_>) -> String {
    let tile = match form {
        Form::DensePanel => format!("{}x64", context.options.isa.dense_rows()),
        _ => format!("1x{width}"),
    };
    format!("f32_{op}_{}_{tile}_{}", form.name(), context.isa())
}

pub(super) fn linear(
    context: &Context<'_>,
    linear: &LinearUse<'_>,
    lowered: &mut Lowered,
) -> Result<()> {
    let unit = context.unit;
    let weight = weight_of(context, 1)?;
    let x = context.input_shape(0)?;
    let out = context.output_shape()?;
    let (rows, cols) = weight.matrix();
    let (outer, inner) = if linear.trans_b {
        (rows, cols)
    } else {
        (cols, rows)
    };
    let columns = x.iter().product::<usize>() / inner.max(1);
    let nonzeros = weight.count_nonzero();
    let width = stream_width(columns, context.options.isa.has_many_registers());
    let layer = Layer {
        rows: outer,
        cols: inner,
        nonzeros,
        columns,
        linear: true,
        stored: stored(context, linear, weight),
    };
    let ranked = choose::rank(
        &layer,
        &choose::candidates(&layer, context.options.dense),
        width,
    );
    let form = ranked[0].form;
    let bias: Vec<f32> = match linear.bias {
        None => Vec::new(),
        Some((_, beta)) => context.constant(2)?.iter().map(|b| b * beta).collect(),
    };

    let (kernel, residency, weight_bytes, macs, name) = match form {
        Form::DensePanel | Form::StreamPanel => {
            let packed = context
                .model
                .derived()
                .get_or_make(&key(context, form, width), || {
                    let rows = SparseRows::new(weight, !linear.trans_b, |_| linear.alpha);
                    let mr = context.options.isa.dense_rows();
                    PanelSet {
                        groups: rows
                            .iter()
                            .map(|r| r.pack(0..outer, form, mr, width))
                            .collect(),
                        bias,
                    }
                });
            let (bytes, macs) = (
                packed_bytes(&packed),
                packed.groups.iter().map(PanelWeights::macs).sum(),
            );
            let kernel = Kernel::Conv(Conv::linear(columns, packed, unit.clamp));
            (
                kernel,
                Residency::Packed,
                bytes,
                macs,
                panel_name("linear", form, width, context),
            )
        }
        Form::DenseRows | Form::BitmaskRows => {
            let (rows, residency) = weight_rows(context, linear, weight, form)?;
            let (bytes, macs) = (rows.byte_len() + bias.len() * 4, rows.stored());
            let name = format!(
                "{}_linear_{}_rows_{}",
                short(rows.dtype()),
                form.name(),
                context.options.isa
            );
            let kernel = Kernel::Linear(Linear {
                rows,
                bias: bias.into(),
                count: columns,
                tokens: are_tokens(context, columns)?,
                clamp: unit.clamp,
            });
            (kernel, residency, bytes, macs, name)
        }
        Form::DenseChunk | Form::BitmaskChunk => {
            let (rows, residency) = weight_rows(context, linear, weight, form)?;
            let bytes = rows.byte_len() + bias.len() * 4;
            let (m, v) = context.options.isa.chunk_tile();
            let name = format!(
                "{}_linear_{}_chunk_{m}x{v}_{}",
                short(rows.dtype()),
                form.name(),
                context.isa()
            );
            let tokens = are_tokens(context, columns)?;
            let kernel = Chunk::new(rows, bias.into(), columns, tokens, unit.clamp);
            (Kernel::Chunk(kernel), residency, bytes, outer * inner, name)
        }
    };
    lowered.infos.push(StepInfo {
        node: unit.node.name.clone(),
        op: unit.node.op.name(),
        fused: unit.fused.clone(),
        shape: format!("{outer}x{inner} @ {columns}"),
        kernel: name,
        reason: choose::reason(&layer, &ranked, context.options.dense),
        residency,
        density: nonzeros as f64 / (outer * inner).max(1) as f64,
        weight_bytes,
        activation_bytes: (x.iter().product::<usize>() + out.iter().product::<usize>()) * 4,
        macs: (macs * columns) as u64,
        dense_macs: (outer * inner * columns) as u64,
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

/// The word for a dtype in kernel names.
fn short(dtype: DType) -> String {
    dtype.name().to_lowercase()
}

/// How the model holds a linear layer's weight. Plans of one decoder share its weights, and weights
/// of 16 bits are smaller than any other form, so that both are executed from there.
fn stored(context: &Context<'_>, linear: &LinearUse<'_>, weight: &Weight) -> Option<Stored> {
    let only = context.options.capacity.is_some() || weight.dtype() != DType::F32;
    (is_as_stored(linear) || only).then_some(Stored {
        element: weight.dtype().size(),
        bitmask: weight.is_sparse(),
        only,
    })
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
    let refuse = || context.refuse("the weight is not of a floating-point dtype");
    let bitmask = matches!(form, Form::BitmaskRows | Form::BitmaskChunk);
    if is_as_stored(linear) && weight.is_sparse() == bitmask {
        let rows = Rows::new(weight).ok_or_else(refuse)?;
        return Ok((rows, Residency::Mapped));
    }
    let encode = |w: &Weight| if bitmask { w.encode() } else { w.decode() };
    // One copy serves every number of columns.
    let key = format!(
        "{}|rows|{bitmask}|{}",
        context.unit.node.name, context.unit.inputs[1]
    );
    let made = context.model.derived().get_or_make(&key, || {
        if is_as_stored(linear) {
            return Rows::new(&encode(weight));
        }
        let sparse = SparseRows::new(weight, !linear.trans_b, |_| linear.alpha)?;
        let (outer, inner) = (sparse.rows.len(), sparse.cols);
        let copy = Weight::from_f32(&[outer, inner], &sparse.dense(0..outer));
        Rows::new(&encode(&copy))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_rows_agree_between_encodings_and_transposition() {
        let values: Vec<f32> = (0..35)
            .map(|i| if i % 3 == 0 { 0.0 } else { i as f32 })
            .collect();
        let dense = Weight::from_f32(&[5, 7], &values);
        let a = SparseRows::new(&dense, false, |_| 2.0).unwrap();
        let b = SparseRows::new(&dense.encode(), false, |_| 2.0).unwrap();
        assert_eq!(a.rows, b.rows);
        let t = SparseRows::new(&dense, true, |_| 1.0).unwrap();
        assert_eq!((t.rows.len(), t.cols), (7, 5));
        let back = t.dense(0..7);
        assert!((0..35).all(|i| back[i % 7 * 5 + i / 7] == values[i]));
    }
}
