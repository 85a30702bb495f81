//! Steps become launches: what the CPU's kernel would do, said to a device.

use super::pool::{Pool, bytes};
use crate::cuda::launch::{self, Cache, Heads, Launch, Planes, Region, Rotation, Seen};
use crate::cuda::{Machine, pack};
use crate::kernels::cpu::Kernel;
use crate::kernels::cpu::attention::Attention;
use crate::kernels::cpu::elementwise::{Elementwise, Function};
use crate::kernels::cpu::gather::{Data, Gather};
use crate::kernels::cpu::generic::{Binary, Generic, Part, Unary};
use crate::kernels::cpu::norm::{Norm, Scaling};
use crate::kernels::cpu::window::{Fold, Window};
use crate::plan::rewrite::UNCLAMPED;
use crate::{DType, Result, Weight};

/// Where a step's values are.
pub(super) struct Io<'i> {
    pub inputs: &'i [Region],
    pub out: Region,
    /// As many elements as [`scratch`] asks for.
    pub scratch: Region,
    /// Which of the graph's attentions with a cache this is.
    pub cache: usize,
}

/// Parts that the context of an attention is cut in: side by side where few tokens leave the device idle.
fn parts(tokens: usize, positions: usize) -> usize {
    let most = if tokens > 8 { 2 } else { 16 };
    positions.div_ceil(256).clamp(1, most)
}

/// Elements of scratch.
pub(super) fn scratch(kernel: &Kernel) -> usize {
    let Kernel::Attention(a) = kernel else {
        return 0;
    };
    let positions = a.cache.map_or(a.tokens.len, |c| c.capacity);
    let room = a.tokens.len * a.heads * parts(a.tokens.len, positions) * (a.size + 2);
    let kept = match a.cache {
        Some(_) => 0,
        None => 2 * (a.kv_heads * a.tokens.len * a.size).next_multiple_of(64),
    };
    kept + room
}

/// The launches of a kernel; `None` where a device has none for it.
pub(super) fn launches(
    kernel: &Kernel,
    io: &Io<'_>,
    machine: &mut dyn Machine,
    pool: &mut Pool,
) -> Result<Option<Vec<Launch>>> {
    let (y, x) = (io.out, io.inputs.first().copied().unwrap_or(io.out));
    let one = match kernel {
        Kernel::Window(w) => window(w, io, machine, pool)?,
        Kernel::Elementwise(e) => elementwise(e, io)?,
        Kernel::FastGrnn(k) => {
            // The kernel takes the sigmoids' arguments.
            let logit = |p: f32| (f64::from(p) / (1.0 - f64::from(p))).ln() as f32;
            let constants = [
                pool.floats(machine, &k.gate_bias)?,
                pool.floats(machine, &k.update_bias)?,
                pool.floats(machine, &[logit(k.zeta)])?,
                pool.floats(machine, &[logit(k.nu)])?,
            ];
            launch::fast_grnn(y, [x, io.inputs[1]], constants, (k.batch, k.width))?
        }
        Kernel::Norm(n) => norm(n, io)?,
        Kernel::Gather(g) => match gather(g, io, machine, pool)? {
            Some(launch) => launch,
            None => return Ok(None),
        },
        Kernel::Rotary(r) => {
            let (pairs, cos, sin) = r.angles.tables();
            let positions = cos.len() / pairs.max(1);
            let rotation = Rotation {
                cosines: pool.constant(machine, r.angles.clone(), cos)?,
                sines: pool.constant(machine, r.angles.clone(), sin)?,
                past: pool.past(machine)?,
                positions,
                pairs,
                interleaved: r.interleaved,
            };
            let heads = Heads {
                tokens: r.tokens.len,
                heads: r.heads,
                width: r.width,
            };
            let bytes = r.tokens.len * r.heads * r.width * 4;
            let at =
                |n: usize| launch::rotary(y.from(n * bytes), x.from(n * bytes), &heads, &rotation);
            let all = (0..r.batch).map(at).collect::<Result<Vec<_>, _>>()?;
            return Ok(Some(all));
        }
        Kernel::PositionRows(p) => {
            let (table, rows) = match &p.table {
                Data::Input => (io.inputs[1], io.inputs[1].bytes / (p.width * 4).max(1)),
                data => {
                    let values = table(data, p.width).to_f32().unwrap_or_default();
                    let rows = values.len() / p.width.max(1);
                    (pool.floats(machine, &values)?, rows)
                }
            };
            let past = pool.past(machine)?;
            let bytes = p.tokens.len * p.width * 4;
            let size = (p.tokens.len, p.width);
            let at = |n: usize| {
                launch::positions(
                    y.from(n * bytes),
                    x.from(n * bytes),
                    table,
                    past,
                    size,
                    rows,
                )
            };
            let all = (0..p.batch).map(at).collect::<Result<Vec<_>, _>>()?;
            return Ok(Some(all));
        }
        Kernel::Attention(a) => return attention(a, io, machine, pool),
        Kernel::Generic(g) => return generic(g, io, machine, pool).map(Some),
        _ => return Ok(None),
    };
    Ok(Some(vec![one]))
}

