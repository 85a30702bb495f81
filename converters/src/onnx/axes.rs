//! Operators that move, cut or join axes: over run-time values they become nodes, over constants
//! they are folded.

use super::call::Call;
use super::convert::{Converter, infer};
use super::fold;
use super::ints::{Int, reshape_target};
use super::value::Value;
use lacuna::model::{Dim, Op};

/// Converts one of these operators.
pub(super) fn convert(c: &mut Converter<'_>, call: &mut Call<'_>) -> Result<Value, String> {
    let x = call.input(0)?.clone();
    let op = match call.op {
        "Concat" => return concat(c, call),
        "Slice" => return slice(c, call, &x),
        "Transpose" => return transpose(c, call, &x),
        "Reshape" => {
            call.at_most(2)?;
            let target = call.shape_list(1)?.ok_or("input 1 is missing")?;
            let allow_zero = call.attrs.flag("allowzero", false)?;
            Op::Reshape {
                shape: reshape_target(&x.shape(), &target.items, allow_zero)?,
            }
        }
        "Flatten" => {
            call.at_most(1)?;
            Op::Flatten {
                axis: call.attrs.int("axis")?.unwrap_or(1),
            }
        }
        "Squeeze" => Op::Squeeze {
            axes: call.axes(13)?.unwrap_or_default(),
        },
        _ => Op::Unsqueeze {
            axes: call.axes(13)?.ok_or("the axes are missing")?,
        },
    };
    if x.is_constant() {
        let shape = infer(&op, &[x.shape()])?;
        return fold::reshape(call.output, &x, fixed(&shape)?, &mut c.reader.budget);
    }
    c.emit(call, op, &[&x])
}

fn concat(c: &mut Converter<'_>, call: &mut Call<'_>) -> Result<Value, String> {
    let axis = call
        .attrs
        .int("axis")?
        .ok_or("attribute `axis` is missing")?;
    let values: Vec<Value> = (0..call.inputs.len())
        .map(|i| call.input(i).cloned())
        .collect::<Result<_, _>>()?;
    if values.iter().all(Value::is_constant) {
        let rank = values[0].shape().len();
        let axis = index(axis, rank)?;
        return fold::concat(call.output, &values, axis, &mut c.reader.budget);
    }
    let inputs: Vec<&Value> = values.iter().collect();
    c.emit(call, Op::Concat { axis }, &inputs)
}

fn transpose(c: &mut Converter<'_>, call: &mut Call<'_>, x: &Value) -> Result<Value, String> {
    call.at_most(1)?;
    let rank = x.shape().len();
    let perm: Vec<usize> = match call.attrs.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(perm) => perm
            .iter()
            .map(|&p| usize::try_from(p).map_err(|_| format!("perm {perm:?}")))
            .collect::<Result<_, _>>()?,
    };
    let op = Op::Transpose { perm: perm.clone() };
    if !x.is_constant() {
        return c.emit(call, op, &[x]);
    }
    infer(&op, &[x.shape()])?;
    match x {
        Value::Weight(matrix) if perm == [1, 0] => c.transposed(matrix).map(Value::Weight),
        _ => fold::transpose(call.output, x, &perm, &mut c.reader.budget),
    }
}

/// One axis of a slice.
struct Cut {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
}

fn slice(c: &mut Converter<'_>, call: &mut Call<'_>, x: &Value) -> Result<Value, String> {
    let cuts = cuts(call, x)?;
    if cuts.is_empty() {
        return Ok(x.clone());
    }
    if x.is_constant() {
        let shape = fold::fixed_shape(x)?;
        let mut ranges: Vec<(usize, usize, i64)> = shape.iter().map(|&n| (0, n, 1)).collect();
        for cut in &cuts {
            let (start, count) = range(shape[cut.axis], cut)?;
            ranges[cut.axis] = (start, count, cut.step);
        }
        return fold::slice(call.output, x, &ranges, &mut c.reader.budget);
    }
    let op = Op::Slice {
        axes: cuts.iter().map(|cut| cut.axis as i64).collect(),
        starts: cuts.iter().map(|cut| cut.start).collect(),
        ends: cuts.iter().map(|cut| cut.end).collect(),
        steps: cuts.iter().map(|cut| cut.step).collect(),
    };
    c.emit(call, op, &[x])
}

/// The axis of a `Split` and the sizes of its parts.
pub(super) fn parts(call: &mut Call<'_>, outputs: usize) -> Result<(usize, Vec<usize>), String> {
    let shape = call.input(0)?.shape();
    let axis = index(call.attrs.int("axis")?.unwrap_or(0), shape.len())?;
    let Dim::Fixed(whole) = shape[axis] else {
        return Err(format!("axis {axis} has the size `{}`", shape[axis]));
    };
    let given = if call.opset < 13 {
        call.at_most(1)?;
        call.attrs.ints("split")?.map(<[i64]>::to_vec)
    } else {
        call.at_most(2)?;
        call.ints(1)?
    };
    let count = match call.opset >= 18 {
        true => call.attrs.int("num_outputs")?,
        false => None,
    };
    let sizes: Vec<usize> = match (given, count) {
        (Some(_), Some(_)) => return Err("both sizes and `num_outputs`".into()),
        (Some(sizes), None) => sizes
            .iter()
            .map(|&n| usize::try_from(n).map_err(|_| format!("a part of size {n}")))
            .collect::<Result<_, _>>()?,
        (None, count) => {
            if count.is_some_and(|n| n != outputs as i64) {
                return Err(format!("num_outputs {count:?} for {outputs} outputs"));
            }
            let part = whole.div_ceil(outputs.max(1));
            if count.is_none() && !whole.is_multiple_of(outputs.max(1)) {
                return Err(format!("{whole} elements in {outputs} equal parts"));
            }
            (0..outputs)
                .map(|i| whole.saturating_sub(i * part).min(part))
                .collect()
        }
    };
    let sum = sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if sizes.len() != outputs || sum != Some(whole) {
        return Err(format!(
            "parts of sizes {sizes:?} for {outputs} outputs of {whole} elements"
        ));
    }
    Ok((axis, sizes))
}

