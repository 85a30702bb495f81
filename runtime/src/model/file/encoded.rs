//! The bitmask encodings in a file: which tensors stand for a weight, and how they are read.

use super::{Tensors, shown};
use crate::model::{Bitmask, Scales, Storage, Weight, Weights};
use crate::{DType, Result};
use std::collections::BTreeSet;

/// The names under which an encoded weight is stored.
pub(super) struct Parts {
    pub compressed: String,
    pub bitmask: String,
    pub shape: String,
    /// Of weights that are not 2:4.
    pub row_offsets: String,
    /// Of weights of I8.
    pub scales: String,
}

impl Parts {
    pub fn of(prefix: &str) -> Parts {
        let name = |suffix: &str| format!("{prefix}.{suffix}");
        Parts {
            compressed: name("compressed"),
            bitmask: name("bitmask"),
            shape: name("shape"),
            row_offsets: name("row_offsets"),
            scales: name("scales"),
        }
    }

    /// The names of the tensors of a weight.
    pub fn names(self, weight: &Weight) -> impl Iterator<Item = String> {
        let offsets = (weight.storage() != Storage::TwoFour).then_some(self.row_offsets);
        let scales = weight.scales().map(|_| self.scales);
        let others = [self.compressed, self.bitmask, self.shape];
        others.into_iter().chain(offsets).chain(scales)
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

/// Reads every weight of a checkpoint in the formats `sparse-bitmask` and `sparse-24-bitmask` of
/// compressed-tensors, as its releases before 0.15 wrote them; tensors that are not encoded come back dense.
///
/// `P.compressed`, `P.bitmask`, `P.shape` and `P.row_offsets` become the weight `P.weight`. Releases
/// before 0.9 encode every tensor and keep its whole name; where one `P` ends in `.weight`, all
/// are taken for whole names. A matrix stays sparse and shares the bytes of the file; an encoded
/// tensor of another rank, whose mask is padded along every last axis, is decoded. Its row offsets,
/// which the format defines for matrices only, are not used. Values in two dimensions, without row offsets, are
/// 2:4: two of each four columns.
///
/// # Errors
/// [`Error::FileTensor`](crate::Error::FileTensor) when the tensors contradict each other, or when a
/// dtype is not supported.
pub fn decode_bitmask_tensors(tensors: &Tensors) -> Result<Weights> {
    let prefixes = prefixes(tensors);
    let whole_names = prefixes.iter().any(|p| p.ends_with(".weight"));
    let mut parts = BTreeSet::new();
    let mut weights = Weights::new();
    for &prefix in &prefixes {
        let weight = read(tensors, prefix, None)?;
        // An encoded tensor of another rank has offsets too, but is decoded by now.
        let offsets = Parts::of(prefix).row_offsets;
        if weight.storage() == Storage::Dense && tensors.contains(&offsets) {
            parts.insert(offsets);
        }
        parts.extend(Parts::of(prefix).names(&weight));
        let name = if whole_names {
            prefix.to_owned()
        } else {
            format!("{prefix}.weight")
        };
        if weights.insert(name.clone(), weight).is_some() {
            return Err(tensors.fault(&name, "the weight is stored twice"));
        }
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

/// Reads the encoded weight with this prefix, under the shape that the file gives. Values of I8 need
/// the columns of a group, which are in `lacuna.graph`.
pub(super) fn read(tensors: &Tensors, prefix: &str, group: Option<usize>) -> Result<Weight> {
    let names = Parts::of(prefix);
    let compressed = tensors.require(&names.compressed)?;
    let bitmask = tensors.require(&names.bitmask)?;
    let two_four = compressed.shape.len() == 2 && !tensors.contains(&names.row_offsets);
    let shape = read_shape(tensors, &names.shape)?;

    let known = |d: &DType| match group {
        Some(_) => *d == DType::I8,
        None => d.is_float(),
    };
    let dtype = compressed.dtype().filter(known).ok_or_else(|| {
        let expected = match group {
            Some(_) => "`groups` in `lacuna.graph` asks for I8",
            None => "F32, F16 and BF16 are read, and I8 with scales (I4 is reserved)",
        };
        let found = compressed.dtype_name;
        tensors.fault(
            &names.compressed,
            format!("values of dtype {found}; {expected}"),
        )
    })?;
    let half = |shape: &[usize]| match shape {
        [rows, cols] => vec![*rows, cols / 2],
        _ => Vec::new(),
    };
    match two_four {
        true => expect(tensors, &names.compressed, dtype, &half(&shape))?,
        false if compressed.shape.len() == 1 => {}
        false => {
            return Err(tensors.fault(
                &names.compressed,
                format!("shape {:?}, expected one axis", compressed.shape),
            ));
        }
    }
    let mut mask_shape = shape.clone();
    if let Some(last) = mask_shape.last_mut() {
        *last = last.div_ceil(8);
    }
    expect(tensors, &names.bitmask, DType::U8, &mask_shape)?;

    let weight = if let [rows, cols] = shape[..] {
        let row_offsets = match two_four {
            true => None,
            false => {
                expect(tensors, &names.row_offsets, DType::I64, &[rows])?;
                Some(tensors.require(&names.row_offsets)?.bytes)
            }
        };
        let encoded = Bitmask {
            rows,
            cols,
            values: compressed.bytes,
            mask: bitmask.bytes,
            row_offsets,
        };
        match group {
            Some(group) => {
                let scales = tensors.require(&names.scales)?;
                let groups = cols.div_ceil(group.max(1));
                expect(tensors, &names.scales, DType::BF16, &[rows, groups])?;
                let values = scales.bytes;
                Weight::scaled(shape, encoded, Scales { group, values })
            }
            None => Weight::bitmask(shape, dtype, encoded),
        }
    } else {
        tensors.require(&names.row_offsets)?;
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
    // That of a 2:4 weight is a column.
    let sizes = match tensor.shape {
        [2, 1] => &[2],
        shape => shape,
    };
    let (true, &[rank @ 1..=8]) = (tensor.dtype() == Some(DType::I64), sizes) else {
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