fn window(w: &Window, io: &Io<'_>, machine: &mut dyn Machine, pool: &mut Pool) -> Result<Launch> {
    let planes = Planes {
        planes: w.batch * w.channels,
        input: w.input,
        output: w.output,
        kernel: w.kernel,
        strides: w.strides,
        dilations: w.dilations,
        pads: w.pads,
    };
    let x = io.inputs[0];
    Ok(match &w.fold {
        Fold::Depthwise(weights) => {
            let values = pool.floats(machine, &weights.values)?;
            let bias = match weights.bias.is_empty() {
                true => None,
                false => Some(pool.floats(machine, &weights.bias)?),
            };
            let channels = (w.channels, w.multiplier);
            launch::depthwise(io.out, x, (values, bias), &planes, channels, w.clamp)?
        }
        Fold::Max => launch::max_pool(io.out, x, &planes)?,
        Fold::Average { rows, columns } => {
            let factors = pool.floats(machine, &[rows.as_slice(), columns].concat())?;
            launch::average_pool(io.out, x, factors, &planes)?
        }
    })
}

fn elementwise(kernel: &Elementwise, io: &Io<'_>) -> Result<Launch> {
    let (y, x) = (io.out, io.inputs[0]);
    let function = |f: &Function| match *f {
        Function::Swish(alpha) => launch::Unary::Swish(alpha),
        Function::Gelu => launch::Unary::Gelu,
        Function::GeluTanh => launch::Unary::GeluTanh,
        Function::Sigmoid => launch::Unary::Sigmoid,
        Function::Tanh => launch::Unary::Tanh,
    };
    Ok(match kernel {
        Elementwise::Unary {
            function: f,
            extent,
        } => launch::unary(y, x, function(f), extent.len)?,
        Elementwise::Gated {
            function: f,
            extent,
        } => launch::gated(y, x, io.inputs[1], function(f), extent.len)?,
        Elementwise::Binary {
            function,
            extent,
            clamp,
        } => {
            let n = extent.len;
            launch::binary(
                y,
                [x, io.inputs[1]],
                [n, n],
                None,
                binary(*function),
                n,
                *clamp,
            )?
        }
        Elementwise::Softmax { extent, width } => launch::softmax(y, x, [extent.len, *width, 1])?,
    })
}

fn binary(function: Binary) -> launch::Binary {
    match function {
        Binary::Add => launch::Binary::Add,
        Binary::Sub => launch::Binary::Sub,
        Binary::Mul => launch::Binary::Mul,
        Binary::Div => launch::Binary::Div,
        Binary::PRelu => launch::Binary::PRelu,
    }
}

fn norm(kernel: &Norm, io: &Io<'_>) -> Result<Launch> {
    let (y, x) = (io.out, io.inputs[0]);
    Ok(match *kernel {
        Norm::Rows {
            scaling,
            extent,
            width,
        } => {
            let size = (extent.len, width);
            match scaling {
                Scaling::Rms(epsilon) => launch::rms_norm(y, x, io.inputs[1], size, epsilon)?,
                Scaling::Layer(epsilon) => {
                    let bias = io.inputs.get(2).copied();
                    launch::layer_norm(y, x, io.inputs[1], bias, size, epsilon)?
                }
                Scaling::Length => launch::length_norm(y, x, [extent.len, width, 1])?,
            }
        }
        Norm::Length { outer, axis, inner } => launch::length_norm(y, x, [outer, axis, inner])?,
        Norm::MaskedMean {
            batch,
            tokens,
            width,
        } => launch::masked_mean(y, x, io.inputs[1], [batch, tokens.len, width])?,
    })
}

/// The table of rows of `width` that a model holds.
fn table(data: &Data, width: usize) -> Weight {
    let made = match data {
        Data::Input => Err(String::new()),
        Data::Dense(bytes, dtype) => {
            let rows = bytes.len() / (width * dtype.size()).max(1);
            Weight::dense(vec![rows, width], *dtype, bytes.clone())
        }
        Data::Bitmask(bits, dtype) => {
            let weight = Weight::bitmask(vec![bits.rows, bits.cols], *dtype, bits.clone());
            weight.map(|w| w.decode())
        }
    };
    made.unwrap_or_else(|_| Weight::from_f32(&[0, width], &[]))
}