/// Indices `start` to `end` of an axis of a call's first input.
pub(super) fn part(
    c: &mut Converter<'_>,
    call: &Call<'_>,
    axis: usize,
    start: usize,
    end: usize,
) -> Result<Value, String> {
    let x = call.input(0)?;
    if x.is_constant() {
        let shape = fold::fixed_shape(x)?;
        let mut ranges: Vec<(usize, usize, i64)> = shape.iter().map(|&n| (0, n, 1)).collect();
        ranges[axis] = (start, end - start, 1);
        return fold::slice(call.output, x, &ranges, &mut c.reader.budget);
    }
    let op = Op::Slice {
        axes: vec![axis as i64],
        starts: vec![start as i64],
        ends: vec![end as i64],
        steps: vec![1],
    };
    c.emit(call, op, &[x])
}

/// The axes that a slice changes. A whole axis, symbolic or not, is left out.
fn cuts(call: &mut Call<'_>, x: &Value) -> Result<Vec<Cut>, String> {
    let shape = x.shape();
    let known = |list: &[i64]| list.iter().map(|&n| Int::Known(n)).collect::<Vec<_>>();
    let (starts, ends, axes, steps) = if call.opset < 10 {
        call.at_most(1)?;
        let starts = call.attrs.ints("starts")?.ok_or("no starts")?;
        let ends = call.attrs.ints("ends")?.ok_or("no ends")?;
        let axes = call.attrs.ints("axes")?.map(<[i64]>::to_vec);
        (known(starts), known(ends), axes, None)
    } else {
        call.at_most(5)?;
        let list = |i| Ok::<_, String>(call.shape_list(i)?.map(|l| l.items.clone()));
        let starts = list(1)?.ok_or("no starts")?;
        let ends = list(2)?.ok_or("no ends")?;
        (starts, ends, call.ints(3)?, call.ints(4)?)
    };
    let count = starts.len();
    let axes = match axes {
        Some(axes) => indices(&axes, shape.len())?,
        None => (0..count).collect(),
    };
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    if [ends.len(), axes.len(), steps.len()] != [count; 3] || count > shape.len() {
        return Err("starts, ends, axes and steps do not fit each other and the input".into());
    }
    let mut cuts = Vec::with_capacity(count);
    for i in 0..count {
        let axis = axes[i];
        let size = Int::from(&shape[axis]);
        let end = match &ends[i] {
            end if *end == size => i64::MAX,
            end => end
                .known()
                .ok_or_else(|| format!("the end of axis {axis} is {end}"))?,
        };
        let start = starts[i]
            .known()
            .ok_or_else(|| format!("the start of axis {axis} is {}", starts[i]))?;
        let to_end = end >= size.known().unwrap_or(i32::MAX.into());
        if start == 0 && steps[i] == 1 && to_end {
            continue;
        }
        if steps[i] == 0 {
            return Err("a step of 0".into());
        }
        cuts.push(Cut {
            axis,
            start,
            end,
            step: steps[i],
        });
    }
    Ok(cuts)
}

/// First index and number of elements of a slice of an axis of `len` elements.
fn range(len: usize, cut: &Cut) -> Result<(usize, usize), String> {
    let len = len as i128;
    let wrap = |i: i64| {
        let i = i128::from(i);
        if i < 0 { i + len } else { i }
    };
    let step = i128::from(cut.step);
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let (start, end) = (
        wrap(cut.start).clamp(low, high),
        wrap(cut.end).clamp(low, high),
    );
    let span = if step > 0 { end - start } else { start - end };
    let count = if span > 0 {
        (span + step.abs() - 1) / step.abs()
    } else {
        0
    };
    let size = |n: i128| usize::try_from(n).map_err(|_| format!("an axis of {len}"));
    Ok((size(start.max(0))?, size(count)?))
}

/// The sizes of a shape without symbols.
pub(super) fn fixed(shape: &[Dim]) -> Result<Vec<usize>, String> {
    shape
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(s) => Err(format!("the size `{s}` of a constant")),
        })
        .collect()
}

/// The axis that `axis` names, counting from the end when negative.
pub(super) fn index(axis: i64, rank: usize) -> Result<usize, String> {
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
pub(super) fn indices(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut list = Vec::new();
    for &axis in axes {
        let axis = index(axis, rank)?;
        if list.contains(&axis) {
            return Err(format!("axis {axis} stands twice"));
        }
        list.push(axis);
    }
    Ok(list)
}
