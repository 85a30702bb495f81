//! Folding: operators over constants and shapes, carried out while the graph is converted.

use super::ints::{Int, Ints};
use super::tensor::Budget;
use super::value::Value;
use crate::strided::{Walk, numel, pick, row_major};
use lacuna::DType;
use lacuna::model::{Encoding, Weight};

/// A constant array whose elements can be moved: integers, or the bytes of a weight.
enum Array<'a> {
    Ints(&'a [Int]),
    Bytes(DType, &'a [u8]),
}

impl<'a> Array<'a> {
    fn of(value: &'a Value) -> Result<Array<'a>, String> {
        match value {
            Value::Ints(i) => Ok(Array::Ints(&i.items)),
            Value::Weight(c) => match c.weight.encoding() {
                Encoding::Dense(bytes) => Ok(Array::Bytes(c.weight.dtype(), bytes)),
                Encoding::Bitmask(_) => Err("a sparse constant".into()),
            },
            Value::Tensor { .. } => Err("computed at run time".into()),
        }
    }

    fn size(&self) -> usize {
        match self {
            Array::Ints(_) => size_of::<Int>(),
            Array::Bytes(dtype, _) => dtype.size(),
        }
    }

    /// The elements at `indices`, in the shape `shape`.
    fn pick(
        &self,
        name: &str,
        shape: Vec<usize>,
        indices: impl Iterator<Item = usize>,
    ) -> Result<Value, String> {
        match self {
            Array::Ints(items) => {
                let items = indices.map(|i| items[i].clone()).collect();
                Ok(Value::ints(Ints { shape, items }))
            }
            Array::Bytes(dtype, bytes) => {
                let data = pick(bytes, dtype.size(), indices);
                let weight = Weight::dense(shape, *dtype, data.into())?;
                Ok(Value::weight(name, weight))
            }
        }
    }
}

/// The shape of a constant.
pub(super) fn fixed_shape(value: &Value) -> Result<Vec<usize>, String> {
    match value {
        Value::Ints(i) => Ok(i.shape.clone()),
        Value::Weight(c) => Ok(c.weight.shape().to_vec()),
        Value::Tensor { name, .. } => Err(format!("`{name}` is computed at run time")),
    }
}

/// The same elements under another shape.
pub(super) fn reshape(
    name: &str,
    value: &Value,
    shape: Vec<usize>,
    budget: &mut Budget,
) -> Result<Value, String> {
    let old = fixed_shape(value)?;
    if numel(&old) != numel(&shape) {
        return Err(format!("a constant of shape {old:?} as {shape:?}"));
    }
    match value {
        Value::Ints(i) => {
            budget.spend(i.items.len(), size_of::<Int>())?;
            Ok(Value::ints(Ints {
                shape,
                items: i.items.clone(),
            }))
        }
        Value::Weight(c) => {
            let weight = c.weight.reshape(shape).ok_or("a sparse constant")?;
            Ok(Value::weight(name, weight))
        }
        Value::Tensor { .. } => Err("computed at run time".into()),
    }
}

/// Axes in another order; `perm` holds each axis once.
pub(super) fn transpose(
    name: &str,
    value: &Value,
    perm: &[usize],
    budget: &mut Budget,
) -> Result<Value, String> {
    let old = fixed_shape(value)?;
    let strides = row_major(&old);
    let shape: Vec<usize> = perm.iter().map(|&p| old[p]).collect();
    let steps: Vec<isize> = perm.iter().map(|&p| strides[p]).collect();
    let array = Array::of(value)?;
    budget.spend(old.iter().product(), array.size())?;
    array.pick(name, shape.clone(), Walk::new(0, &shape, &steps))
}

/// `count` elements of each axis from `start` in steps of `step`; the caller keeps them inside.
pub(super) fn slice(
    name: &str,
    value: &Value,
    ranges: &[(usize, usize, i64)],
    budget: &mut Budget,
) -> Result<Value, String> {
    let old = fixed_shape(value)?;
    let strides = row_major(&old);
    let shape: Vec<usize> = ranges.iter().map(|r| r.1).collect();
    let mut offset = 0usize;
    let mut steps = Vec::with_capacity(shape.len());
    for (&(start, count, step), &stride) in ranges.iter().zip(&strides) {
        if count > 0 {
            offset += start * stride as usize;
        }
        steps.push(stride.saturating_mul(step as isize));
    }
    let array = Array::of(value)?;
    budget.spend(numel(&shape).unwrap_or(usize::MAX), array.size())?;
    array.pick(name, shape.clone(), Walk::new(offset, &shape, &steps))
}

/// Constants joined along `axis`.
pub(super) fn concat(
    name: &str,
    values: &[Value],
    axis: usize,
    budget: &mut Budget,
) -> Result<Value, String> {
    let first = fixed_shape(&values[0])?;
    let mut shape = first.clone();
    shape[axis] = 0;
    let mut blocks = Vec::with_capacity(values.len());
    for value in values {
        let part = fixed_shape(value)?;
        let fits =
            part.len() == first.len() && (0..part.len()).all(|i| i == axis || part[i] == first[i]);
        if !fits {
            return Err(format!(
                "cannot join {part:?} to {first:?} along axis {axis}"
            ));
        }
        let total = shape[axis].checked_add(part[axis]);
        shape[axis] = total.ok_or("the joined shape overflows")?;
        blocks.push(part[axis..].iter().product::<usize>());
    }
    let outer: usize = shape[..axis].iter().product();
    let count = numel(&shape).ok_or("the joined shape overflows")?;
    let arrays: Vec<Array<'_>> = values.iter().map(Array::of).collect::<Result<_, _>>()?;
    budget.spend(count, arrays[0].size())?;
    match &arrays[0] {
        Array::Ints(_) => {
            let mut items = Vec::with_capacity(count);
            for o in 0..outer {
                for (array, &block) in arrays.iter().zip(&blocks) {
                    let Array::Ints(part) = array else {
                        return Err("integers joined to floating-point numbers".into());
                    };
                    items.extend_from_slice(&part[o * block..(o + 1) * block]);
                }
            }
            Ok(Value::ints(Ints { shape, items }))
        }
        Array::Bytes(dtype, _) => {
            let mut data = Vec::with_capacity(count * dtype.size());
            for o in 0..outer {
                for (array, &block) in arrays.iter().zip(&blocks) {
                    let Array::Bytes(part_dtype, part) = array else {
                        return Err("integers joined to floating-point numbers".into());
                    };
                    if part_dtype != dtype {
                        return Err(format!("{dtype} joined to {part_dtype}"));
                    }
                    let block = block * dtype.size();
                    data.extend_from_slice(&part[o * block..(o + 1) * block]);
                }
            }
            Ok(Value::weight(
                name,
                Weight::dense(shape, *dtype, data.into())?,
            ))
        }
    }
}

/// The slices of `value` along `axis` that `indices` names, in the shape of the indices.
pub(super) fn gather(
    name: &str,
    value: &Value,
    indices: &Ints,
    axis: usize,
    budget: &mut Budget,
) -> Result<Value, String> {
    let old = fixed_shape(value)?;
    let len = old[axis];
    let mut list = Vec::with_capacity(indices.items.len());
    for item in &indices.items {
        let i = item.known().ok_or("an index that is symbolic")?;
        let wrapped = if i < 0 {
            i.checked_add(len as i64)
        } else {
            Some(i)
        };
        let at = wrapped
            .and_then(|i| usize::try_from(i).ok())
            .filter(|&i| i < len)
            .ok_or_else(|| format!("index {i} of an axis of {len}"))?;
        list.push(at);
    }
    let shape = [&old[..axis], &indices.shape[..], &old[axis + 1..]].concat();
    let inner: usize = old[axis + 1..].iter().product();
    let outer: usize = old[..axis].iter().product();
    let array = Array::of(value)?;
    budget.spend(numel(&shape).unwrap_or(usize::MAX), array.size())?;
    let picked = (0..outer).flat_map(|o| {
        let list = &list;
        list.iter()
            .flat_map(move |&i| (0..inner).map(move |k| (o * len + i) * inner + k))
    });
    array.pick(name, shape, picked)
}

/// An arithmetic operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

impl Arithmetic {
    fn ints(self, a: &Int, b: &Int) -> Result<Int, String> {
        match self {
            Arithmetic::Add => a.add(b, 1),
            Arithmetic::Sub => a.add(b, -1),
            Arithmetic::Mul => a.mul(b),
            Arithmetic::Div => a.div(b),
        }
    }

    fn floats(self, a: f32, b: f32) -> f32 {
        match self {
            Arithmetic::Add => a + b,
            Arithmetic::Sub => a - b,
            Arithmetic::Mul => a * b,
            Arithmetic::Div => a / b,
        }
    }

    /// The operator over two constants with broadcast. Floating-point results are f32.
    pub fn fold(
        self,
        name: &str,
        a: &Value,
        b: &Value,
        budget: &mut Budget,
    ) -> Result<Value, String> {
        let (left, right) = (fixed_shape(a)?, fixed_shape(b)?);
        let shape = broadcast(&left, &right)?;
        let count = numel(&shape).ok_or("the broadcast shape overflows")?;
        let walk = |old: &[usize]| {
            let mut steps = vec![0; shape.len() - old.len()];
            for (&n, s) in old.iter().zip(row_major(old)) {
                steps.push(if n == 1 { 0 } else { s });
            }
            Walk::new(0, &shape, &steps)
        };
        let indices = walk(&left).zip(walk(&right));
        match (a, b) {
            (Value::Ints(a), Value::Ints(b)) => {
                budget.spend(count, size_of::<Int>())?;
                let items = indices.map(|(i, j)| self.ints(&a.items[i], &b.items[j]));
                let items = items.collect::<Result<_, _>>()?;
                Ok(Value::ints(Ints {
                    shape: shape.clone(),
                    items,
                }))
            }
            (Value::Weight(a), Value::Weight(b)) => {
                budget.spend(count, 4)?;
                let not = || "a constant that is no floating-point number".to_owned();
                let (a, b) = (
                    a.weight.to_f32().ok_or_else(not)?,
                    b.weight.to_f32().ok_or_else(not)?,
                );
                let values: Vec<f32> = indices.map(|(i, j)| self.floats(a[i], b[j])).collect();
                Ok(Value::weight(name, from_f32(shape.clone(), &values)?))
            }
            _ => Err("integers combined with floating-point numbers".into()),
        }
    }
}

/// An f32 weight.
pub(super) fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Weight, String> {
    Weight::dense(shape, DType::F32, lacuna::model::Bytes::from_f32(values))
}

/// The shape that two shapes broadcast to.
fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(format!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}
