//! Shape inference. Symbolic dimensions pass through; arithmetic on them asks for a binding.

use super::{Dim, Graph, Op, Padding, Resized, Symbols, Weights, Window};
use crate::{Error, Result};
use std::collections::HashMap;

/// The shape of every value of a graph, inputs and weights included.
pub type Shapes = HashMap<String, Vec<Dim>>;

/// The most elements that a value may have; larger shapes are refused before anything is allocated.
const MAX_ELEMENTS: usize = 1 << 40;

/// The most axes that a value may have.
const MAX_RANK: usize = 64;

/// Infers the shape of every value. Symbols in `symbols` are replaced; others stay symbolic.
pub fn infer_shapes(graph: &Graph, weights: &Weights, symbols: &Symbols) -> Result<Shapes> {
    let mut shapes = Shapes::new();
    for (name, weight) in weights {
        let shape = fixed(weight.shape());
        check_size(&shape).map_err(|what| Error::Weight {
            weight: name.clone(),
            what,
        })?;
        shapes.insert(name.clone(), shape);
    }
    for input in &graph.inputs {
        let shape: Vec<Dim> = input
            .shape
            .iter()
            .map(|d| match d {
                Dim::Symbol(s) => symbols.get(s).map_or(d.clone(), |&n| Dim::Fixed(n)),
                fixed => fixed.clone(),
            })
            .collect();
        check_size(&shape).map_err(|what| Error::Graph {
            graph: graph.name.clone(),
            what: format!("input `{}`: {what}", input.name),
        })?;
        shapes.insert(input.name.clone(), shape);
    }
    for node in &graph.nodes {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for name in &node.inputs {
            inputs.push(match shapes.get(name) {
                Some(shape) => Some(shape.as_slice()),
                None if name.is_empty() => None,
                None => return Err(Error::node(node, format!("`{name}` has no shape"))),
            });
        }
        let shape = node_shape(&node.op, &inputs)
            .and_then(|shape| check_size(&shape).map(|()| shape))
            .map_err(|what| Error::node(node, what))?;
        shapes.insert(node.output.clone(), shape);
    }
    for input in &graph.inputs {
        let Some(output) = &input.carried else {
            continue;
        };
        if shapes.get(output) != shapes.get(&input.name) {
            let shape = |name| shapes.get(name).map_or_else(String::new, |s| show(s));
            return Err(Error::Graph {
                graph: graph.name.clone(),
                what: format!(
                    "input `{}` of shape {} is carried from `{output}` of shape {}",
                    input.name,
                    shape(&input.name),
                    shape(output)
                ),
            });
        }
    }
    Ok(shapes)
}

/// The explicit padding `[top, left, bottom, right]` of a window on an input of height and width
/// `input`.
pub fn padding_for(
    padding: Padding,
    input: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
) -> [usize; 4] {
    let same = |upper: bool| {
        let mut pads = [0; 4];
        for i in 0..2 {
            let extent = (kernel[i].max(1) - 1) * dilations[i] + 1;
            let out = input[i].div_ceil(strides[i].max(1));
            let total = (out.max(1) - 1) * strides[i] + extent;
            let total = total.saturating_sub(input[i]);
            let (small, large) = (total / 2, total - total / 2);
            (pads[i], pads[i + 2]) = if upper {
                (small, large)
            } else {
                (large, small)
            };
        }
        pads
    };
    match padding {
        Padding::Explicit(pads) => pads,
        Padding::SameUpper => same(true),
        Padding::SameLower => same(false),
    }
}

type Shape = Vec<Dim>;
type Inferred = Result<Shape, String>;

