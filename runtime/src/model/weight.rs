//! Weights: dense, or sparse in the encodings of compressed-tensors (`sparse-bitmask`, `sparse-24-bitmask`).

use super::Bytes;
use super::bitmask::Bitmask;
use super::scales::{self, Scales};
use super::scan::scan;
use crate::DType;
use half::{bf16, f16};
use std::sync::OnceLock;

/// A constant of the graph: its logical shape, its dtype, and its encoded values.
#[derive(Clone, Debug)]
pub struct Weight {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) encoding: Encoding,
    pub(super) scales: Option<Scales>,
    /// Elements that are not zero, once they were counted.
    pub(super) nonzeros: OnceLock<usize>,
}

/// How the values of a weight are stored.
#[derive(Clone, Debug)]
pub enum Encoding {
    /// Every value, row-major, little-endian.
    Dense(Bytes),
    /// The non-zeros and a mask, or two of each four columns and a mask.
    Bitmask(Bitmask),
}

impl Weight {
    /// A dense weight. `data` is row-major and little-endian; its length must fit.
    pub fn dense(shape: Vec<usize>, dtype: DType, data: Bytes) -> Result<Weight, String> {
        let bytes = numel(&shape).and_then(|n| n.checked_mul(dtype.size()));
        if bytes != Some(data.len()) {
            return Err(format!(
                "{} bytes of {dtype} do not fill shape {shape:?}",
                data.len()
            ));
        }
        Ok(Weight {
            shape,
            dtype,
            encoding: Encoding::Dense(data),
            scales: None,
            nonzeros: OnceLock::new(),
        })
    }

