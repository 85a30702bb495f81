//! The bitmask encoding in a file: which four tensors stand for a weight, and how they are read.

use super::{Tensors, shown};
use crate::model::{Bitmask, Weight, Weights};
use crate::{DType, Result};
use std::collections::BTreeSet;

/// The names under which an encoded weight is stored.
pub(super) struct Parts {
    pub compressed: String,
    pub bitmask: String,
    pub shape: String,
    pub row_offsets: String,
}

impl Parts {
    pub fn of(prefix: &str) -> Parts {
        let name = |suffix: &str| format!("{prefix}.{suffix}");
        Parts {
            compressed: name("compressed"),
            bitmask: name("bitmask"),
            shape: name("shape"),
            row_offsets: name("row_offsets"),
        }
    }

    pub fn names(&self) -> [&String; 4] {
        [
            &self.compressed,
            &self.bitmask,
            &self.shape,
            &self.row_offsets,
        ]
    }
}

/// What the stored names of an encoded weight start with: `X` for `X.weight`, else the name itself.
pub(super) fn prefix(weight: &str) -> &str {
    match weight.strip_suffix(".weight") {
        Some(module) if !module.is_empty() => module,
        _ => weight,
    }
}

/// The prefixes of the encoded weights of a file.
pub(super) fn prefixes(tensors: &Tensors) -> BTreeSet<&str> {
    tensors
        .names()
        .filter_map(|name| name.strip_suffix(".compressed"))
        .filter(|prefix| tensors.contains(&Parts::of(prefix).bitmask))
        .collect()
}

/// Reads every weight of a checkpoint in the `sparse-bitmask` format of compressed-tensors, as
/// its releases before 0.15 wrote it; tensors that are not encoded come back dense.
///
/// `P.compressed`, `P.bitmask`, `P.shape` and `P.row_offsets` become the weight `P.weight`, or `P`
/// where it ends in `.weight` already, as releases before 0.9 have it. A matrix stays sparse and
/// shares the bytes of the file; an encoded tensor of another rank, whose mask is padded along
/// every last axis, is decoded. Its row offsets, which the format defines for matrices only, are
/// not used.
///
/// # Errors
/// [`Error::FileTensor`](crate::Error::FileTensor) when the four tensors contradict each other,
/// when a dtype is not supported, or when the weight is 2:4 sparse (`sparse-24-bitmask`).
pub fn decode_bitmask_tensors(tensors: &Tensors) -> Result<Weights> {
    let prefixes = prefixes(tensors);
    let mut parts = BTreeSet::new();
    let mut weights = Weights::new();
    for &prefix in &prefixes {
        let weight = read(tensors, prefix)?;
        let name = if prefix.ends_with(".weight") {
            prefix.to_owned()
        } else {
            format!("{prefix}.weight")
        };
        if weights.insert(name.clone(), weight).is_some() {
            return Err(tensors.fault(&name, "the weight is stored twice"));
        }
        let Parts {
            compressed,
            bitmask,
            shape,
            row_offsets,
        } = Parts::of(prefix);
        parts.extend([compressed, bitmask, shape, row_offsets]);
    }
    for name in tensors.names().filter(|n| !parts.contains(*n)) {
        if weights
            .insert(name.to_owned(), tensors.weight(name)?)
            .is_some()
        {
            return Err(tensors.fault(name, "the weight is stored twice, dense and encoded"));
        }
    }
    Ok(weights)
}

