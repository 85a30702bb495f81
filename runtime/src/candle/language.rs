//! The operators of language models, in candle ops. A sequence starts at position 0.

use crate::model::axis_index;
use candle_core::{D, DType, Device, Error, Result, Tensor, bail};

/// `x` where it is not 0, else 1: a divisor.
fn or_one(x: &Tensor) -> Result<Tensor> {
    x.eq(0f32)?.where_cond(&x.ones_like()?, x)
}

pub(super) fn swish(x: &Tensor, alpha: f32) -> Result<Tensor> {
    x * candle_nn::ops::sigmoid(&(x * f64::from(alpha))?)?
}

pub(super) fn rms_norm(x: &Tensor, scale: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?
        .broadcast_mul(scale)
}

pub(super) fn layer_norm(
    x: &Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f32,
) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let y = rms_norm(&centred, scale, epsilon)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub(super) fn length_norm(x: &Tensor, axis: i64) -> Result<Tensor> {
    let dim = axis_index(axis, x.rank()).map_err(Error::msg)?;
    x.broadcast_div(&or_one(&x.sqr()?.sum_keepdim(dim)?)?.sqrt()?)
}

pub(super) fn gather(
    data: &Tensor,
    indices: &Tensor,
    axis: i64,
    output: &[usize],
) -> Result<Tensor> {
    let dim = axis_index(axis, data.rank()).map_err(Error::msg)?;
    let len = data.dim(dim)? as i64;
    let mut list = Vec::with_capacity(indices.elem_count());
    for i in indices.flatten_all()?.to_vec1::<i64>()? {
        if !(-len..len).contains(&i) {
            bail!("index {i} of an axis of {len}")
        }
        list.push(i.rem_euclid(len) as u32);
    }
    let indices = Tensor::from_vec(list, indices.elem_count(), data.device())?;
    data.contiguous()?
        .index_select(&indices, dim)?
        .reshape(output)
}

pub(super) fn rotary(
    x: &Tensor,
    frequencies: &Tensor,
    heads: usize,
    interleaved: bool,
    scale: f32,
) -> Result<Tensor> {
    let (n, t, width) = x.dims3()?;
    let size = width / heads;
    let frequencies: Vec<f32> = frequencies.to_device(&Device::Cpu)?.to_vec1()?;
    let pairs = frequencies.len();
    let table = |f: fn(f64) -> f64| {
        let angles = (0..t).flat_map(|p| frequencies.iter().map(move |w| p as f64 * f64::from(*w)));
        let values: Vec<f32> = angles.map(|a| (f(a) * f64::from(scale)) as f32).collect();
        let last = if interleaved { [pairs, 1] } else { [1, pairs] };
        Tensor::from_vec(values, (1, t, 1, last[0], last[1]), x.device())
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    let x = x.reshape((n, t, heads, size))?;
    let turned = x.narrow(3, 0, 2 * pairs)?;
    // Pairs lie along the last axis, or along the one before it.
    let (turned, axis) = if interleaved {
        (turned.reshape((n, t, heads, pairs, 2))?, 4)
    } else {
        (turned.reshape((n, t, heads, 2, pairs))?, 3)
    };
    let (a, b) = (turned.narrow(axis, 0, 1)?, turned.narrow(axis, 1, 1)?);
    let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let high = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[low, high], axis)?.reshape((n, t, heads, 2 * pairs))?;
    let y = match size - 2 * pairs {
        0 => turned,
        rest => Tensor::cat(&[turned, x.narrow(3, 2 * pairs, rest)?], 3)?,
    };
    y.reshape((n, t, width))
}

pub(super) fn positions(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let t = x.dim(1)?;
    if t > table.dim(0)? {
        bail!("{t} positions, the table has {}", table.dim(0)?)
    }
    x.broadcast_add(&table.narrow(0, 0, t)?)
}

/// The attributes that the computation needs.
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub causal: bool,
    pub scale: Option<f32>,
}

pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    mask: Option<&Tensor>,
    attributes: &Heads,
) -> Result<Tensor> {
    let Heads {
        heads,
        kv_heads,
        causal,
        scale,
    } = *attributes;
    let (n, t, width) = q.dims3()?;
    let size = width / heads;
    let split = |x: &Tensor, count: usize| {
        let size = x.dim(2)? / count;
        x.reshape((n, t, count, size))?
            .transpose(1, 2)?
            .contiguous()
    };
    // Every query head gets a copy of the key head that it shares.
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = split(x, kv_heads)?;
        let (size, group) = (x.dim(3)?, heads / kv_heads);
        x.unsqueeze(2)?
            .broadcast_as((n, kv_heads, group, t, size))?
            .contiguous()?
            .reshape((n, heads, t, size))
    };
    let (q, k, v) = (split(q, heads)?, spread(k)?, spread(v)?);
    let scale = scale.map_or(1.0 / (size as f64).sqrt(), f64::from);
    let scores = (q.matmul(&k.t()?)? * scale)?;

    let seen: Vec<f32> = (0..t * t)
        .map(|i| f32::from(u8::from(!causal || i % t <= i / t)))
        .collect();
    let mut seen = Tensor::from_vec(seen, (1, 1, t, t), q.device())?;
    if let Some(mask) = mask {
        let mask = mask.ne(0i64)?.to_dtype(DType::F32)?.reshape((n, 1, 1, t))?;
        seen = seen.broadcast_mul(&mask.to_device(q.device())?)?;
    }
    let seen = seen.broadcast_as(scores.shape())?.contiguous()?;
    let hidden = scores.affine(0.0, -1e30)?;
    let scores = seen.ne(0f32)?.where_cond(&scores, &hidden)?;
    // The largest score only guards against overflow; it has no gradient of its own.
    let largest = scores.detach().max_keepdim(D::Minus1)?;
    let weights = (scores.broadcast_sub(&largest)?.exp()? * &seen)?;
    let sum = or_one(&weights.sum_keepdim(D::Minus1)?)?;
    let y = weights.broadcast_div(&sum)?.matmul(&v)?;
    let width = heads * y.dim(3)?;
    y.transpose(1, 2)?.contiguous()?.reshape((n, t, width))
}

pub(super) fn masked_mean(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.ne(0i64)?.to_dtype(DType::F32)?;
    let mask = mask.to_device(x.device())?.unsqueeze(2)?;
    let count = or_one(&mask.sum(1)?)?;
    x.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&count)
}
