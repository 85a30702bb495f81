//! Operators of language models.

use super::axes;
use super::call::Call;
use super::constants;
use super::convert::Converter;
use super::value::Value;
use lacuna::model::{Dim, Op};
use std::f64::consts::TAU;

type Converted = Result<Value, String>;

pub(super) fn convert(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    match call.op {
        "Gather" => gather(c, call),
        "Gelu" => {
            call.at_most(1)?;
            let approximate = match call.attrs.text("approximate")? {
                None | Some("none") => false,
                Some("tanh") => true,
                Some(other) => return Err(format!("approximate `{other}`; supported: none, tanh")),
            };
            c.emit(call, Op::Gelu { approximate }, &[call.input(0)?])
        }
        "Swish" => {
            call.at_most(1)?;
            let alpha = call.attrs.float("alpha")?.unwrap_or(1.0);
            c.emit(call, Op::Swish { alpha }, &[call.input(0)?])
        }
        "LpNormalization" => {
            call.at_most(1)?;
            let axis = call.attrs.int("axis")?.unwrap_or(-1);
            match call.attrs.int("p")? {
                None | Some(2) => c.emit(call, Op::LpNormalization { axis }, &[call.input(0)?]),
                Some(p) => Err(format!("p {p}; supported: 2")),
            }
        }
        "LayerNormalization" | "RMSNormalization" => normalization(c, call),
        "RotaryEmbedding" => rotary(c, call),
        _ => attention(c, call),
    }
}

/// Slices of a run-time value, or of a weight by run-time indices; folded over constants.
fn gather(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(2)?;
    let (data, indices) = (call.input(0)?, call.input(1)?);
    if matches!(data, Value::Ints(_)) || data.is_constant() && indices.is_constant() {
        return constants::fold(c, call);
    }
    let axis = call.attrs.int("axis")?.unwrap_or(0);
    let (data, indices) = (call.input(0)?, call.input(1)?);
    if let Value::Weight(_) = indices {
        return Err("indices that are no integers".into());
    }
    c.emit(call, Op::Gather { axis }, &[data, indices])
}

fn normalization(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    // A run computes in f32 whatever the file says.
    call.attrs.ignore(&["stash_type"]);
    let rms = call.op == "RMSNormalization";
    call.at_most(if rms { 2 } else { 3 })?;
    let epsilon = call.attrs.float("epsilon")?.unwrap_or(1e-5);
    let axis = call.attrs.int("axis")?.unwrap_or(-1);
    let rank = call.input(0)?.shape().len();
    if axes::index(axis, rank)? + 1 != rank {
        return Err(format!(
            "axis {axis} of {rank} axes; supported: over the last axis"
        ));
    }
    let mut inputs = vec![call.input(0)?, call.input(1)?];
    inputs.extend(call.optional(2));
    let op = if rms {
        Op::RMSNormalization { epsilon }
    } else {
        Op::LayerNormalization { epsilon }
    };
    c.emit(call, op, &inputs)
}

/// `[N, heads, T, D]` as `[N, T, heads * D]`; the number of heads.
fn merged(
    c: &mut Converter<'_>,
    call: &Call<'_>,
    step: &str,
    x: &Value,
) -> Result<(Value, usize), String> {
    let shape = x.shape();
    let [_, Dim::Fixed(heads), _, Dim::Fixed(size)] = shape[..] else {
        return Err("heads or sizes that are not known".into());
    };
    let perm = vec![0, 2, 1, 3];
    let turned = c.emit_step(
        call,
        &format!("{step}_turned"),
        Op::Transpose { perm },
        &[x],
    )?;
    let shape = vec![0, 0, (heads * size) as i64];
    let flat = c.emit_step(
        call,
        &format!("{step}_flat"),
        Op::Reshape { shape },
        &[&turned],
    )?;
    Ok((flat, heads))
}

/// The last step of a call whose result has `heads` heads: `[N, T, heads * D]` as `[N, heads, T, D]`.
fn split(c: &mut Converter<'_>, call: &Call<'_>, y: &Value, heads: usize) -> Converted {
    let width = match y.shape()[..] {
        [_, _, Dim::Fixed(width)] => width,
        _ => return Err("a width that is not known".into()),
    };
    let shape = vec![0, 0, heads as i64, (width / heads.max(1)) as i64];
    let parts = c.emit_step(call, "parts", Op::Reshape { shape }, &[y])?;
    let perm = vec![0, 2, 1, 3];
    c.emit(call, Op::Transpose { perm }, &[&parts])
}

/// A number of heads.
fn heads(call: &mut Call<'_>, name: &'static str) -> Result<usize, String> {
    match call.attrs.int(name)? {
        Some(n) if (1..=1 << 20).contains(&n) => Ok(n as usize),
        Some(n) => Err(format!("{name} {n}")),
        None => Err(format!("attribute `{name}` is missing")),
    }
}

