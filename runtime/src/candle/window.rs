//! Convolution and pooling in candle ops.
//!
//! Candle convolves with one stride, one dilation and symmetric padding, pools without padding,
//! and differentiates a pool only when its windows tile the input. So inputs are padded or cropped
//! to exactly what the windows read, and pools, depthwise convolutions and uneven strides and
//! dilations are composed of slices.

use super::ops::{MAX_ELEMENTS, filled, take};
use crate::model::{Padding, Window, padding_for};
use candle_core::{Result, Tensor, bail};

/// One spatial axis of a windowed operator.
#[derive(Clone, Copy)]
struct Axis {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    after: usize,
}

impl Axis {
    /// Both axes of `window` on `x [N,C,H,W]`, with an output `[N,O,output..]`.
    fn both(x: &Tensor, window: &Window, output: &[usize]) -> Result<[Axis; 2]> {
        let (_, _, h, w) = x.dims4()?;
        let [_, _, out_h, out_w] = *output else {
            bail!("an output of shape {output:?}")
        };
        let (input, output) = ([h, w], [out_h, out_w]);
        let pads = padding_for(
            window.padding,
            input,
            window.kernel,
            window.strides,
            window.dilations,
        );
        Ok([0, 1].map(|i| Axis {
            input: input[i],
            output: output[i],
            kernel: window.kernel[i],
            stride: window.strides[i],
            dilation: window.dilations[i],
            before: pads[i],
            after: pads[i + 2],
        }))
    }

    /// How many elements of the padded input all windows span.
    fn span(&self) -> usize {
        (self.output - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
    }

    /// For each window, how many of its taps lie in `from..to`, counted from the first element of
    /// the padded input.
    fn taps_within(&self, from: usize, to: usize) -> Vec<usize> {
        let below = |limit: usize, start: usize| {
            limit
                .saturating_sub(start)
                .div_ceil(self.dilation)
                .min(self.kernel)
        };
        (0..self.output)
            .map(|o| below(to, o * self.stride) - below(from, o * self.stride))
            .collect()
    }

    /// For each window, the taps inside the input.
    fn taps_inside(&self) -> Vec<usize> {
        self.taps_within(self.before, self.before + self.input)
    }

    /// The elements under tap `t` of every window, on an axis fitted to the span.
    fn tap(&self, x: &Tensor, dim: usize, t: usize) -> Result<Tensor> {
        take(x, dim, t * self.dilation, self.stride, self.output)
    }
}

/// Pads both spatial axes with `fill` and cuts what no window reads.
fn fit(x: &Tensor, axes: &[Axis; 2], fill: f32) -> Result<Tensor> {
    let mut x = x.clone();
    for (dim, axis) in [2, 3].into_iter().zip(axes) {
        let span = axis.span();
        let mut parts = Vec::new();
        if axis.before > 0 {
            parts.push(filled(&x, dim, axis.before, fill)?);
        }
        parts.push(x.clone());
        let end = span.saturating_sub(axis.before + axis.input);
        if end > 0 {
            parts.push(filled(&x, dim, end, fill)?);
        }
        x = Tensor::cat(&parts, dim)?.narrow(dim, 0, span)?;
    }
    Ok(x)
}

/// A convolution of `x` into an output of shape `output`.
pub(super) fn conv(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (strides, padding, dilations, groups): ([usize; 2], Padding, [usize; 2], usize),
    output: &[usize],
) -> Result<Tensor> {
    let (channels, per_group, kh, kw) = weight.dims4()?;
    let window = Window {
        kernel: [kh, kw],
        strides,
        padding,
        dilations,
        ceil_mode: false,
    };
    let axes = Axis::both(x, &window, output)?;
    let x = fit(x, &axes, 0.0)?;
    let y = if per_group == 1 && groups > 1 {
        depthwise(&x, weight, &axes, channels / groups)?
    } else {
        grouped(&x, weight, &axes, groups)?
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, channels, 1, 1))?),
        None => Ok(y),
    }
}

/// The transpose of a convolution, to an output of shape `output`: the convolution, with the weight turned around, of the input
/// with zeros between its elements.
pub(super) fn conv_transpose(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (strides, pads, dilations, groups): ([usize; 2], [usize; 4], [usize; 2], usize),
    output: &[usize],
) -> Result<Tensor> {
    let (channels, per_group, kh, kw) = weight.dims4()?;
    let kernel = [kh, kw];
    let mut wide = x.clone();
    let spaced = strides
        .iter()
        .try_fold(x.elem_count(), |n, &s| n.checked_mul(s));
    if spaced.is_none_or(|n| n > MAX_ELEMENTS) {
        bail!(
            "strides {strides:?} of an input {:?} are beyond {MAX_ELEMENTS} elements",
            x.dims()
        );
    }
    for (i, dim) in [2, 3].into_iter().enumerate() {
        wide = spread(&wide, dim, strides[i])?;
        // Where the first window starts, before the first element or behind it.
        let before = (kernel[i] - 1) * dilations[i];
        let len = wide.dim(dim)?;
        let span = output[dim] + before;
        let mut parts = Vec::new();
        match before.checked_sub(pads[i]) {
            Some(0) => parts.push(wide),
            Some(n) => parts.extend([filled(&wide, dim, n, 0.0)?, wide]),
            None => {
                let cut = (pads[i] - before).min(len);
                parts.push(wide.narrow(dim, cut, len - cut)?);
            }
        }
        let have: usize = parts.iter().map(|p| p.dim(dim)).sum::<Result<usize>>()?;
        if have < span {
            parts.push(filled(&parts[0], dim, span - have, 0.0)?);
        }
        wide = Tensor::cat(&parts, dim)?.narrow(dim, 0, span)?;
    }
    let weight = weight
        .reshape((groups, channels / groups, per_group, kh * kw))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((groups * per_group, channels / groups, kh * kw))?;
    let weight = turned(&weight)?.reshape((groups * per_group, channels / groups, kh, kw))?;
    let attributes = ([1, 1], Padding::NONE, dilations, groups);
    conv(&wide, &weight, bias, attributes, output)
}