fn node_shape(op: &Op, inputs: &[Option<&[Dim]>]) -> Inferred {
    let need = |i: usize| -> Result<&[Dim], String> {
        inputs
            .get(i)
            .copied()
            .flatten()
            .ok_or_else(|| format!("input {i} is missing"))
    };
    let x = need(0)?;
    match op {
        Op::Relu
        | Op::LeakyRelu { .. }
        | Op::Clip { .. }
        | Op::HardSigmoid { .. }
        | Op::HardSwish
        | Op::Sigmoid
        | Op::Tanh
        | Op::Erf
        | Op::Swish { .. }
        | Op::Gelu { .. }
        | Op::Identity => Ok(x.to_vec()),
        Op::Softmax { axis } | Op::LpNormalization { axis } => {
            axis_index(*axis, x.len()).map(|_| x.to_vec())
        }
        Op::Conv {
            strides,
            padding,
            dilations,
            groups,
        } => conv(
            x,
            need(1)?,
            inputs.get(2).copied().flatten(),
            *strides,
            *padding,
            *dilations,
            *groups,
        ),
        Op::ConvTranspose {
            strides,
            pads,
            output_padding,
            dilations,
            groups,
        } => {
            let [n, c, h, w] = four(x)?;
            let [ci, o, kh, kw] = four(need(1)?).map_err(|e| format!("weight: {e}"))?;
            let (c, ci, o) = (size(&c)?, size(&ci)?, size(&o)?);
            if *groups == 0 || ci != c || !c.is_multiple_of(*groups) {
                return Err(format!(
                    "{c} channels and weight {} do not fit {groups} groups",
                    show(need(1)?)
                ));
            }
            let outputs = o.checked_mul(*groups).ok_or("the shape overflows")?;
            if let Some(bias) = inputs.get(2).copied().flatten()
                && bias != [Dim::Fixed(outputs)]
            {
                return Err(format!("bias has shape {}, not [{outputs}]", show(bias)));
            }
            let (input, kernel) = ([size(&h)?, size(&w)?], [size(&kh)?, size(&kw)?]);
            limited(&[input, kernel, *strides, *dilations], pads)?;
            limited(&[*output_padding], &[])?;
            let along = |i: usize| {
                if input[i] == 0 {
                    return Err("an input without elements".to_owned());
                }
                let whole = (input[i] - 1) * strides[i]
                    + (kernel[i] - 1) * dilations[i]
                    + 1
                    + output_padding[i];
                match whole.checked_sub(pads[i] + pads[i + 2]) {
                    Some(n) if n > 0 => Ok(Dim::Fixed(n)),
                    _ => Err(format!("padding {pads:?} leaves nothing of {whole}")),
                }
            };
            Ok(vec![n, Dim::Fixed(outputs), along(0)?, along(1)?])
        }
        Op::BatchNormalization { .. } | Op::InstanceNormalization { .. } => {
            let channels = x.get(1).ok_or("the input has fewer than two axes")?;
            for i in 1..inputs.len() {
                if need(i)? != std::slice::from_ref(channels) {
                    return Err(format!(
                        "input {i} has shape {}, not [{channels}]",
                        show(need(i)?)
                    ));
                }
            }
            Ok(x.to_vec())
        }
        Op::MaxPool(window) | Op::AveragePool { window, .. } => pool(x, window),
        Op::Resize { resized, .. } => {
            let [n, c, h, w] = four(x)?;
            if let Resized::Scales(scales) = resized
                && !scales.iter().all(|s| s.is_finite() && *s > 0.0 && *s < 1e6)
            {
                return Err(format!("scales {scales:?}"));
            }
            let grown = |i: usize, d: &Dim| -> Result<Dim, String> {
                let input = size(d)?;
                let (output, _) = resized.of(i, input);
                match (input, output) {
                    (0, 1..) => Err(format!("{output} elements out of none")),
                    _ => to_dim(output as i128).ok_or(format!("a size of {output}")),
                }
            };
            Ok(vec![n, c, grown(0, &h)?, grown(1, &w)?])
        }
        Op::GlobalAveragePool => {
            let [n, c, _, _] = four(x)?;
            Ok(vec![n, c, Dim::Fixed(1), Dim::Fixed(1)])
        }
        Op::Gemm {
            trans_a, trans_b, ..
        } => gemm(
            x,
            need(1)?,
            inputs.get(2).copied().flatten(),
            *trans_a,
            *trans_b,
        ),
        Op::MatMul { trans_b } => matmul(x, need(1)?, *trans_b),
        Op::Add | Op::Sub | Op::Mul | Op::Div => broadcast(x, need(1)?),
        Op::PRelu => match broadcast(x, need(1)?) {
            Ok(shape) if shape == x => Ok(shape),
            _ => Err(format!(
                "slopes of shape {} do not broadcast to {}",
                show(need(1)?),
                show(x)
            )),
        },
        Op::Concat { axis } => {
            let axis = axis_index(*axis, x.len())?;
            let mut out = x.to_vec();
            let mut total = 0usize;
            for i in 0..inputs.len() {
                let part = need(i)?;
                let fits = part.len() == x.len()
                    && part
                        .iter()
                        .zip(x)
                        .enumerate()
                        .all(|(d, (a, b))| d == axis || a == b);
                if !fits {
                    return Err(format!(
                        "cannot join {} to {} along axis {axis}",
                        show(part),
                        show(x)
                    ));
                }
                total = total.saturating_add(size(&part[axis])?);
            }
            out[axis] = Dim::Fixed(total);
            Ok(out)
        }
        Op::Pad { pads, .. } => {
            if pads.len() != 2 * x.len() {
                return Err(format!("{} pads for {} axes", pads.len(), x.len()));
            }
            x.iter()
                .enumerate()
                .map(|(i, d)| match (pads[i], pads[i + x.len()]) {
                    (0, 0) => Ok(d.clone()),
                    (before, after) => {
                        let n = size(d)? as i128 + i128::from(before) + i128::from(after);
                        to_dim(n).ok_or(format!("axis {i} would have size {n}"))
                    }
                })
                .collect()
        }
        Op::Slice {
            axes,
            starts,
            ends,
            steps,
        } => {
            if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
                return Err("axes, starts, ends and steps differ in length".into());
            }
            let mut out = x.to_vec();
            for i in 0..axes.len() {
                let axis = axis_index(axes[i], x.len())?;
                let range = slice_range(size(&x[axis])?, starts[i], ends[i], steps[i])
                    .ok_or("a step of 0")?;
                out[axis] = Dim::Fixed(range.1);
            }
            Ok(out)
        }
        Op::Reshape { shape } => reshape(x, shape),
        Op::Flatten { axis } => {
            let axis = if *axis == x.len() as i64 {
                x.len()
            } else {
                axis_index(*axis, x.len())?
            };
            Ok(vec![product(&x[..axis])?, product(&x[axis..])?])
        }
        Op::Transpose { perm } => {
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..x.len()) {
                return Err(format!("perm {perm:?} is no order of {} axes", x.len()));
            }
            Ok(perm.iter().map(|&i| x[i].clone()).collect())
        }
        Op::Squeeze { axes } => {
            let axes = axis_set(axes, x.len())?;
            if let Some(&bad) = axes.iter().find(|&&a| x[a] != Dim::Fixed(1)) {
                return Err(format!("axis {bad} of {} is not 1", show(x)));
            }
            let keep = |i: &usize| {
                if axes.is_empty() {
                    x[*i] != Dim::Fixed(1)
                } else {
                    !axes.contains(i)
                }
            };
            Ok((0..x.len()).filter(keep).map(|i| x[i].clone()).collect())
        }
        Op::Unsqueeze { axes } => {
            let rank = x.len() + axes.len();
            if rank > MAX_RANK {
                return Err(format!("{rank} axes, the limit is {MAX_RANK}"));
            }
            let axes = axis_set(axes, rank)?;
            let mut rest = x.iter();
            Ok((0..rank)
                .map_while(|i| {
                    if axes.contains(&i) {
                        Some(Dim::Fixed(1))
                    } else {
                        rest.next().cloned()
                    }
                })
                .collect())
        }
        Op::ReduceMean { axes, keepdims } => {
            let axes = axis_set(axes, x.len())?;
            let reduced = |i: usize| axes.is_empty() || axes.contains(&i);
            Ok(x.iter()
                .enumerate()
                .filter(|(i, _)| *keepdims || !reduced(*i))
                .map(|(i, d)| if reduced(i) { Dim::Fixed(1) } else { d.clone() })
                .collect())
        }
        Op::Gather { axis } => {
            let axis = axis_index(*axis, x.len())?;
            let mut out = x[..axis].to_vec();
            out.extend_from_slice(need(1)?);
            out.extend_from_slice(&x[axis + 1..]);
            Ok(out)
        }
        Op::RMSNormalization { .. } | Op::LayerNormalization { .. } => {
            let last = x.last().ok_or("a scalar has no last axis")?;
            for (i, part) in inputs.iter().enumerate().skip(1) {
                if let Some(part) = part
                    && *part != std::slice::from_ref(last)
                {
                    return Err(format!("input {i} has shape {}, not [{last}]", show(part)));
                }
            }
            Ok(x.to_vec())
        }
        Op::RotaryEmbedding { heads, .. } => {
            let [_, _, width] = three(x)?;
            let head = split_heads(&width, *heads)?;
            match need(1)? {
                [Dim::Fixed(pairs)] if *pairs > 0 && *pairs <= head / 2 => Ok(x.to_vec()),
                other => Err(format!(
                    "frequencies of shape {} do not fit heads of {head} elements",
                    show(other)
                )),
            }
        }
        Op::PositionEmbedding => {
            let [_, _, width] = three(x)?;
            match need(1)? {
                [Dim::Fixed(_), w] if *w == width => Ok(x.to_vec()),
                other => Err(format!("a table of shape {} for {}", show(other), show(x))),
            }
        }
        Op::Attention {
            heads, kv_heads, ..
        } => attention(
            x,
            need(1)?,
            need(2)?,
            inputs.get(3).copied().flatten(),
            *heads,
            *kv_heads,
        ),
        Op::MaskedMean => {
            let [n, t, width] = three(x)?;
            if need(1)? != [n.clone(), t.clone()] {
                return Err(format!(
                    "a mask of shape {} for {}",
                    show(need(1)?),
                    show(x)
                ));
            }
            Ok(vec![n, width])
        }
        Op::FastGRNN => {
            let [_, width] = x else {
                return Err(format!("products of shape {}, not [N,H]", show(x)));
            };
            let one = [Dim::Fixed(1)];
            let width = std::slice::from_ref(width);
            for (i, want) in [x, width, width, &one, &one].into_iter().enumerate() {
                let have = need(i + 1)?;
                if have != want {
                    return Err(format!(
                        "input {} has shape {}, not {}",
                        i + 1,
                        show(have),
                        show(want)
                    ));
                }
            }
            Ok(x.to_vec())
        }
    }
}

