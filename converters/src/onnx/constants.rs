//! Operators over constants and shapes that leave nothing to compute at run time, and arithmetic,
//! which may.

use super::axes;
use super::call::Call;
use super::convert::Converter;
use super::fold::{self, Arithmetic};
use super::ints::{Int, Ints, product};
use super::proto::data_type;
use super::value::Value;
use crate::strided::numel;
use half::{bf16, f16};
use lacuna::DType;
use lacuna::model::{Op, Weight};

type Folded = Result<Value, String>;

/// Add, Sub, Mul and Div.
pub(super) fn arithmetic(c: &mut Converter<'_>, call: &mut Call<'_>) -> Folded {
    call.at_most(2)?;
    let (kind, op) = match call.op {
        "Add" => (Arithmetic::Add, Op::Add),
        "Sub" => (Arithmetic::Sub, Op::Sub),
        "Mul" => (Arithmetic::Mul, Op::Mul),
        _ => (Arithmetic::Div, Op::Div),
    };
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.is_constant() && b.is_constant() {
        return kind.fold(call.output, a, b, &mut c.reader.budget);
    }
    c.emit(call, op, &[a, b])
}

/// The operators that are folded or refused.
pub(super) fn fold(c: &mut Converter<'_>, call: &mut Call<'_>) -> Folded {
    match call.op {
        "Constant" => constant(c, call),
        "ConstantOfShape" => constant_of_shape(c, call),
        "Shape" => shape(call),
        "Size" => {
            call.at_most(1)?;
            let sizes = call.input(0)?.shape_ints();
            Ok(Value::ints(Ints {
                shape: Vec::new(),
                items: vec![product(sizes.iter())?],
            }))
        }
        "Gather" => {
            call.at_most(2)?;
            let axis = call.attrs.int("axis")?.unwrap_or(0);
            let data = constant_input(call, 0)?;
            let Value::Ints(indices) = constant_input(call, 1)? else {
                return Err("indices that are no integers".into());
            };
            let axis = axes::index(axis, data.shape().len())?;
            fold::gather(call.output, data, indices, axis, &mut c.reader.budget)
        }
        "Floor" => rounded(c, call, f32::floor),
        "Ceil" => rounded(c, call, f32::ceil),
        _ => cast(c, call),
    }
}

fn constant_input<'v>(call: &'v Call<'_>, i: usize) -> Result<&'v Value, String> {
    match call.input(i)? {
        Value::Tensor { name, .. } => Err(format!(
            "input {i}, `{name}`, is computed at run time; {} is supported over constants and \
             shapes only",
            call.op
        )),
        constant => Ok(constant),
    }
}

fn constant(c: &mut Converter<'_>, call: &mut Call<'_>) -> Folded {
    call.at_most(0)?;
    let scalar = |item| {
        Value::ints(Ints {
            shape: Vec::new(),
            items: vec![item],
        })
    };
    if let Some(tensor) = call.attrs.tensor("value")? {
        return c.reader.dense(call.output, tensor);
    }
    if let Some(sparse) = call.attrs.sparse("sparse_value")? {
        return c.reader.sparse(call.output, sparse);
    }
    if let Some(v) = call.attrs.int("value_int")? {
        return Ok(scalar(Int::Known(v)));
    }
    if let Some(list) = call.attrs.ints("value_ints")? {
        let items = list.iter().map(|&v| Int::Known(v)).collect();
        return Ok(Value::ints(Ints::list(items)));
    }
    if let Some(v) = call.attrs.float("value_float")? {
        let weight = fold::from_f32(Vec::new(), &[v])?;
        return Ok(Value::weight(call.output, weight));
    }
    if let Some(list) = call.attrs.floats("value_floats")? {
        let weight = fold::from_f32(vec![list.len()], list)?;
        return Ok(Value::weight(call.output, weight));
    }
    Err(
        "no value; supported: value, sparse_value, value_int, value_ints, value_float, \
         value_floats"
            .into(),
    )
}