fn gather(
    g: &Gather,
    io: &Io<'_>,
    machine: &mut dyn Machine,
    pool: &mut Pool,
) -> Result<Option<Launch>> {
    let (Some(&ids), 1) = (io.inputs.last(), g.outer) else {
        return Ok(None);
    };
    let (n, size) = (g.indices.len, (g.axis, g.inner));
    let weight = match &g.data {
        Data::Input => return Ok(Some(launch::embed_f32(io.out, io.inputs[0], ids, n, size)?)),
        data => table(data, g.inner),
    };
    let bf16 = machine.limits().bf16;
    let half = weight.dtype() == DType::F16 || weight.dtype() == DType::BF16 && bf16;
    Ok(Some(if half {
        let packed = pack::rows(&weight)?;
        let values = pool.put(machine, &bytes(&packed.values, u16::to_le_bytes))?;
        launch::embed(&packed.at(values), io.out, ids, n)?
    } else {
        let values = weight.to_f32().unwrap_or_default();
        launch::embed_f32(io.out, pool.floats(machine, &values)?, ids, n, size)?
    }))
}

/// Attention to a cache of f16, or, without one, to keys and values that are laid out in scratch.
fn attention(
    a: &Attention,
    io: &Io<'_>,
    machine: &mut dyn Machine,
    pool: &mut Pool,
) -> Result<Option<Vec<Launch>>> {
    if a.size != a.value_size || !a.size.is_multiple_of(8) || a.size > 256 {
        return Ok(None);
    }
    let (tokens, width) = (a.tokens.len, a.size);
    let heads = Heads {
        tokens,
        heads: a.heads,
        width,
    };
    let mut all = Vec::new();
    if let Some(region) = a.cache {
        let bytes = a.kv_heads * region.capacity * width * 2;
        if pool.caches.len() <= io.cache {
            let pair = [pool.take(machine, bytes)?, pool.take(machine, bytes)?];
            // What is behind a sequence is multiplied by nothing, and so may be no NaN.
            for half in pair {
                machine.write(half, &vec![0; half.bytes])?;
            }
            pool.caches.push(pair);
        }
        let [keys, values] = pool.caches[io.cache];
        let cache = Cache {
            keys,
            values,
            past: pool.past(machine)?,
            kv_heads: a.kv_heads,
            capacity: region.capacity,
            half: true,
        };
        let seen = Seen {
            causal: true,
            mask: None,
            scale: a.scale,
        };
        let parts = parts(tokens, region.capacity);
        all.push(launch::keep(
            &cache,
            io.inputs[1],
            io.inputs[2],
            tokens,
            width,
        )?);
        let (y, q) = (io.out, io.inputs[0]);
        all.extend(launch::attention(
            &cache, y, q, io.scratch, &heads, parts, &seen,
        )?);
        return Ok(Some(all));
    }
    let kept = (a.kv_heads * tokens * width).next_multiple_of(64) * 4;
    let past = pool.put(machine, &[0; 4])?;
    for n in 0..a.batch {
        let cache = Cache {
            keys: io.scratch,
            values: io.scratch.from(kept),
            past,
            kv_heads: a.kv_heads,
            capacity: tokens,
            half: false,
        };
        let mask = io.inputs.get(3).filter(|_| a.masked);
        let seen = Seen {
            causal: a.causal,
            mask: mask.map(|m| m.from(n * tokens * 4)),
            scale: a.scale,
        };
        let at = |i: usize, heads: usize| io.inputs[i].from(n * tokens * heads * width * 4);
        let (k, v) = (at(1, a.kv_heads), at(2, a.kv_heads));
        all.push(launch::keep(&cache, k, v, tokens, width)?);
        let y = io.out.from(n * tokens * a.heads * width * 4);
        let room = io.scratch.from(2 * kept);
        let (q, parts) = (at(0, a.heads), parts(tokens, tokens));
        all.extend(launch::attention(&cache, y, q, room, &heads, parts, &seen)?);
    }
    Ok(Some(all))
}

fn words(numbers: impl IntoIterator<Item = usize>) -> Result<Vec<i32>> {
    let one = |n: usize| {
        i32::try_from(n)
            .map_err(|_| crate::Error::Option(format!("{n} elements on a GPU, at most 2^31 - 1")))
    };
    numbers.into_iter().map(one).collect()
}