/// The size of one of `heads` heads of an axis.
fn split_heads(width: &Dim, heads: usize) -> Result<usize, String> {
    let width = size(width)?;
    if heads == 0 || !width.is_multiple_of(heads) || width == 0 {
        return Err(format!("{width} elements do not split into {heads} heads"));
    }
    Ok(width / heads)
}

fn attention(
    q: &[Dim],
    k: &[Dim],
    v: &[Dim],
    mask: Option<&[Dim]>,
    heads: usize,
    kv_heads: usize,
) -> Inferred {
    let ([n, t, qw], [kn, kt, kw], [vn, vt, vw]) = (three(q)?, three(k)?, three(v)?);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads do not share {kv_heads} key heads"));
    }
    let key = split_heads(&kw, kv_heads).map_err(|e| format!("keys: {e}"))?;
    let value = split_heads(&vw, kv_heads).map_err(|e| format!("values: {e}"))?;
    if split_heads(&qw, heads)? != key {
        return Err(format!(
            "queries {} and keys {} differ in head size",
            show(q),
            show(k)
        ));
    }
    if n != kn || n != vn || t != kt || t != vt {
        return Err(format!("{}, {} and {} differ", show(q), show(k), show(v)));
    }
    if let Some(mask) = mask
        && mask != [n.clone(), t.clone()]
    {
        return Err(format!("a mask of shape {} for {}", show(mask), show(k)));
    }
    let width = heads.checked_mul(value).ok_or("the shape overflows")?;
    Ok(vec![n, t, Dim::Fixed(width)])
}