    /// A dense f32 weight.
    ///
    /// # Panics
    /// When the number of values is not the product of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Weight {
        assert_eq!(
            numel(shape),
            Some(values.len()),
            "values do not fill {shape:?}"
        );
        Weight {
            shape: shape.to_vec(),
            dtype: DType::F32,
            encoding: Encoding::Dense(Bytes::from_f32(values)),
            scales: None,
            nonzeros: OnceLock::new(),
        }
    }

    /// A bitmask weight, 2:4 included, of a floating-point dtype, checked in one pass over the mask.
    ///
    /// `shape` is the logical shape; its first axis must be `rows` and the rest multiply to `cols`.
    pub fn bitmask(shape: Vec<usize>, dtype: DType, bitmask: Bitmask) -> Result<Weight, String> {
        if !dtype.is_float() {
            return Err(format!(
                "values of dtype {dtype}; version 1 reads F32, F16 and BF16, and I8 with scales (I4 is reserved)"
            ));
        }
        if matrix(&shape) != Some((bitmask.rows, bitmask.cols)) {
            return Err(format!(
                "encoded as [{}, {}], which is not the shape {shape:?}",
                bitmask.rows, bitmask.cols
            ));
        }
        bitmask.check(dtype.size())?;
        Ok(Weight {
            shape,
            dtype,
            encoding: Encoding::Bitmask(bitmask),
            scales: None,
            nonzeros: OnceLock::new(),
        })
    }

    /// The logical shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The dtype of the values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The encoded values.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// Whether the weight is stored sparse.
    pub fn is_sparse(&self) -> bool {
        matches!(self.encoding, Encoding::Bitmask(_))
    }

    /// Elements of the logical shape.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The weight as a matrix: the first axis, and everything behind it. A scalar is `(1, 1)`.
    pub fn matrix(&self) -> (usize, usize) {
        matrix(&self.shape).unwrap_or((0, 0))
    }

    /// Bytes of the encoded values, mask and offsets.
    pub fn byte_len(&self) -> usize {
        match &self.encoding {
            Encoding::Dense(data) => data.len(),
            Encoding::Bitmask(b) => {
                let scales = self.scales.as_ref().map_or(0, |s| s.values.len());
                let offsets = b.row_offsets.as_ref().map_or(0, |o| o.len());
                b.values.len() + b.mask.len() + offsets + scales
            }
        }
    }

    /// Lets go of the pages of a mapped file that hold this weight: they are read again when it is used
    /// again.
    pub fn release(&self) {
        match &self.encoding {
            Encoding::Dense(data) => data.release(),
            Encoding::Bitmask(b) => {
                b.values.release();
                b.mask.release();
            }
        }
    }

    /// Elements that are not zero: counted once, where opening the file has not done so.
    pub fn count_nonzero(&self) -> usize {
        *self
            .nonzeros
            .get_or_init(|| scan(self.dtype, self.stored()).nonzeros)
    }

    /// The bytes of the stored values.
    pub(super) fn stored(&self) -> &Bytes {
        match &self.encoding {
            Encoding::Dense(data) => data,
            Encoding::Bitmask(b) => &b.values,
        }
    }

    /// The share of elements that are not zero; 1 for an empty weight.
    pub fn density(&self) -> f64 {
        match self.numel() {
            0 => 1.0,
            n => self.count_nonzero() as f64 / n as f64,
        }
    }

    /// Every element as f32, row-major. `None` when the dtype is not a floating-point type and the
    /// weight has no scales.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let dense = self.decode();
        let Encoding::Dense(data) = &dense.encoding else {
            return None;
        };
        values_to_f32(dense.dtype, data)
    }

    /// Every element of an I64 weight, row-major. `None` for another dtype.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match (&self.encoding, self.dtype) {
            (Encoding::Dense(data), DType::I64) => {
                let elements = data.as_chunks::<8>().0.iter();
                Some(elements.map(|b| i64::from_le_bytes(*b)).collect())
            }
            _ => None,
        }
    }

    /// The stored values as f32: every element of a dense weight, the kept ones of a sparse weight.
    pub fn stored_f32(&self) -> Option<Vec<f32>> {
        match &self.encoding {
            Encoding::Dense(data) => values_to_f32(self.dtype, data),
            Encoding::Bitmask(b) => match &self.scales {
                Some(scales) => Some(scales::stored_f32(b, scales)),
                None => values_to_f32(self.dtype, &b.values),
            },
        }
    }

    /// The same weight, dense; f32 where it has scales. Elements that were not stored become +0.
    pub fn decode(&self) -> Weight {
        let Encoding::Bitmask(b) = &self.encoding else {
            return self.clone();
        };
        let (dtype, values) = match &self.scales {
            Some(scales) => (DType::F32, Bytes::from_f32(&scales::stored_f32(b, scales))),
            None => (self.dtype, b.values.clone()),
        };
        let size = dtype.size();
        let mut data = vec![0u8; self.numel() * size];
        let mut values = values.chunks_exact(size);
        for r in 0..b.rows {
            for c in b.row_columns(r) {
                if let Some(v) = values.next() {
                    let at = (r * b.cols + c) * size;
                    data[at..at + size].copy_from_slice(v);
                }
            }
        }
        Weight {
            shape: self.shape.clone(),
            dtype,
            encoding: Encoding::Dense(data.into()),
            scales: None,
            nonzeros: OnceLock::new(),
        }
    }

    /// The same weight in the bitmask encoding; zeros of either sign are dropped, NaN is kept.
    /// A weight that is sparse already, or not of a floating-point dtype, comes back as it is.
    pub fn encode(&self) -> Weight {
        let (Encoding::Dense(data), true) = (&self.encoding, self.dtype.is_float()) else {
            return self.clone();
        };
        let (rows, cols) = self.matrix();
        let size = self.dtype.size();
        let stride = cols.div_ceil(8);
        let mut mask = vec![0u8; rows * stride];
        let mut values = Vec::new();
        let mut row_offsets = Vec::with_capacity(rows * 8);
        for r in 0..rows {
            row_offsets.extend_from_slice(&((values.len() / size) as i64).to_le_bytes());
            let row = &data[r * cols * size..(r + 1) * cols * size];
            for (c, e) in row.chunks_exact(size).enumerate() {
                if !is_zero(self.dtype, e) {
                    mask[r * stride + c / 8] |= 1 << (c % 8);
                    values.extend_from_slice(e);
                }
            }
        }
        Weight {
            shape: self.shape.clone(),
            dtype: self.dtype,
            encoding: Encoding::Bitmask(Bitmask {
                rows,
                cols,
                values: values.into(),
                mask: mask.into(),
                row_offsets: Some(row_offsets.into()),
            }),
            scales: None,
            nonzeros: OnceLock::new(),
        }
    }

    /// The same weight in another floating-point dtype, rounded to nearest, ties to even.
    pub fn to_dtype(&self, dtype: DType) -> Result<Weight, String> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if self.scales.is_some() && dtype.is_float() {
            return self.decode().to_dtype(dtype).map(|w| w.encode());
        }
        let (true, Some(values)) = (dtype.is_float(), self.stored_f32()) else {
            return Err(format!("{} does not become {dtype}", self.dtype));
        };
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        for (i, &v) in values.iter().enumerate() {
            let finite = match dtype {
                DType::F16 => {
                    let half = f16::from_f32(v);
                    bytes.extend_from_slice(&half.to_le_bytes());
                    half.is_finite()
                }
                DType::BF16 => {
                    let half = bf16::from_f32(v);
                    bytes.extend_from_slice(&half.to_le_bytes());
                    half.is_finite()
                }
                _ => {
                    bytes.extend_from_slice(&v.to_le_bytes());
                    true
                }
            };
            if v.is_finite() && !finite {
                return Err(format!(
                    "stored value {i} is {v}, beyond the range of {dtype}"
                ));
            }
        }
        let encoding = match &self.encoding {
            Encoding::Dense(_) => Encoding::Dense(bytes.into()),
            Encoding::Bitmask(b) => Encoding::Bitmask(Bitmask {
                values: bytes.into(),
                ..b.clone()
            }),
        };
        Ok(Weight {
            shape: self.shape.clone(),
            dtype,
            encoding,
            scales: None,
            nonzeros: OnceLock::new(),
        })
    }

    /// The same weight under another shape with as many elements; for a sparse weight the
    /// first axis must stay. `None` when it does not fit.
    pub fn reshape(&self, shape: Vec<usize>) -> Option<Weight> {
        let fits = match &self.encoding {
            Encoding::Dense(_) => numel(&shape) == Some(self.numel()),
            Encoding::Bitmask(b) => matrix(&shape) == Some((b.rows, b.cols)),
        };
        fits.then(|| Weight {
            shape,
            ..self.clone()
        })
    }
}