fn generic(
    kernel: &Generic,
    io: &Io<'_>,
    machine: &mut dyn Machine,
    pool: &mut Pool,
) -> Result<Vec<Launch>> {
    let (y, x) = (io.out, io.inputs[0]);
    Ok(vec![match kernel {
        Generic::Unary { function, len } => {
            let function = match *function {
                Unary::Clamp(a, b) => launch::Unary::Clamp(a, b),
                Unary::LeakyRelu(a) => launch::Unary::LeakyRelu(a),
                Unary::HardSigmoid(a, b) => launch::Unary::HardSigmoid(a, b),
                Unary::HardSwish => launch::Unary::HardSwish,
                Unary::Erf => launch::Unary::Erf,
                Unary::Affine(a, b) => launch::Unary::Affine(a, b),
            };
            launch::unary(y, x, function, *len)?
        }
        Generic::Binary {
            function,
            shape,
            strides,
            clamp,
        } => {
            let numbers = shape.iter().chain(&strides[0]).chain(&strides[1]);
            let table = pool.table(machine, &words(numbers.copied())?)?;
            // The last element that is read.
            let length = |strides: &[usize]| {
                let steps = shape.iter().zip(strides);
                steps.map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>() + 1
            };
            let lengths = [length(&strides[0]), length(&strides[1])];
            let table = Some((table, shape.len()));
            let count = shape.iter().product();
            launch::binary(
                y,
                [x, io.inputs[1]],
                lengths,
                table,
                binary(*function),
                count,
                *clamp,
            )?
        }
        Generic::ScaleShift {
            batch,
            plane,
            scale,
            shift,
        } => {
            let vectors = [pool.floats(machine, scale)?, pool.floats(machine, shift)?];
            launch::scale_shift(y, x, vectors, [*batch, scale.len(), *plane])?
        }
        Generic::InstanceNorm {
            batch,
            plane,
            scale,
            shift,
            epsilon,
        } => {
            let vectors = [pool.floats(machine, scale)?, pool.floats(machine, shift)?];
            launch::instance_norm(y, x, vectors, [*batch, scale.len(), *plane], *epsilon)?
        }
        Generic::Interpolate {
            planes,
            input,
            rows,
            columns,
        } => {
            let pairs = |taps: &[(usize, usize, f32)]| words(taps.iter().flat_map(|t| [t.0, t.1]));
            let weights: Vec<f32> = rows.iter().chain(columns).map(|t| t.2).collect();
            let tables = [
                pool.table(machine, &pairs(rows)?)?,
                pool.table(machine, &pairs(columns)?)?,
                pool.floats(machine, &weights)?,
            ];
            let output = [rows.len(), columns.len()];
            launch::interpolate(y, x, tables, *planes, *input, output)?
        }
        Generic::Copy { parts } => {
            let some = parts
                .iter()
                .filter(|p| p.tables.iter().all(|t| !t.is_empty()));
            let one = |part| copy(part, io, machine, pool);
            return some.map(one).collect();
        }
        Generic::Mean { kept, reduced } => {
            let axes = kept.iter().chain(reduced).flat_map(|a| [a.0, a.1]);
            let table = pool.table(machine, &words(axes)?)?;
            let product = |axes: &[(usize, usize)]| axes.iter().map(|a| a.0).product::<usize>();
            let sizes = (product(kept), product(reduced));
            launch::mean(y, x, table, [kept.len(), reduced.len()], sizes)?
        }
        Generic::Softmax { outer, axis, inner } => launch::softmax(y, x, [*outer, *axis, *inner])?,
        Generic::MatMul {
            batch,
            m,
            k,
            n,
            strides,
        } => {
            let offsets = words(batch.iter().flat_map(|b| [b.0, b.1]))?;
            let offsets = pool.table(machine, &offsets)?;
            let factors = [x, io.inputs[1], offsets];
            launch::matmul(y, factors, batch.len(), [*m, *k, *n], *strides)?
        }
    }])
}

fn copy(part: &Part, io: &Io<'_>, machine: &mut dyn Machine, pool: &mut Pool) -> Result<Launch> {
    let sizes = part.tables.iter().map(Vec::len);
    let count = sizes.clone().product();
    let mut table = words(sizes.chain(part.strides.iter().copied()))?;
    for axis in &part.tables {
        for place in axis {
            table.push(match place {
                Some(at) => words([*at])?[0],
                None => -1,
            });
        }
    }
    let length = table.len();
    let table = pool.table(machine, &table)?;
    let y = io.out.from(part.offset * 4);
    let x = io.inputs[part.input];
    let rank = part.tables.len();
    Ok(launch::copy(y, x, (table, length), rank, count, part.fill)?)
}

/// Limits that change nothing.
pub(super) fn is_open(limits: (f32, f32)) -> bool {
    limits == UNCLAMPED
}