fn conv(
    x: &[Dim],
    weight: &[Dim],
    bias: Option<&[Dim]>,
    strides: [usize; 2],
    padding: Padding,
    dilations: [usize; 2],
    groups: usize,
) -> Inferred {
    let [n, c, h, w] = four(x)?;
    let [o, ci, kh, kw] = four(weight).map_err(|e| format!("weight: {e}"))?;
    let (c, o_size, ci) = (size(&c)?, size(&o)?, size(&ci)?);
    if groups == 0 || ci.checked_mul(groups) != Some(c) || o_size % groups != 0 {
        return Err(format!(
            "{c} channels and weight {} do not fit {groups} groups",
            show(weight)
        ));
    }
    if let Some(bias) = bias
        && bias != [o.clone()]
    {
        return Err(format!("bias has shape {}, not [{o}]", show(bias)));
    }
    let kernel = [size(&kh)?, size(&kw)?];
    let window = Window {
        kernel,
        strides,
        padding,
        dilations,
        ceil_mode: false,
    };
    let [h, w] = windows(&window, &h, &w)?;
    Ok(vec![n, o, h, w])
}

fn pool(x: &[Dim], window: &Window) -> Inferred {
    let [n, c, h, w] = four(x)?;
    let [h, w] = windows(window, &h, &w)?;
    Ok(vec![n, c, h, w])
}