/// The last axis from its end to its start.
fn turned(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let n = x.dim(last)? as u32;
    let indices = Tensor::from_vec((0..n).rev().collect::<Vec<u32>>(), n as usize, x.device())?;
    x.contiguous()?.index_select(&indices, last)
}

/// Candle's convolution. The fitted input makes its gradient exact on both axes.
fn grouped(x: &Tensor, weight: &Tensor, axes: &[Axis; 2], groups: usize) -> Result<Tensor> {
    let mut weight = weight.clone();
    let [v, h] = axes;
    let dilation = if v.dilation == h.dilation {
        v.dilation
    } else {
        for (dim, axis) in [2, 3].into_iter().zip(axes) {
            weight = spread(&weight, dim, axis.dilation)?;
        }
        1
    };
    let x = x.contiguous()?;
    if v.stride == h.stride {
        return x.conv2d(&weight, 0, v.stride, dilation, groups);
    }
    let y = x.conv2d(&weight, 0, 1, dilation, groups)?;
    let y = take(&y, 2, 0, v.stride, v.output)?;
    take(&y, 3, 0, h.stride, h.output)
}

/// Puts `dilation - 1` zeros between the elements of an axis.
fn spread(weight: &Tensor, dim: usize, dilation: usize) -> Result<Tensor> {
    let mut dims = weight.dims().to_vec();
    let span = (dims[dim] - 1) * dilation + 1;
    dims[dim] *= dilation;
    weight
        .unsqueeze(dim + 1)?
        .pad_with_zeros(dim + 1, 0, dilation - 1)?
        .reshape(dims)?
        .narrow(dim, 0, span)
}

/// One input channel per group: a sum over taps. Candle would convolve group by group, and its
/// gradient would fill a whole input for each.
fn depthwise(x: &Tensor, weight: &Tensor, axes: &[Axis; 2], multiplier: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let x = if multiplier == 1 {
        x.clone()
    } else {
        x.unsqueeze(2)?
            .broadcast_as((n, c, multiplier, h, w))?
            .reshape((n, c * multiplier, h, w))?
    };
    let [vertical, horizontal] = axes;
    let mut sum: Option<Tensor> = None;
    for i in 0..vertical.kernel {
        let rows = vertical.tap(&x, 2, i)?;
        for j in 0..horizontal.kernel {
            let factor =
                weight
                    .narrow(2, i, 1)?
                    .narrow(3, j, 1)?
                    .reshape((1, c * multiplier, 1, 1))?;
            let part = horizontal
                .tap(&rows, 3, j)?
                .contiguous()?
                .broadcast_mul(&factor)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    sum.ok_or_else(|| candle_core::Error::msg("a kernel of no elements"))
}

/// Combines the taps of every window, first along rows, then along columns.
fn combine(
    x: &Tensor,
    axes: &[Axis; 2],
    with: fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut x = x.clone();
    for (dim, axis) in [3, 2].into_iter().zip(axes.iter().rev()) {
        let mut all = axis.tap(&x, dim, 0)?;
        for t in 1..axis.kernel {
            all = with(&all, &axis.tap(&x, dim, t)?)?;
        }
        x = all;
    }
    Ok(x)
}

fn pool_axes(x: &Tensor, window: &Window, output: &[usize]) -> Result<[Axis; 2]> {
    let axes = Axis::both(x, window, output)?;
    for axis in &axes {
        if let Some(o) = axis.taps_inside().iter().position(|&n| n == 0) {
            bail!("window {o} of {} holds only padding", axis.output)
        }
    }
    Ok(axes)
}

/// The largest element of each window; equal ones share the gradient.
pub(super) fn max_pool(x: &Tensor, window: &Window, output: &[usize]) -> Result<Tensor> {
    let axes = pool_axes(x, window, output)?;
    combine(&fit(x, &axes, f32::NEG_INFINITY)?, &axes, |a, b| {
        a.maximum(b)
    })
}

/// The mean of each window.
pub(super) fn average_pool(
    x: &Tensor,
    window: &Window,
    count_include_pad: bool,
    output: &[usize],
) -> Result<Tensor> {
    let axes = pool_axes(x, window, output)?;
    let sums = combine(&fit(x, &axes, 0.0)?, &axes, |a, b| a + b)?;
    let [rows, columns] = axes.map(|axis| {
        if count_include_pad {
            axis.taps_within(0, axis.before + axis.input + axis.after)
        } else {
            axis.taps_inside()
        }
    });
    let counts: Vec<f32> = rows
        .iter()
        .flat_map(|r| columns.iter().map(move |c| (r * c) as f32))
        .collect();
    let counts = Tensor::from_vec(counts, (1, 1, rows.len(), columns.len()), x.device())?;
    sums.broadcast_div(&counts)
}
