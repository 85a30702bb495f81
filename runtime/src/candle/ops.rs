//! The operators without windows, in candle ops.

use crate::model::{PadMode, axis_index, axis_set, slice_range};
use candle_core::{Error, Result, Tensor, bail};

/// The most elements of a padded tensor; more are refused before anything is allocated.
pub(super) const MAX_ELEMENTS: usize = 1 << 31;

/// `count` elements of an axis from `start`, `step` apart. A run of neighbours is a view.
pub(super) fn take(
    x: &Tensor,
    dim: usize,
    start: usize,
    step: usize,
    count: usize,
) -> Result<Tensor> {
    if step == 1 || count <= 1 {
        return x.narrow(dim, start, count);
    }
    gather(x, dim, (0..count).map(|i| start + i * step))
}

/// The elements of an axis at `indices`.
fn gather(x: &Tensor, dim: usize, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
    let indices: Vec<u32> = indices.map(|i| i as u32).collect();
    let count = indices.len();
    x.contiguous()?
        .index_select(&Tensor::from_vec(indices, count, x.device())?, dim)
}

/// A tensor like `x` with `len` elements along `dim`, all of them `value`.
pub(super) fn filled(x: &Tensor, dim: usize, len: usize, value: f32) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    dims[dim] = len;
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match elements {
        Some(n) if n <= MAX_ELEMENTS => Tensor::full(value, dims, x.device()),
        _ => bail!("padding of shape {dims:?} is beyond {MAX_ELEMENTS} elements"),
    }
}

/// Scale, bias, mean and variance `[C]` applied to `x [N,C,...]`.
pub(super) fn batch_norm(x: &Tensor, parameters: [&Tensor; 4], epsilon: f32) -> Result<Tensor> {
    let mut dims = vec![1; x.rank()];
    dims[1] = x.dim(1)?;
    let [scale, bias, mean, variance] = parameters;
    let scale = (scale / (variance + f64::from(epsilon))?.sqrt()?)?;
    let shift = (bias - (mean * &scale)?)?;
    x.broadcast_mul(&scale.reshape(dims.as_slice())?)?
        .broadcast_add(&shift.reshape(dims.as_slice())?)
}

/// `x [N,C,...]` normalised by its own mean and biased variance, scaled and shifted; and the two, of shape `[C]`.
pub(super) fn batch_norm_by_batch(
    x: &Tensor,
    [scale, bias]: [&Tensor; 2],
    epsilon: f32,
) -> Result<(Tensor, [Tensor; 2])> {
    let mut dims = vec![1; x.rank()];
    dims[1] = x.dim(1)?;
    // Within images first: sums stay short, and over neighbours.
    let mean_of = |t: &Tensor| match t.rank() {
        2 => t.mean_keepdim(0),
        rank => t
            .mean_keepdim((2..rank).collect::<Vec<_>>())?
            .mean_keepdim(0),
    };
    let mean = mean_of(x)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = mean_of(&centred.sqr()?)?;
    let factor = (scale.reshape(dims.as_slice())? / (&variance + f64::from(epsilon))?.sqrt()?)?;
    let y = centred
        .broadcast_mul(&factor)?
        .broadcast_add(&bias.reshape(dims.as_slice())?)?;
    let flat = |t: Tensor| t.detach().flatten_all();
    Ok((y, [flat(mean)?, flat(variance)?]))
}

/// Every plane of `x [N,C,...]` normalized by its own mean and variance, then scale and bias `[C]`.
pub(super) fn instance_norm(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    let (n, c) = (x.dim(0)?, x.dim(1)?);
    let flat = x.reshape((n, c, ()))?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(2)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(2)? + f64::from(epsilon))?.sqrt()?;
    centred
        .broadcast_div(&deviation)?
        .broadcast_mul(&scale.reshape((1, c, 1))?)?
        .broadcast_add(&bias.reshape((1, c, 1))?)?
        .reshape(x.dims())
}

/// Elements of an axis between two others: their indices, and the weight of the second.
pub(super) fn interpolate(x: &Tensor, dim: usize, taps: &[(usize, usize, f32)]) -> Result<Tensor> {
    let first = gather(x, dim, taps.iter().map(|t| t.0))?;
    if taps.iter().all(|t| t.2 == 0.0) {
        return Ok(first);
    }
    let second = gather(x, dim, taps.iter().map(|t| t.1))?;
    let mut dims = vec![1; x.rank()];
    dims[dim] = taps.len();
    let weights: Vec<f32> = taps.iter().map(|t| t.2).collect();
    let weights = Tensor::from_vec(weights, dims, x.device())?;
    (second - &first)?.broadcast_mul(&weights)? + first
}

pub(super) fn leaky_relu(x: &Tensor, alpha: f32) -> Result<Tensor> {
    x.gt(0f32)?.where_cond(x, &(x * f64::from(alpha))?)
}

pub(super) fn clip(x: &Tensor, min: Option<f32>, max: Option<f32>) -> Result<Tensor> {
    let x = match min {
        Some(min) => x.maximum(min)?,
        None => x.clone(),
    };
    match max {
        Some(max) => x.minimum(max),
        None => Ok(x),
    }
}

pub(super) fn hard_sigmoid(x: &Tensor, alpha: f32, beta: f32) -> Result<Tensor> {
    clip(
        &x.affine(f64::from(alpha), f64::from(beta))?,
        Some(0.0),
        Some(1.0),
    )
}

