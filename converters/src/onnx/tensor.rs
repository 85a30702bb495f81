//! Tensors of the file as constants.

use super::external::External;
use super::ints::{Int, Ints};
use super::proto::{SparseTensorProto, TensorProto, data_type};
use super::value::Value;
use crate::source::Source;
use crate::strided::numel;
use crate::torch::narrow_f64;
use lacuna::DType;
use lacuna::model::{Bytes, Weight};

/// Bytes that folding and sparse tensors may still add to what the file holds.
pub(super) struct Budget(usize);

impl Budget {
    /// What any file may add.
    const BASE: usize = 128 << 20;

    pub fn for_file(len: usize) -> Budget {
        Budget(Self::BASE.saturating_add(len.saturating_mul(4)))
    }

    /// Takes `count` elements of `size` bytes, or refuses before anything is allocated.
    pub fn spend(&mut self, count: usize, size: usize) -> Result<(), String> {
        let rest = count
            .checked_mul(size)
            .and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = rest.ok_or_else(|| {
            format!("{count} elements more than a file of this size may unfold to")
        })?;
        Ok(())
    }
}

/// Reads tensors of one file.
pub(super) struct Reader<'a> {
    pub source: &'a Source,
    pub external: External<'a>,
    pub budget: Budget,
}

impl Reader<'_> {
    /// A dense tensor under the name `name`.
    pub fn dense(&mut self, name: &str, tensor: &TensorProto) -> Result<Value, String> {
        if tensor.segment.is_some() {
            return Err("segmented tensors are not supported".into());
        }
        let shape = sizes(&tensor.dims)?;
        let count = numel(&shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
        let dtype = tensor.data_type;
        match dtype {
            data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16 | data_type::DOUBLE => {
                let (dtype, data) = self.floats(tensor, count)?;
                Ok(Value::weight(name, Weight::dense(shape, dtype, data)?))
            }
            data_type::INT64
            | data_type::INT32
            | data_type::BOOL
            | data_type::UINT8
            | data_type::INT8 => {
                let items = self.integers(tensor, count)?;
                Ok(Value::ints(Ints { shape, items }))
            }
            other => Err(format!(
                "dtype {}; supported: FLOAT, FLOAT16, BFLOAT16 and DOUBLE (rounded to FLOAT) as \
                 weights, INT64, INT32, UINT8, INT8 and BOOL in shape arithmetic",
                data_type::name(other)
            )),
        }
    }

    /// The raw bytes of `count` elements of `size` bytes, from the file or beside it; `None` when
    /// the elements stand in a typed field.
    fn raw(
        &mut self,
        tensor: &TensorProto,
        count: usize,
        size: usize,
    ) -> Result<Option<Bytes>, String> {
        let expected = count
            .checked_mul(size)
            .ok_or_else(|| format!("{count} elements overflow"))?;
        let raw = match tensor.data_location {
            0 if tensor.raw_data.is_empty() => return Ok(None),
            0 => self.source.share(&tensor.raw_data),
            1 => self.external.read(&tensor.external_data, expected)?,
            other => return Err(format!("data location {other}")),
        };
        if raw.len() != expected {
            return Err(format!(
                "{} bytes of raw data, the shape {:?} needs {expected}",
                raw.len(),
                tensor.dims
            ));
        }
        Ok(Some(raw))
    }

    fn floats(&mut self, t: &TensorProto, count: usize) -> Result<(DType, Bytes), String> {
        let (dtype, size) = match t.data_type {
            data_type::FLOAT16 => (DType::F16, 2),
            data_type::BFLOAT16 => (DType::BF16, 2),
            data_type::DOUBLE => (DType::F32, 8),
            _ => (DType::F32, 4),
        };
        if let Some(raw) = self.raw(t, count, size)? {
            let wide = t.data_type == data_type::DOUBLE;
            return Ok((dtype, if wide { narrow_f64(&raw) } else { raw }));
        }
        let (len, data): (usize, Bytes) = match t.data_type {
            data_type::FLOAT16 | data_type::BFLOAT16 => {
                let bits = t.int32_data.iter().flat_map(|v| (*v as u16).to_le_bytes());
                (t.int32_data.len(), bits.collect::<Vec<u8>>().into())
            }
            data_type::DOUBLE => {
                let values: Vec<f32> = t.double_data.iter().map(|v| *v as f32).collect();
                (values.len(), Bytes::from_f32(&values))
            }
            _ => (t.float_data.len(), Bytes::from_f32(&t.float_data)),
        };
        check_count(len, count, t)?;
        Ok((dtype, data))
    }

    fn integers(&mut self, t: &TensorProto, count: usize) -> Result<Vec<Int>, String> {
        let size = match t.data_type {
            data_type::INT64 => 8,
            data_type::INT32 => 4,
            _ => 1,
        };
        if let Some(raw) = self.raw(t, count, size)? {
            let known = |v: i64| Int::Known(v);
            return Ok(match t.data_type {
                data_type::INT64 => {
                    let all = raw.as_chunks::<8>().0.iter();
                    all.map(|b| known(i64::from_le_bytes(*b))).collect()
                }
                data_type::INT32 => {
                    let all = raw.as_chunks::<4>().0.iter();
                    all.map(|b| known(i32::from_le_bytes(*b).into())).collect()
                }
                data_type::INT8 => raw.iter().map(|b| known((*b as i8).into())).collect(),
                _ => raw.iter().map(|b| known((*b).into())).collect(),
            });
        }
        let items: Vec<Int> = if t.data_type == data_type::INT64 {
            t.int64_data.iter().map(|v| Int::Known(*v)).collect()
        } else {
            let all = t.int32_data.iter();
            all.map(|v| Int::Known((*v).into())).collect()
        };
        check_count(items.len(), count, t)?;
        Ok(items)
    }

    /// A sparse tensor, as a dense weight.
    pub fn sparse(&mut self, name: &str, sparse: &SparseTensorProto) -> Result<Value, String> {
        let (Some(values), Some(indices)) = (&sparse.values, &sparse.indices) else {
            return Err("a sparse tensor without values or indices".into());
        };
        let shape = sizes(&sparse.dims)?;
        let count = numel(&shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
        let Value::Weight(values) = self.dense(name, values)? else {
            return Err("sparse values that are no floating-point numbers".into());
        };
        let Value::Ints(indices) = self.dense(name, indices)? else {
            return Err("sparse indices that are no integers".into());
        };
        let stored = values.weight.numel();
        let indices_of = indices.known().unwrap_or_default();
        let rank = shape.len();
        let flat: Vec<i64> = match indices.shape[..] {
            [n] if n == stored => indices_of,
            [n, r] if n == stored && r == rank && r > 0 => {
                let rows = indices_of.chunks_exact(r);
                rows.map(|row| flat_index(row, &shape))
                    .collect::<Result<_, _>>()?
            }
            _ => {
                return Err(format!(
                    "sparse indices of shape {:?} for {stored} values of {rank} axes",
                    indices.shape
                ));
            }
        };
        let size = values.weight.dtype().size();
        self.budget.spend(count, size)?;
        let mut data = vec![0u8; count * size];
        let lacuna::model::Encoding::Dense(stored) = values.weight.encoding() else {
            return Err("sparse values of a sparse encoding".into());
        };
        for (element, i) in stored.chunks_exact(size).zip(flat) {
            let at = usize::try_from(i).ok().filter(|&i| i < count);
            let at = at.ok_or_else(|| format!("sparse index {i} of {count} elements"))?;
            data[at * size..(at + 1) * size].copy_from_slice(element);
        }
        let weight = Weight::dense(shape, values.weight.dtype(), data.into())?;
        Ok(Value::weight(name, weight))
    }
}

fn flat_index(row: &[i64], shape: &[usize]) -> Result<i64, String> {
    row.iter().zip(shape).try_fold(0i64, |at, (&i, &n)| {
        let fits = i >= 0 && (i as usize) < n;
        let at = at.checked_mul(n as i64).and_then(|at| at.checked_add(i));
        at.filter(|_| fits)
            .ok_or_else(|| format!("sparse index {row:?} of shape {shape:?}"))
    })
}

/// Dimensions as sizes.
pub(super) fn sizes(dims: &[i64]) -> Result<Vec<usize>, String> {
    const MAX_RANK: usize = 16;
    if dims.len() > MAX_RANK {
        return Err(format!("{} axes; at most {MAX_RANK}", dims.len()));
    }
    let size = |d: &i64| usize::try_from(*d).map_err(|_| format!("shape {dims:?}"));
    dims.iter().map(size).collect()
}

fn check_count(have: usize, need: usize, t: &TensorProto) -> Result<(), String> {
    if have == need {
        return Ok(());
    }
    Err(format!(
        "{have} elements of {}, the shape {:?} needs {need}",
        data_type::name(t.data_type),
        t.dims
    ))
}