fn constant_of_shape(c: &mut Converter<'_>, call: &mut Call<'_>) -> Folded {
    call.at_most(1)?;
    let sizes = call.ints(0)?.ok_or("input 0 is missing")?;
    let shape = super::tensor::sizes(&sizes)?;
    let count = numel(&shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
    let fill = match call.attrs.tensor("value")? {
        Some(tensor) => c.reader.dense(call.output, tensor)?,
        None => Value::weight(call.output, fold::from_f32(vec![1], &[0.0])?),
    };
    match &fill {
        Value::Ints(one) => {
            let [item] = &one.items[..] else {
                return Err("a value of more than one element".into());
            };
            c.reader.budget.spend(count, size_of::<Int>())?;
            Ok(Value::ints(Ints {
                shape,
                items: vec![item.clone(); count],
            }))
        }
        Value::Weight(one) => {
            let dtype = one.weight.dtype();
            let lacuna::model::Encoding::Dense(element) = one.weight.encoding() else {
                return Err("a sparse value".into());
            };
            if element.len() != dtype.size() {
                return Err("a value of more than one element".into());
            }
            c.reader.budget.spend(count, dtype.size())?;
            let data = element.repeat(count);
            let weight = Weight::dense(shape, dtype, data.into())?;
            Ok(Value::weight(call.output, weight))
        }
        Value::Tensor { .. } => Err("a value that is computed".into()),
    }
}

fn shape(call: &mut Call<'_>) -> Folded {
    call.at_most(1)?;
    let sizes = call.input(0)?.shape_ints();
    let rank = sizes.len() as i64;
    let mut bound = |name, default: i64| -> Result<usize, String> {
        let at = call.attrs.int(name)?.unwrap_or(default);
        let at = if at < 0 { at.saturating_add(rank) } else { at };
        Ok(at.clamp(0, rank) as usize)
    };
    let (start, end) = (bound("start", 0)?, bound("end", rank)?);
    let part = sizes.get(start..end).unwrap_or_default();
    Ok(Value::ints(Ints::list(part.to_vec())))
}

/// `round` of every element of a constant; integers stay as they are.
fn rounded(c: &mut Converter<'_>, call: &mut Call<'_>, round: fn(f32) -> f32) -> Folded {
    call.at_most(1)?;
    match constant_input(call, 0)? {
        Value::Weight(x) => {
            c.reader.budget.spend(x.weight.numel(), 4)?;
            let values = x.weight.to_f32().ok_or("a constant of integers")?;
            let values: Vec<f32> = values.into_iter().map(round).collect();
            let weight = fold::from_f32(x.weight.shape().to_vec(), &values)?;
            Ok(Value::weight(call.output, weight))
        }
        other => Ok(other.clone()),
    }
}

fn cast(c: &mut Converter<'_>, call: &mut Call<'_>) -> Folded {
    call.attrs.ignore(&["saturate", "round_mode"]);
    call.at_most(1)?;
    let to = call.attrs.int("to")?.ok_or("attribute `to` is missing")?;
    let to = i32::try_from(to).unwrap_or(0);
    let float = match to {
        data_type::FLOAT | data_type::DOUBLE => Some(DType::F32),
        data_type::FLOAT16 => Some(DType::F16),
        data_type::BFLOAT16 => Some(DType::BF16),
        _ => None,
    };
    let refuse = |what: &str| {
        Err(format!(
            "{what} to {} is not supported",
            data_type::name(to)
        ))
    };
    match (call.input(0)?, float) {
        // A run computes in f32 whatever the file says.
        (x @ Value::Tensor { .. }, Some(_)) => Ok(x.clone()),
        (Value::Tensor { .. }, None) => refuse("a run-time value"),
        (Value::Weight(x), Some(dtype)) if x.weight.dtype() == dtype => {
            Ok(Value::Weight(x.clone()))
        }
        (Value::Weight(x), Some(dtype)) => {
            c.reader.budget.spend(x.weight.numel(), 4)?;
            let values = x.weight.to_f32().ok_or("a constant of integers")?;
            let weight = as_float(x.weight.shape().to_vec(), dtype, &values)?;
            Ok(Value::weight(call.output, weight))
        }
        (Value::Ints(x), Some(dtype)) => {
            c.reader.budget.spend(x.items.len(), 4)?;
            let known = x.known().ok_or("a symbolic size as a number")?;
            let values: Vec<f32> = known.iter().map(|&v| v as f32).collect();
            let weight = as_float(x.shape.clone(), dtype, &values)?;
            Ok(Value::weight(call.output, weight))
        }
        (Value::Weight(x), None) if matches!(to, data_type::INT64 | data_type::INT32) => {
            c.reader.budget.spend(x.weight.numel(), size_of::<Int>())?;
            let values = x.weight.to_f32().ok_or("a constant of integers")?;
            let items = values.iter().map(|&v| Int::Known(v as i64)).collect();
            Ok(Value::ints(Ints {
                shape: x.weight.shape().to_vec(),
                items,
            }))
        }
        (x @ Value::Ints(_), None) if to == data_type::INT64 => Ok(x.clone()),
        (Value::Ints(x), None) if to == data_type::INT32 => {
            let fits = |v: i64| i32::try_from(v).is_ok();
            match x.items.iter().filter_map(Int::known).find(|&v| !fits(v)) {
                Some(v) => refuse(&v.to_string()),
                None => Ok(Value::Ints(x.clone())),
            }
        }
        _ => refuse("a constant"),
    }
}

/// A weight of a floating-point dtype, rounded to it.
fn as_float(shape: Vec<usize>, dtype: DType, values: &[f32]) -> Result<Weight, String> {
    let data: Vec<u8> = match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect(),
        _ => return fold::from_f32(shape, values),
    };
    Weight::dense(shape, dtype, data.into())
}