/// The number of window positions along both spatial axes.
fn windows(window: &Window, h: &Dim, w: &Dim) -> Result<[Dim; 2], String> {
    let input = [size(h)?, size(w)?];
    let Window {
        kernel,
        strides,
        padding,
        dilations,
        ceil_mode,
    } = *window;
    let explicit = if let Padding::Explicit(p) = padding {
        p
    } else {
        [0; 4]
    };
    limited(&[input, kernel, strides, dilations], &explicit)?;
    let pads = padding_for(padding, input, kernel, strides, dilations);
    let mut out = [Dim::Fixed(0), Dim::Fixed(0)];
    for i in 0..2 {
        let extent = (kernel[i] - 1) * dilations[i] + 1;
        let padded = input[i] + pads[i] + pads[i + 2];
        if padded < extent {
            return Err(format!(
                "a window of {extent} does not fit an input of {padded} (padding included)"
            ));
        }
        let span = padded - extent;
        let mut count = span / strides[i] + 1;
        // The last window of `ceil_mode` must start inside the input or its leading padding.
        if ceil_mode && !span.is_multiple_of(strides[i]) && count * strides[i] < input[i] + pads[i]
        {
            count += 1;
        }
        out[i] = Dim::Fixed(count);
    }
    Ok(out)
}

/// Bounds the sizes of a window; all but the first, the input, are positive where there are four.
fn limited(sizes: &[[usize; 2]], pads: &[usize]) -> Result<(), String> {
    if let [_, kernel, strides, dilations] = sizes
        && [kernel, strides, dilations].iter().any(|v| v.contains(&0))
    {
        return Err(format!(
            "kernel {kernel:?}, strides {strides:?} and dilations {dilations:?} must be positive"
        ));
    }
    const LIMIT: usize = 1 << 24;
    let mut all = sizes.as_flattened().iter().chain(pads);
    match all.find(|&&v| v > LIMIT) {
        Some(v) => Err(format!("the value {v} is beyond the limit of {LIMIT}")),
        None => Ok(()),
    }
}