pub(super) fn gemm(
    a: &Tensor,
    b: &Tensor,
    c: Option<&Tensor>,
    (alpha, beta): (f32, f32),
    (trans_a, trans_b): (bool, bool),
) -> Result<Tensor> {
    let turned = |t: &Tensor, turn: bool| if turn { t.t() } else { Ok(t.clone()) };
    let mut y = turned(a, trans_a)?.matmul(&turned(b, trans_b)?)?;
    if alpha != 1.0 {
        y = (y * f64::from(alpha))?;
    }
    match c {
        Some(c) if beta == 1.0 => y.broadcast_add(c),
        Some(c) => y.broadcast_add(&(c * f64::from(beta))?),
        None => Ok(y),
    }
}

/// The product into `output`, the shape with the axes of vectors removed.
pub(super) fn matmul(a: &Tensor, b: &Tensor, trans_b: bool, output: &[usize]) -> Result<Tensor> {
    let a = if a.rank() == 1 {
        a.unsqueeze(0)?
    } else {
        a.contiguous()?
    };
    let b = match b.rank() {
        1 => b.unsqueeze(1)?,
        _ if trans_b => b.t()?,
        _ => b.clone(),
    };
    a.broadcast_matmul(&b)?.reshape(output)
}

pub(super) fn pad(x: &Tensor, pads: &[i64], mode: PadMode, output: &[usize]) -> Result<Tensor> {
    let (before, after) = pads.split_at(x.rank());
    let mut x = x.clone();
    for dim in 0..x.rank() {
        if (before[dim], after[dim]) == (0, 0) {
            continue;
        }
        let (first, len, out) = (before[dim], x.dim(dim)?, output[dim]);
        // Where an element of the output comes from, before the mode moves it inside.
        let source = |i: usize| (i as i64).saturating_sub(first);
        let end = len as i64;
        x = match mode {
            PadMode::Constant(value) => {
                let inside = (0..out).filter(|&i| (0..end).contains(&source(i)));
                let kept = inside.clone().count();
                let lead = inside.clone().next().unwrap_or(out);
                let from = inside.clone().next().map_or(0, source) as usize;
                let parts = [
                    filled(&x, dim, lead, value)?,
                    x.narrow(dim, from, kept)?,
                    filled(&x, dim, out - lead - kept, value)?,
                ];
                let parts: Vec<&Tensor> = parts.iter().filter(|p| p.dims()[dim] > 0).collect();
                match parts.as_slice() {
                    [] => x.narrow(dim, 0, 0)?,
                    parts => Tensor::cat(parts, dim)?,
                }
            }
            _ if out == 0 => x.narrow(dim, 0, 0)?,
            _ if len == 0 => bail!("axis {dim} has no edge to repeat"),
            PadMode::Edge => gather(
                &x,
                dim,
                (0..out).map(|i| source(i).clamp(0, end - 1) as usize),
            )?,
            PadMode::Reflect => {
                let mirror = |i: i64| match i {
                    i if i < 0 => i.saturating_neg(),
                    i if i >= end => 2 * (end - 1) - i,
                    i => i,
                };
                let sources: Vec<i64> = (0..out).map(|i| mirror(source(i))).collect();
                if !sources.iter().all(|i| (0..end).contains(i)) {
                    bail!("axis {dim}: a reflection reaches beyond size {len}")
                }
                gather(&x, dim, sources.into_iter().map(|i| i as usize))?
            }
        };
    }
    Ok(x)
}

pub(super) fn slice(
    x: &Tensor,
    axes: &[i64],
    starts: &[i64],
    ends: &[i64],
    steps: &[i64],
) -> Result<Tensor> {
    let mut y = x.clone();
    for (((&axis, &start), &end), &step) in axes.iter().zip(starts).zip(ends).zip(steps) {
        let dim = axis_index(axis, x.rank()).map_err(Error::msg)?;
        let (first, count) =
            slice_range(x.dim(dim)?, start, end, step).ok_or(Error::msg("a step of 0"))?;
        y = if count == 0 {
            y.narrow(dim, 0, 0)?
        } else if step > 0 {
            take(&y, dim, first, step as usize, count)?
        } else {
            gather(
                &y,
                dim,
                (0..count).map(|i| first - i * step.unsigned_abs() as usize),
            )?
        };
    }
    Ok(y)
}

pub(super) fn reduce_mean(x: &Tensor, axes: &[i64], output: &[usize]) -> Result<Tensor> {
    let mut dims = axis_set(axes, x.rank()).map_err(Error::msg)?;
    if dims.is_empty() {
        dims = (0..x.rank()).collect();
    }
    x.mean_keepdim(dims)?.reshape(output)
}

/// `u, h, gate_bias, update_bias, zeta, nu`.
pub(super) fn fast_grnn([u, h, gate, update, zeta, nu]: [&Tensor; 6]) -> Result<Tensor> {
    let z = candle_nn::ops::sigmoid(&u.broadcast_add(gate)?)?;
    let c = u.broadcast_add(update)?.tanh()?;
    let open = z
        .affine(-1.0, 1.0)?
        .broadcast_mul(&candle_nn::ops::sigmoid(zeta)?)?;
    (z * h)? + open.broadcast_add(&candle_nn::ops::sigmoid(nu)?)? * c
}

pub(super) fn softmax(x: &Tensor, axis: i64) -> Result<Tensor> {
    let dim = axis_index(axis, x.rank()).map_err(Error::msg)?;
    // The largest element only guards against overflow; it has no gradient of its own.
    let exp = x.broadcast_sub(&x.detach().max_keepdim(dim)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(dim)?)
}