fn attention(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    // A run computes in f32; the mode shapes an output that is not read.
    call.attrs
        .ignore(&["softmax_precision", "qk_matmul_output_mode"]);
    for (i, what) in [
        (3, "a mask"),
        (4, "earlier keys"),
        (5, "earlier values"),
        (6, "lengths"),
    ] {
        if call.optional(i).is_some() {
            return Err(format!(
                "{what} (input {i}); supported: queries, keys and values"
            ));
        }
    }
    let causal = call.attrs.flag("is_causal", false)?;
    let scale = call.attrs.float("scale")?;
    if let Some(cap) = call.attrs.float("softcap")?.filter(|&s| s != 0.0) {
        return Err(format!("softcap {cap}; supported: 0"));
    }
    let of_heads = |heads: usize, kv_heads: usize| Op::Attention {
        heads,
        kv_heads,
        causal,
        cache: false,
        scale,
    };
    if call.input(0)?.shape().len() == 3 {
        let (q_heads, kv_heads) = (heads(call, "q_num_heads")?, heads(call, "kv_num_heads")?);
        let inputs = [call.input(0)?, call.input(1)?, call.input(2)?];
        return c.emit(call, of_heads(q_heads, kv_heads), &inputs);
    }
    call.attrs.ignore(&["q_num_heads", "kv_num_heads"]);
    let (q, q_heads) = merged(c, call, "q", call.input(0)?)?;
    let (k, kv_heads) = merged(c, call, "k", call.input(1)?)?;
    let (v, v_heads) = merged(c, call, "v", call.input(2)?)?;
    if kv_heads != v_heads {
        return Err(format!("{kv_heads} heads of keys and {v_heads} of values"));
    }
    let y = c.emit_step(call, "heads", of_heads(q_heads, kv_heads), &[&q, &k, &v])?;
    split(c, call, &y, q_heads)
}

fn rotary(c: &mut Converter<'_>, call: &mut Call<'_>) -> Converted {
    call.at_most(4)?;
    let interleaved = call.attrs.flag("interleaved", false)?;
    let rotated = call.attrs.int("rotary_embedding_dim")?.unwrap_or(0);
    let shape = call.input(0)?.shape();
    let (tokens, in_heads) = match &shape[..] {
        [_, t, _] => (t, false),
        [_, _, t, _] => (t, true),
        other => return Err(format!("an input of {} axes", other.len())),
    };
    let Dim::Fixed(tokens) = *tokens else {
        return Err("a number of tokens that is not known".into());
    };
    let frequencies = frequencies(call, tokens)?;
    if rotated != 0 && rotated != 2 * frequencies.len() as i64 {
        return Err(format!(
            "rotary_embedding_dim {rotated}, the tables have {} columns",
            frequencies.len()
        ));
    }
    let name = c.fresh(&format!("{}_frequencies", call.output));
    let weight = super::fold::from_f32(vec![frequencies.len()], &frequencies)?;
    let frequencies = Value::weight(&name, weight);
    let of_heads = |heads: usize| Op::RotaryEmbedding {
        heads,
        interleaved,
        scale: 1.0,
    };
    if !in_heads {
        let heads = heads(call, "num_heads")?;
        return c.emit(call, of_heads(heads), &[call.input(0)?, &frequencies]);
    }
    call.attrs.ignore(&["num_heads"]);
    let (x, heads) = merged(c, call, "x", call.input(0)?)?;
    let y = c.emit_step(call, "turned", of_heads(heads), &[&x, &frequencies])?;
    split(c, call, &y, heads)
}

/// The frequencies whose angles at positions 0, 1, ... the constant tables hold.
fn frequencies(call: &Call<'_>, tokens: usize) -> Result<Vec<f32>, String> {
    let (cos, sin) = (&call.weight(1)?.weight, &call.weight(2)?.weight);
    let pairs = *cos.shape().last().unwrap_or(&0);
    if cos.shape() != sin.shape() || pairs == 0 {
        return Err("tables of cosines and sines that differ in shape".into());
    }
    let positions: Vec<usize> = match call.optional(3) {
        None => (0..cos.numel() / pairs)
            .map(|row| row % tokens.max(1))
            .collect(),
        Some(Value::Ints(ids)) => {
            let known = ids.known().ok_or("positions that are not known")?;
            let rising = known.iter().enumerate();
            let mut rising = rising.map(|(i, &id)| id == (i % tokens.max(1)) as i64);
            if !rising.all(|fits| fits) {
                return Err("positions other than 0, 1, ...".into());
            }
            (0..cos.numel() / pairs).collect()
        }
        Some(_) => return Err("positions that are given at run time".into()),
    };
    let floats = |w: &lacuna::Weight| w.to_f32().ok_or("a table of integers");
    let (cos, sin) = (floats(cos)?, floats(sin)?);
    let angle = |row: usize, i: usize| {
        let at = row * pairs + i;
        f64::from(sin[at]).atan2(f64::from(cos[at]))
    };
    let mut list = Vec::with_capacity(pairs);
    for i in 0..pairs {
        // The angle of position 1, then of further ones, whose turns the earlier ones count.
        let mut frequency = 0.0;
        for (row, &p) in positions.iter().enumerate() {
            if p.is_power_of_two() {
                let turns = ((p as f64 * frequency - angle(row, i)) / TAU).round();
                frequency = (angle(row, i) + turns * TAU) / p as f64;
            }
        }
        list.push(frequency as f32);
    }
    for (row, &p) in positions.iter().enumerate() {
        for (i, f) in list.iter().enumerate() {
            let (s, c) = (p as f64 * f64::from(*f)).sin_cos();
            let at = row * pairs + i;
            let off = (s - f64::from(sin[at]))
                .abs()
                .max((c - f64::from(cos[at])).abs());
            if off > 1e-5 + 2e-7 * p as f64 {
                return Err(format!(
                    "the cosines and sines are no multiples of frequencies (position {p}, pair {i})"
                ));
            }
        }
    }
    Ok(list)
}
