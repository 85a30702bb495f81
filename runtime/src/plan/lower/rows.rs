//! Embeddings, positions, normalization and means of tokens.

use super::{Context, Lowered, Place};
use crate::kernels::cpu::gather::{Data, Gather};
use crate::kernels::cpu::norm::{Norm, Scaling};
use crate::kernels::cpu::position::{Angles, PositionRows, Rotary};
use crate::kernels::cpu::{Extent, Kernel};
use crate::model::{Encoding, Op, Storage, axis_index};
use crate::plan::Residency;
use crate::{DType, Result};
use std::fmt::Write;

/// Where slices are read from, and what that is in reports.
fn data(context: &Context<'_>, i: usize) -> Result<(Data, String)> {
    let name = &context.unit.inputs[i];
    let Some(weight) = context.model.weights().get(name) else {
        return Ok((Data::Input, "f32".to_owned()));
    };
    if weight.scales().is_some() {
        return Err(context.refuse(format!("input {i}, `{name}`, is of I8 with scales")));
    }
    let dtype = weight.dtype();
    let float = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => return Err(context.refuse(format!("input {i}, `{name}`, is of {dtype}"))),
    };
    let word = match weight.storage() {
        Storage::Dense => float.to_owned(),
        Storage::Bitmask => format!("{float}_bitmask"),
        Storage::TwoFour => format!("{float}_2of4"),
    };
    let data = match weight.encoding() {
        Encoding::Dense(bytes) => Data::Dense(bytes.clone(), dtype),
        Encoding::Bitmask(bits) => Data::Bitmask(bits.clone(), dtype),
    };
    Ok((data, word))
}

pub(super) fn gather(context: &Context<'_>, axis: i64, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let (x, indices) = (context.input_shape(0)?, context.input_shape(1)?);
    let out = context.output_shape()?;
    let axis = axis_index(axis, x.len()).map_err(|e| context.refuse(e))?;
    let place = lowered.place(&unit.inputs[1])?;
    if let Place::Integers(constant) = &place {
        let limit = x[axis] as i64;
        if let Some(bad) = constant.iter().find(|i| !(-limit..limit).contains(i)) {
            return Err(context.refuse(format!("index {bad} of an axis of {limit}")));
        }
    }
    let (data, word) = data(context, 0)?;
    let inner: usize = x[axis + 1..].iter().product();
    let count: usize = indices.iter().product();
    let tokens = context.tokens.elements(&unit.output, &out);
    let table_bytes = match &data {
        Data::Input => 0,
        Data::Dense(_, dtype) => inner * dtype.size(),
        Data::Bitmask(bits, _) => (bits.values.len() + bits.mask.len()) / bits.rows.max(1),
    };
    let weight = context.model.weights().get(&unit.inputs[0]);
    let is_table = !matches!(data, Data::Input);
    let kernel = Kernel::Gather(Gather {
        data,
        outer: x[..axis].iter().product(),
        axis: x[axis],
        inner,
        indices: Extent {
            len: count,
            per_token: if axis == 0 { tokens / inner.max(1) } else { 0 },
        },
    });
    let (name, len) = (format!("{word}_gather"), out.iter().product::<usize>());
    let mut info = context.info(name, "", 2 * len + 2 * count)?;
    let mut inputs = vec![place];
    if is_table {
        info.residency = Residency::Mapped;
        info.weight_bytes = table_bytes * count;
        info.density = weight.map_or(1.0, |w| w.density());
        info.activation_bytes = 4 * len + 8 * count;
        info.reason = format!("{count} of {} rows are read", x[axis]);
    } else {
        inputs.insert(0, lowered.place(&unit.inputs[0])?);
    }
    lowered.finish(context, kernel, inputs, info)
}