/// The product of a shape, or `None` when it overflows.
pub(crate) fn numel(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

pub(super) fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    match shape {
        [] => Some((1, 1)),
        [rows, rest @ ..] => Some((*rows, numel(rest)?)),
    }
}

#[inline(always)]
pub(super) fn is_zero(dtype: DType, element: &[u8]) -> bool {
    match (dtype, element) {
        (DType::F32, [a, b, c, d]) => (a | b | c | (d & 0x7f)) == 0,
        (DType::F16 | DType::BF16, [a, b]) => (a | (b & 0x7f)) == 0,
        _ => element.iter().all(|&b| b == 0),
    }
}

fn values_to_f32(dtype: DType, data: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        DType::F32 => data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        DType::F16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect(),
        DType::BF16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b).to_f32())
            .collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bitmask vector of the compressed-tensors format: rows of ten with an empty row.
    #[test]
    fn bitmask_vector_matches_compressed_tensors_byte_for_byte() {
        let rows = [
            [0., 1.5, 0., 0., -2., 0., 0., 0., 3., 0.],
            [0.; 10],
            [1., 0., 0., 0., 0., 0., 0., 4., 0., 5.],
        ];
        let dense = Weight::from_f32(&[3, 10], rows.as_flattened());
        let sparse = dense.encode();
        let Encoding::Bitmask(b) = sparse.encoding() else {
            panic!("not encoded")
        };
        assert_eq!(&b.mask[..], &[18, 1, 0, 0, 129, 2]);
        assert_eq!(sparse.stored_f32().unwrap(), [1.5, -2., 3., 1., 4., 5.]);
        let offsets: Vec<usize> = (0..3).map(|r| b.row_start(r)).collect();
        assert_eq!(offsets, [0, 3, 3]);
        assert_eq!(sparse.to_f32(), dense.to_f32());
    }

    #[test]
    fn negative_zero_is_dropped_and_nan_is_kept() {
        let w = Weight::from_f32(&[1, 3], &[-0.0, f32::NAN, 1.0]).encode();
        let stored = w.stored_f32().unwrap();
        assert_eq!(stored.len(), 2);
        assert!(stored[0].is_nan());
    }

    #[test]
    fn dtypes_round_to_nearest_and_refuse_what_they_cannot_hold() {
        let values = [1.0f32, 0.0, -1.003_906_3, 70000.0];
        let weight = Weight::from_f32(&[2, 2], &values);
        for w in [weight.clone(), weight.encode()] {
            let half = w.to_dtype(DType::BF16).unwrap();
            assert_eq!(half.to_f32().unwrap(), [1.0, 0.0, -1.0, 70144.0]);
            assert_eq!(half.is_sparse(), w.is_sparse());
            let error = w.to_dtype(DType::F16).unwrap_err();
            assert!(error.contains("70000"), "{error}");
            assert!(w.to_dtype(DType::I8).is_err());
        }
    }

    #[test]
    fn wrong_masks_are_refused_with_the_value() {
        let w = Weight::from_f32(&[2, 9], &[1.0; 18]).encode();
        let Encoding::Bitmask(good) = w.encoding().clone() else {
            panic!()
        };
        let with = |f: &dyn Fn(&mut Bitmask)| {
            let mut b = good.clone();
            f(&mut b);
            Weight::bitmask(vec![2, 9], DType::F32, b).unwrap_err()
        };
        assert!(
            with(&|b| b.mask = vec![255, 3, 255, 1].into()).contains("bits set behind column 9")
        );
        assert!(with(&|b| b.mask = vec![255, 1, 254, 1].into()).contains("counts 17"));
        assert!(with(&|b| b.values = vec![0; 4].into()).contains("counts 18"));
        assert!(
            with(&|b| b.row_offsets = Some(vec![0; 16].into())).contains("row_offsets[1] is 0")
        );
        assert!(with(&|b| b.cols = 10).contains("[2, 10]"));
    }
}
