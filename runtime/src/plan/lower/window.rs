//! Depthwise convolutions and pools.

use super::{Context, Lowered, LoweredStep, weighted};
use crate::Result;
use crate::kernels::cpu::Kernel;
use crate::kernels::cpu::window::{DepthwiseWeights, Fold, Window};
use crate::model::{self, Op, padding_for};
use crate::plan::Residency;
use crate::plan::rewrite::UNCLAMPED;
use std::sync::Arc;

pub(super) fn depthwise(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
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
    let (mut values, [o, _, kh, kw]) = weighted::depthwise_weight(context)?;
    let mut bias = match unit.inputs.get(2).filter(|b| !b.is_empty()) {
        Some(_) => context.constant(2)?,
        None => Vec::new(),
    };
    let nonzeros = values.iter().filter(|v| **v != 0.0).count();
    if let Some((scale, shift)) = &unit.scale_shift {
        bias.resize(o, 0.0);
        for c in 0..o {
            values[c * kh * kw..(c + 1) * kh * kw]
                .iter_mut()
                .for_each(|v| *v *= scale[c]);
            bias[c] = bias[c] * scale[c] + shift[c];
        }
    }
    let input = [x[2], x[3]];
    let pads = padding_for(padding, input, [kh, kw], strides, dilations);
    let macs = (out.iter().product::<usize>() * kh * kw) as u64;
    let weight_bytes = (values.len() + bias.len()) * 4;
    let window = Window {
        fold: Fold::Depthwise(Arc::new(DepthwiseWeights { values, bias })),
        batch: x[0],
        channels: o,
        multiplier: o / groups,
        input,
        output: [out[2], out[3]],
        kernel: [kh, kw],
        strides,
        dilations,
        pads: [pads[0], pads[1]],
        clamp: unit.clamp,
    };
    let name = format!("f32_depthwise_{kh}x{kw}s{}_{}", strides[1], context.isa());
    let elements = x.iter().product::<usize>() + out.iter().product::<usize>();
    let mut info = context.info(name, "depthwise runs dense", elements)?;
    info.shape = format!("{o}x1x{kh}x{kw} @ {}x{}", out[2], out[3]);
    info.residency = Residency::Packed;
    info.weight_bytes = weight_bytes;
    info.density = nonzeros as f64 / (o * kh * kw).max(1) as f64;
    (info.macs, info.dense_macs) = (macs, macs);
    push(context, lowered, window, &out)?;
    lowered.infos.push(info);
    Ok(())
}

/// A pool; `count_include_pad` is given for an average.
pub(super) fn pool(
    context: &Context<'_>,
    window: &model::Window,
    count_include_pad: Option<bool>,
    lowered: &mut Lowered,
) -> Result<()> {
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let (input, output) = ([x[2], x[3]], [out[2], out[3]]);
    let model::Window {
        kernel,
        strides,
        dilations,
        padding,
        ..
    } = *window;
    let pads = padding_for(padding, input, kernel, strides, dilations);
    let reciprocals = |i: usize, include: bool| -> Vec<f32> {
        let end = if include {
            (input[i] + pads[i + 2]) as isize
        } else {
            input[i] as isize
        };
        let start = if include { -(pads[i] as isize) } else { 0 };
        let count = |o: usize| {
            let at = |k: usize| (o * strides[i] + k * dilations[i]) as isize - pads[i] as isize;
            (0..kernel[i])
                .filter(|&k| (start..end).contains(&at(k)))
                .count()
        };
        (0..output[i])
            .map(|o| 1.0 / count(o).max(1) as f32)
            .collect()
    };
    let (fold, word) = match count_include_pad {
        None => (Fold::Max, "maxpool"),
        Some(include) => (
            Fold::Average {
                rows: reciprocals(0, include),
                columns: reciprocals(1, include),
            },
            "averagepool",
        ),
    };
    let window = Window {
        fold,
        batch: x[0],
        channels: x[1],
        multiplier: 1,
        input,
        output,
        kernel,
        strides,
        dilations,
        pads: [pads[0], pads[1]],
        clamp: UNCLAMPED,
    };
    let name = format!(
        "f32_{word}_{}x{}s{}_{}",
        kernel[0],
        kernel[1],
        strides[1],
        context.isa()
    );
    let elements = x.iter().product::<usize>() + out.iter().product::<usize>();
    let info = context.info(name, "", elements)?;
    push(context, lowered, window, &out)?;
    lowered.infos.push(info);
    Ok(())
}

fn push(context: &Context<'_>, lowered: &mut Lowered, window: Window, out: &[usize]) -> Result<()> {
    let inputs = vec![lowered.place(&context.unit.inputs[0])?];
    let value = lowered.named(&context.unit.output);
    let kernel = Kernel::Window(window);
    lowered.steps.push(LoweredStep {
        kernel,
        inputs,
        out: value,
        out_len: out.iter().product(),
    });
    Ok(())
}