fn gemm(a: &[Dim], b: &[Dim], c: Option<&[Dim]>, trans_a: bool, trans_b: bool) -> Inferred {
    let two = |s: &[Dim], t: bool| match s {
        [r, c] if t => Ok([c.clone(), r.clone()]),
        [r, c] => Ok([r.clone(), c.clone()]),
        _ => Err(format!("{} is not a matrix", show(s))),
    };
    let ([m, k], [k2, n]) = (two(a, trans_a)?, two(b, trans_b)?);
    if k != k2 {
        return Err(format!("inner sizes {k} and {k2} differ"));
    }
    let out = vec![m, n];
    if let Some(c) = c {
        match broadcast(&out, c) {
            Ok(s) if s == out => {}
            _ => {
                return Err(format!(
                    "c of shape {} does not broadcast to {}",
                    show(c),
                    show(&out)
                ));
            }
        }
    }
    Ok(out)
}

fn matmul(a: &[Dim], b: &[Dim], trans_b: bool) -> Inferred {
    let (Some((k, a_rest)), true) = (a.split_last(), !b.is_empty()) else {
        return Err("a scalar operand".into());
    };
    let mut b = b.to_vec();
    if b.len() == 1 {
        return if &b[0] == k {
            Ok(a_rest.to_vec())
        } else {
            Err(format!("inner sizes {k} and {} differ", b[0]))
        };
    }
    let rank = b.len();
    if trans_b {
        b.swap(rank - 1, rank - 2);
    }
    if &b[rank - 2] != k {
        return Err(format!("inner sizes {k} and {} differ", b[rank - 2]));
    }
    let (a_batch, m) = match a_rest.split_last() {
        Some((m, batch)) => (batch, Some(m.clone())),
        None => (&[][..], None),
    };
    let mut out = broadcast(a_batch, &b[..rank - 2])?;
    out.extend(m);
    out.push(b[rank - 1].clone());
    Ok(out)
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Inferred {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| match (i + s.len()).checked_sub(rank) {
        Some(j) => s[j].clone(),
        None => Dim::Fixed(1),
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            _ => Err(format!(
                "shapes {} and {} do not broadcast",
                show(a),
                show(b)
            )),
        })
        .collect()
}

fn reshape(x: &[Dim], target: &[i64]) -> Inferred {
    let mut out: Vec<Option<Dim>> = Vec::new();
    for (i, &t) in target.iter().enumerate() {
        out.push(match t {
            -1 => None,
            0 => Some(
                x.get(i)
                    .cloned()
                    .ok_or(format!("a 0 at {i} behind the input's axes"))?,
            ),
            n if n > 0 => Some(Dim::Fixed(n as usize)),
            n => return Err(format!("a size of {n}")),
        });
    }
    let known: Vec<Dim> = out.iter().flatten().cloned().collect();
    let misfit = || format!("{} does not reshape to {target:?}", show(x));
    let (have, have_symbols) = monomial(x)?;
    let (need, need_symbols) = monomial(&known)?;
    let mut left = have_symbols;
    for s in need_symbols {
        let at = left.iter().position(|l| *l == s).ok_or_else(misfit)?;
        left.swap_remove(at);
    }
    match out.iter().filter(|d| d.is_none()).count() {
        0 if have == need && left.is_empty() => {}
        1 if need != 0 && have % need == 0 => {
            let inferred = match (have / need, left.as_slice()) {
                (n, []) => Dim::Fixed(n),
                (1, [s]) => Dim::Symbol(s.clone()),
                _ => return Err(format!("{}; bind the symbols", misfit())),
            };
            for d in &mut out {
                d.get_or_insert_with(|| inferred.clone());
            }
        }
        _ => return Err(misfit()),
    }
    Ok(out.into_iter().flatten().collect())
}

/// A product of dimensions as a number and symbols.
fn monomial(dims: &[Dim]) -> Result<(usize, Vec<String>), String> {
    let mut number = 1usize;
    let mut symbols = Vec::new();
    for d in dims {
        match d {
            Dim::Fixed(n) => number = number.checked_mul(*n).ok_or("the shape overflows")?,
            Dim::Symbol(s) => symbols.push(s.clone()),
        }
    }
    Ok((number, symbols))
}

