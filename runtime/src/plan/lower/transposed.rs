//! Transposed convolutions: an ordinary one, of stride 1, for each place of the output within the stride, and a step that
//! puts the places together. No zeros are multiplied, and what is between takes the output's size once more.

use super::super::rewrite::Unit;
use super::generic::{Table, contiguous};
use super::{Context, Lowered, LoweredStep};
use crate::kernels::cpu::Kernel;
use crate::kernels::cpu::generic::{Generic, Part};
use crate::model::{Dim, Graph, Input, Node, Op, Padding, Shapes, Weight, Weights};
use crate::{Model, Result};

/// The most convolutions that one is made of.
const MOST: usize = 1 << 10;

/// The elements of one axis of the output that are as many steps from a multiple of the stride.
#[derive(Clone, Debug, PartialEq)]
struct Phase {
    /// The first, and how many.
    first: usize,
    count: usize,
    /// Elements of the convolution before the first.
    skip: usize,
    /// Kernel elements that reach them, the last first.
    taps: Vec<usize>,
    dilation: usize,
    /// Padding of the convolution before its input.
    pad: usize,
}

/// Input element `i` and kernel element `t` reach element `i * stride + t * dilation - pad` of the output.
fn phases(output: usize, kernel: usize, stride: usize, pad: usize, dilation: usize) -> Vec<Phase> {
    let one = |first: usize| {
        let (quotient, rest) = ((first + pad) / stride, (first + pad) % stride);
        let mut taps: Vec<usize> = (0..kernel)
            .filter(|t| t * dilation % stride == rest)
            .collect();
        let (nearest, step) = match taps[..] {
            [] => (0, 1),
            [t] => ((t * dilation - rest) / stride, 1),
            [t, next, ..] => (
                (t * dilation - rest) / stride,
                (next - t) * dilation / stride,
            ),
        };
        let reach = nearest + taps.len().saturating_sub(1) * step;
        taps.reverse();
        Phase {
            first,
            count: (output - first).div_ceil(stride),
            skip: quotient.saturating_sub(reach),
            pad: reach.saturating_sub(quotient),
            taps,
            dilation: step,
        }
    };
    (0..stride.min(output)).map(one).collect()
}

/// Lowers one of the convolutions, a unit of a model of its own.
pub(super) type Each<'e> = dyn FnMut(&Context<'_>, &mut Lowered) -> Result<()> + 'e;

pub(super) fn lower(
    context: &Context<'_>,
    lowered: &mut Lowered,
    each: &mut Each<'_>,
) -> Result<()> {
    let unit = context.unit;
    let Op::ConvTranspose {
        strides,
        pads,
        dilations,
        groups,
        ..
    } = unit.node.op
    else {
        return Err(context.refuse("is no transposed convolution"));
    };
    let (x, out) = (context.input_shape(0)?, context.output_shape()?);
    let shape = context.shape(&unit.inputs[1])?;
    let values = context.constant(1)?;
    let along = |i: usize| phases(out[2 + i], shape[2 + i], strides[i], pads[i], dilations[i]);
    if (0..2)
        .map(|i| strides[i].min(out[2 + i]))
        .product::<usize>()
        > MOST
    {
        return Err(context.refuse(format!(
            "strides {strides:?} take more than {MOST} convolutions"
        )));
    }
    let (rows, columns) = (along(0), along(1));
    let alone = rows.len() * columns.len() == 1 && rows[0].skip + columns[0].skip == 0;
    let (mut parts, mut inputs) = (Vec::new(), Vec::new());
    let strides_out = contiguous(&out);
    let begun = lowered.infos.len();
    for (at, (v, h)) in rows
        .iter()
        .flat_map(|v| columns.iter().map(move |h| (v, h)))
        .enumerate()
    {
        let size = [v.skip + v.count, h.skip + h.count];
        let name = match alone {
            true => unit.output.clone(),
            false => format!("{}\u{0}{at}", unit.output),
        };
        let kernel = picked(&values, &shape, groups, [&v.taps, &h.taps]);
        // Behind the input as far as the last window reaches.
        let behind = |p: &Phase, n: usize, taps: usize| {
            let end = p.skip + p.count + (taps - 1) * p.dilation;
            end.saturating_sub(p.pad + n)
        };
        let padding = [
            v.pad,
            h.pad,
            behind(v, x[2], kernel.shape()[2]),
            behind(h, x[3], kernel.shape()[3]),
        ];
        let op = Op::Conv {
            strides: [1, 1],
            padding: Padding::Explicit(padding),
            dilations: [v.dilation, h.dilation],
            groups,
        };
        let own = (at, name.as_str());
        convolution(context, op, kernel, own, [&x, &out], size, &mut |inner| {
            each(inner, lowered)
        })?;
        let [height, width] = size;
        let every =
            |n: usize, stride: usize| -> Table { (0..n).map(|i| Some(i * stride)).collect() };
        let kept = |p: &Phase, stride: usize| -> Table {
            (p.skip..p.skip + p.count)
                .map(|i| Some(i * stride))
                .collect()
        };
        parts.push(Part {
            input: at,
            tables: vec![
                every(out[0], out[1] * height * width),
                every(out[1], height * width),
                kept(v, width),
                kept(h, 1),
            ],
            strides: vec![
                strides_out[0],
                strides_out[1],
                strides[0] * strides_out[2],
                strides[1],
            ],
            offset: v.first * strides_out[2] + h.first,
            fill: 0.0,
        });
        inputs.push(lowered.place(&name)?);
    }
    for info in &mut lowered.infos[begun..] {
        info.op = unit.node.op.name();
    }
    if alone {
        return Ok(());
    }
    let len: usize = out.iter().product();
    let info = context.info("f32_interleave".into(), "", 2 * len)?;
    let value = lowered.named(&unit.output);
    lowered.steps.push(LoweredStep {
        kernel: Kernel::Generic(Generic::Copy { parts }),
        inputs,
        out: value,
        out_len: len,
    });
    lowered.infos.push(info);
    Ok(())
}