/// Reads the encoded weight with this prefix, under the shape that the file gives.
pub(super) fn read(tensors: &Tensors, prefix: &str) -> Result<Weight> {
    let names = Parts::of(prefix);
    let compressed = tensors.require(&names.compressed)?;
    let bitmask = tensors.require(&names.bitmask)?;
    if compressed.shape.len() == 2 && !tensors.contains(&names.row_offsets) {
        return Err(tensors.fault(
            &names.compressed,
            "2:4 sparse (`sparse-24-bitmask`: values in two dimensions, no row_offsets), which is not read yet",
        ));
    }
    let row_offsets = tensors.require(&names.row_offsets)?;
    let shape = read_shape(tensors, &names.shape)?;

    let dtype = compressed.dtype().filter(|d| d.is_float()).ok_or_else(|| {
        tensors.fault(
            &names.compressed,
            format!(
                "values of dtype {}; F32, F16 and BF16 are read (I8 and I4 are reserved)",
                compressed.dtype_name
            ),
        )
    })?;
    if compressed.shape.len() != 1 {
        return Err(tensors.fault(
            &names.compressed,
            format!("shape {:?}, expected one axis", compressed.shape),
        ));
    }
    let mut mask_shape = shape.clone();
    if let Some(last) = mask_shape.last_mut() {
        *last = last.div_ceil(8);
    }
    expect(tensors, &names.bitmask, DType::U8, &mask_shape)?;

    let weight = if let [rows, cols] = shape[..] {
        expect(tensors, &names.row_offsets, DType::I64, &[rows])?;
        let encoded = Bitmask {
            rows,
            cols,
            values: compressed.bytes,
            mask: bitmask.bytes,
            row_offsets: row_offsets.bytes,
        };
        Weight::bitmask(shape, dtype, encoded)
    } else {
        scatter(&shape, dtype, &compressed.bytes, &bitmask.bytes)
            .and_then(|data| Weight::dense(shape, dtype, data.into()))
    };
    weight.map_err(|what| tensors.fault(&names.compressed, what))
}

/// Checks dtype and shape of a tensor.
fn expect(tensors: &Tensors, name: &str, dtype: DType, shape: &[usize]) -> Result<()> {
    let tensor = tensors.require(name)?;
    if tensor.dtype() != Some(dtype) || tensor.shape != shape {
        return Err(tensors.fault(
            name,
            format!(
                "{} of shape {:?}, expected {dtype} of shape {shape:?}",
                tensor.dtype_name, tensor.shape
            ),
        ));
    }
    Ok(())
}

/// Reads a `shape` tensor.
fn read_shape(tensors: &Tensors, name: &str) -> Result<Vec<usize>> {
    let tensor = tensors.require(name)?;
    let (true, &[rank @ 1..=8]) = (tensor.dtype() == Some(DType::I64), tensor.shape) else {
        return Err(tensors.fault(
            name,
            format!(
                "{} of shape {}, expected I64 of one axis with 1 to 8 sizes",
                tensor.dtype_name,
                shown(&format!("{:?}", tensor.shape))
            ),
        ));
    };
    let mut shape = Vec::with_capacity(rank);
    for (axis, size) in tensor.bytes.as_chunks::<8>().0.iter().enumerate() {
        let size = i64::from_le_bytes(*size);
        shape.push(
            usize::try_from(size)
                .map_err(|_| tensors.fault(name, format!("the size of axis {axis} is {size}")))?,
        );
    }
    if crate::model::weight::numel(&shape).is_none() {
        return Err(tensors.fault(name, format!("shape {shape:?} overflows")));
    }
    Ok(shape)
}

/// Decodes a tensor whose mask is padded to whole bytes along its last axis.
fn scatter(shape: &[usize], dtype: DType, values: &[u8], mask: &[u8]) -> Result<Vec<u8>, String> {
    let size = dtype.size();
    let count: usize = mask.iter().map(|b| b.count_ones() as usize).sum();
    if values.len() != count * size {
        return Err(format!(
            "{} bytes of values, the mask counts {count} of {size} bytes",
            values.len()
        ));
    }
    let cols = shape.last().copied().unwrap_or(1);
    let len: usize = shape.iter().product();
    let mut data = vec![0u8; len.checked_mul(size).ok_or("shape overflows")?];
    let mut values = values.chunks_exact(size);
    if len == 0 {
        return Ok(data);
    }
    for (r, row) in mask.chunks_exact(cols.div_ceil(8)).enumerate() {
        for (i, &byte) in row.iter().enumerate() {
            let mut left = byte;
            while left != 0 {
                let c = i * 8 + left.trailing_zeros() as usize;
                left &= left - 1;
                if c >= cols {
                    return Err(format!("bitmask row {r} has bits set behind column {cols}"));
                }
                if let Some(v) = values.next() {
                    let at = (r * cols + c) * size;
                    data[at..at + size].copy_from_slice(v);
                }
            }
        }
    }
    Ok(data)
}