pub(super) fn positions(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let (x, table) = (context.input_shape(0)?, context.input_shape(1)?);
    let needed = context.options.capacity.unwrap_or(x[1]);
    if table[0] < needed {
        return Err(context.refuse(format!("{needed} positions, the table has {}", table[0])));
    }
    let tokens = token_extent(context, &x)?;
    let (data, word) = data(context, 1)?;
    let is_table = !matches!(data, Data::Input);
    let kernel = Kernel::PositionRows(PositionRows {
        table: data,
        batch: x[0],
        tokens,
        width: x[2],
    });
    let len = x.iter().product::<usize>();
    let name = format!("{word}_positions_{}", context.isa());
    let mut info = context.info(name, "", 2 * len)?;
    let mut inputs = vec![lowered.place(&unit.inputs[0])?];
    if is_table {
        info.residency = Residency::Mapped;
        let weight = context.model.weights().get(&unit.inputs[1]);
        let row = weight.map_or(0, |w| w.byte_len() / table[0].max(1));
        info.weight_bytes = row * x[1];
        info.density = weight.map_or(1.0, |w| w.density());
    } else {
        inputs.push(lowered.place(&unit.inputs[1])?);
    }
    lowered.finish(context, kernel, inputs, info)
}

/// The tokens of `x [N, T, ..]`.
pub(super) fn token_extent(context: &Context<'_>, x: &[usize]) -> Result<Extent> {
    let sequential = context.options.capacity.is_some();
    if sequential && x[0] != 1 {
        return Err(context.refuse(format!("a sequence with a batch of {}", x[0])));
    }
    Ok(Extent {
        len: x[1],
        per_token: usize::from(sequential),
    })
}

pub(super) fn rotary(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let Op::RotaryEmbedding {
        heads,
        interleaved,
        scale,
    } = context.unit.node.op
    else {
        return Err(context.refuse("is no rotation"));
    };
    let x = context.input_shape(0)?;
    let frequencies = context.constant(1)?;
    let positions = context.options.capacity.unwrap_or(x[1]);
    if positions
        .checked_mul(frequencies.len())
        .is_none_or(|n| n > 1 << 32)
    {
        return Err(context.refuse(format!("{positions} positions")));
    }
    let mut key = format!("angles|{positions}|{:08x}|", scale.to_bits());
    for f in &frequencies {
        let _ = write!(key, "{:08x}", f.to_bits());
    }
    let make = || Angles::new(&frequencies, scale, positions);
    let angles = context.model.derived().get_or_make(&key, make);
    let (width, rotated) = (x[2] / heads, 2 * frequencies.len());
    let form = if interleaved { "pairs" } else { "halves" };
    let name = format!("f32_rotary_{form}_{rotated}of{width}_{}", context.isa());
    let reason = format!("{positions} positions in {} bytes", angles.byte_len());
    let kernel = Kernel::Rotary(Rotary {
        angles,
        batch: x[0],
        tokens: token_extent(context, &x)?,
        heads,
        width,
        interleaved,
    });
    lowered.push(context, kernel, 1, name, &reason)
}

pub(super) fn norm(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    let x = context.input_shape(0)?;
    let width = x.last().copied().unwrap_or(1);
    let extent = context.extent(&unit.output, &context.output_shape()?, width);
    let rows = |scaling| Norm::Rows {
        scaling,
        extent,
        width,
    };
    let (kernel, word) = match unit.node.op {
        Op::RMSNormalization { epsilon } => (rows(Scaling::Rms(epsilon)), "rmsnorm"),
        Op::LayerNormalization { epsilon } => (rows(Scaling::Layer(epsilon)), "layernorm"),
        Op::LpNormalization { axis } => {
            let axis = axis_index(axis, x.len()).map_err(|e| context.refuse(e))?;
            let inner = x[axis + 1..].iter().product();
            let length = Norm::Length {
                outer: x[..axis].iter().product(),
                axis: x[axis],
                inner,
            };
            let last = axis + 1 == x.len();
            (
                if last { rows(Scaling::Length) } else { length },
                "lengthnorm",
            )
        }
        _ => {
            let tokens = Extent {
                len: x[1],
                per_token: usize::from(context.tokens.elements(&unit.inputs[0], &x) > 0),
            };
            let mean = Norm::MaskedMean {
                batch: x[0],
                tokens,
                width,
            };
            (mean, "maskedmean")
        }
    };
    let name = format!("f32_{word}_{}", context.isa());
    let inputs = unit.inputs.len();
    lowered.push(context, Kernel::Norm(kernel), inputs, name, "")
}