/// The kernel elements of a phase as the weight of a convolution, `[O, C / groups, rows, columns]`; a zero where there are none.
fn picked(values: &[f32], shape: &[usize], groups: usize, taps: [&[usize]; 2]) -> Weight {
    let (channels, outputs) = (shape[0] / groups.max(1), shape[1]);
    let [height, width] = taps.map(|t| t.len().max(1));
    let mut picked = Vec::with_capacity(groups * outputs * channels * height * width);
    for (g, o) in (0..groups).flat_map(|g| (0..outputs).map(move |o| (g, o))) {
        for c in 0..channels {
            let from = &values[((g * channels + c) * outputs + o) * shape[2] * shape[3]..];
            for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                picked.push(match (taps[0].get(i), taps[1].get(j)) {
                    (Some(y), Some(x)) => from[y * shape[3] + x],
                    _ => 0.0,
                });
            }
        }
    }
    Weight::from_f32(&[groups * outputs, channels, height, width], &picked)
}

/// Gives one of the convolutions, by number and output, with what was fused into the whole.
fn convolution(
    context: &Context<'_>,
    op: Op,
    kernel: Weight,
    (at, name): (usize, &str),
    [x, out]: [&[usize]; 2],
    [height, width]: [usize; 2],
    lower: &mut dyn FnMut(&Context<'_>) -> Result<()>,
) -> Result<()> {
    let unit = context.unit;
    let dims = |shape: &[usize]| -> Vec<Dim> { shape.iter().map(|&n| Dim::Fixed(n)).collect() };
    let weight = format!("{}[{at}]", unit.inputs[1]);
    let mut inputs = vec![unit.inputs[0].clone(), weight.clone()];
    let mut shapes = Shapes::from([
        (inputs[0].clone(), dims(x)),
        (weight.clone(), dims(kernel.shape())),
        (name.to_owned(), dims(&[out[0], out[1], height, width])),
    ]);
    let mut weights = Weights::from([(weight, kernel)]);
    if let Some(bias) = unit.inputs.get(2).filter(|b| !b.is_empty()) {
        let values = context.constant(2)?;
        shapes.insert(bias.clone(), dims(&[values.len()]));
        weights.insert(bias.clone(), Weight::from_f32(&[values.len()], &values));
        inputs.push(bias.clone());
    }
    let node = Node {
        name: unit.node.name.clone(),
        op,
        inputs: inputs.clone(),
        output: name.to_owned(),
    };
    let graph = Graph {
        name: String::new(),
        inputs: vec![Input::f32(inputs[0].clone(), dims(x))],
        outputs: vec![name.to_owned()],
        nodes: vec![node.clone()],
    };
    let model = Model::new(graph, weights)?;
    let own = Unit {
        node: &node,
        inputs,
        output: name.to_owned(),
        scale_shift: unit.scale_shift.clone(),
        residual: None,
        clamp: unit.clamp,
        fused: unit.fused.clone(),
    };
    let inner = Context {
        model: &model,
        shapes: &shapes,
        unit: &own,
        options: context.options,
        tokens: context.tokens,
        pack_cache: context.pack_cache,
        is_small: context.is_small,
    };
    lower(&inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every pair of an input and a kernel element that reaches the output is in one phase, in its place.
        #[test]
        fn phases_hold_each_product_once(
            input in 1usize..6, kernel in 1usize..6, stride in 1usize..5, dilation in 1usize..5,
            pads in (0usize..5, 0usize..5), more in 0usize..4,
        ) {
            let whole = (input - 1) * stride + (kernel - 1) * dilation + 1 + more;
            prop_assume!(whole > pads.0 + pads.1);
            let output = whole - pads.0 - pads.1;
            let mut found = Vec::new();
            let mut covered = vec![0; output];
            for p in phases(output, kernel, stride, pads.0, dilation) {
                for j in 0..p.count {
                    let o = p.first + j * stride;
                    covered[o] += 1;
                    for (m, &t) in p.taps.iter().enumerate() {
                        let i = (j + p.skip + m * p.dilation).checked_sub(p.pad);
                        found.extend(i.filter(|&i| i < input).map(|i| (o, i, t)));
                    }
                }
            }
            prop_assert!(covered.iter().all(|&n| n == 1));
            found.sort_unstable();
            let mut wanted = Vec::new();
            for (i, t) in (0..input).flat_map(|i| (0..kernel).map(move |t| (i, t))) {
                let at = (i * stride + t * dilation).checked_sub(pads.0);
                wanted.extend(at.filter(|&o| o < output).map(|o| (o, i, t)));
            }
            wanted.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }
}