fn product(dims: &[Dim]) -> Result<Dim, String> {
    match monomial(dims)? {
        (n, symbols) if symbols.is_empty() => Ok(Dim::Fixed(n)),
        (1, symbols) if symbols.len() == 1 => Ok(Dim::Symbol(symbols[0].clone())),
        _ => Err(format!(
            "the product of {} needs its symbols bound",
            show(dims)
        )),
    }
}

/// First index and number of elements of an ONNX slice of an axis; `None` for a step of 0.
pub(crate) fn slice_range(len: usize, start: i64, end: i64, step: i64) -> Option<(usize, usize)> {
    let len = len as i128;
    let (start, end, step) = (i128::from(start), i128::from(end), i128::from(step));
    let wrap = |i: i128| if i < 0 { i + len } else { i };
    Some(match step {
        0 => return None,
        s if s > 0 => {
            let (a, b) = (wrap(start).clamp(0, len), wrap(end).clamp(0, len));
            (
                a as usize,
                if b > a {
                    ((b - a + s - 1) / s) as usize
                } else {
                    0
                },
            )
        }
        s => {
            let (a, b) = (wrap(start).clamp(-1, len - 1), wrap(end).clamp(-1, len - 1));
            (
                a.max(0) as usize,
                if a > b {
                    ((a - b - s - 1) / -s) as usize
                } else {
                    0
                },
            )
        }
    })
}

/// The axis that `axis` names, counting from the end when negative.
pub(crate) fn axis_index(axis: i64, rank: usize) -> Result<usize, String> {
    let wrapped = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(wrapped) {
        Ok(a) if a < rank => Ok(a),
        _ => Err(format!("axis {axis} of {rank} axes")),
    }
}

/// Distinct axes, in the order given.
pub(crate) fn axis_set(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut set = Vec::with_capacity(axes.len());
    for &a in axes {
        let a = axis_index(a, rank)?;
        if set.contains(&a) {
            return Err(format!("axis {a} stands twice"));
        }
        set.push(a);
    }
    Ok(set)
}

fn size(d: &Dim) -> Result<usize, String> {
    match d {
        Dim::Fixed(n) => Ok(*n),
        Dim::Symbol(s) => Err(format!("the size of `{s}` must be bound")),
    }
}

fn to_dim(n: i128) -> Option<Dim> {
    usize::try_from(n)
        .ok()
        .filter(|&n| n <= MAX_ELEMENTS)
        .map(Dim::Fixed)
}

fn four(x: &[Dim]) -> Result<[Dim; 4], String> {
    <[Dim; 4]>::try_from(x.to_vec()).map_err(|_| format!("{} has not four axes", show(x)))
}

fn three(x: &[Dim]) -> Result<[Dim; 3], String> {
    <[Dim; 3]>::try_from(x.to_vec()).map_err(|_| format!("{} has not three axes", show(x)))
}

fn fixed(shape: &[usize]) -> Shape {
    shape.iter().map(|&n| Dim::Fixed(n)).collect()
}

fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// Bounds axes, sizes and elements, so that later arithmetic on them cannot overflow.
fn check_size(shape: &[Dim]) -> Result<(), String> {
    if shape.len() > MAX_RANK {
        return Err(format!("{} axes, the limit is {MAX_RANK}", shape.len()));
    }
    let oversized = |d: &Dim| matches!(d, Dim::Fixed(n) if *n > MAX_ELEMENTS);
    let elements = monomial(shape).map_or(usize::MAX, |(n, _)| n);
    if elements > MAX_ELEMENTS || shape.iter().any(oversized) {
        return Err(format!(
            "shape {} is beyond {MAX_ELEMENTS} elements",
            show(shape)
        ));
    }
    Ok(())
}
