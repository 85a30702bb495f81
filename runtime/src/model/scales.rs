//! Weights of signed bytes with a scale for each group of a row's columns.

use super::bitmask::Bitmask;
use super::scan::{Scan, scan};
use super::weight::{Encoding, Weight};
use super::{Bytes, weight::matrix};
use crate::DType;
use half::bf16;

/// Columns of a group.
pub const GROUPS: [usize; 2] = [32, 64];

/// The largest magnitude of a stored byte: -128 is none, so that each has an opposite.
const LARGEST: f32 = 127.0;

/// The scales of a weight of I8: element `(r, c)` is its stored byte times scale
/// `(r, c / group)`.
#[derive(Clone, Debug)]
pub struct Scales {
    /// Columns that share a scale: 32 or 64.
    pub group: usize,
    /// BF16, `[rows, ceil(cols / group)]`.
    pub values: Bytes,
}

impl Scales {
    /// Groups of a row.
    pub fn per_row(&self, cols: usize) -> usize {
        cols.div_ceil(self.group)
    }

    /// The scale of a group of a row of `cols` columns.
    pub fn get(&self, row: usize, cols: usize, group: usize) -> f32 {
        let at = row * self.per_row(cols) + group;
        let scales = self.values.as_chunks::<2>().0;
        scales
            .get(at)
            .map_or(0.0, |b| bf16::from_le_bytes(*b).to_f32())
    }

    /// Checks the group, the size, and that no element can be infinite.
    fn check(&self, rows: usize, cols: usize) -> Result<(), String> {
        if !GROUPS.contains(&self.group) {
            return Err(format!("groups of {} columns, not 32 or 64", self.group));
        }
        let groups = self.per_row(cols);
        let need = rows.checked_mul(groups).and_then(|n| n.checked_mul(2));
        if need != Some(self.values.len()) {
            return Err(format!(
                "{} bytes of scales, {rows} rows of {groups} groups need {}",
                self.values.len(),
                need.unwrap_or(usize::MAX)
            ));
        }
        let scales = self.values.as_chunks::<2>().0;
        let scale = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32();
        // Without a branch: a test that becomes SIMD code.
        let all = |block: &[[u8; 2]]| {
            let finite = |b: &[u8; 2]| (scale(b) * LARGEST).is_finite();
            block.iter().fold(true, |all, b| all & finite(b))
        };
        if scales.chunks(1024).all(all) {
            return Ok(());
        }
        let mut scales = scales.iter().map(scale).enumerate();
        match scales.find(|(_, s)| !(s * LARGEST).is_finite()) {
            Some((at, s)) => Err(format!("scale {at} is {s}: elements are not finite")),
            None => Ok(()),
        }
    }
}

impl Weight {
    /// A bitmask weight of I8 with scales, checked as [`Weight::bitmask`] is; no byte is -128.
    pub fn scaled(shape: Vec<usize>, bitmask: Bitmask, scales: Scales) -> Result<Weight, String> {
        scales.check(bitmask.rows, bitmask.cols)?;
        if matrix(&shape) != Some((bitmask.rows, bitmask.cols)) {
            return Err(format!(
                "encoded as [{}, {}], which is not the shape {shape:?}",
                bitmask.rows, bitmask.cols
            ));
        }
        bitmask.check(1)?;
        if bitmask.is_two_four() {
            return Err("values of I8 are not stored 2:4".into());
        }
        let Scan { nonzeros, fault } = scan(DType::I8, &bitmask.values);
        if let Some((at, value)) = fault {
            return Err(format!("stored value {at} is {value}"));
        }
        Ok(Weight {
            shape,
            dtype: DType::I8,
            encoding: Encoding::Bitmask(bitmask),
            scales: Some(scales),
            nonzeros: nonzeros.into(),
        })
    }

    /// The scales of a weight of I8 that has any.
    pub fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    /// The dtype of the elements as the graph sees them: F32 of a weight with scales.
    pub fn element_dtype(&self) -> DType {
        match self.scales {
            Some(_) => DType::F32,
            None => self.dtype,
        }
    }

    /// The same weight as signed bytes in the bitmask encoding, with a scale for each `group` columns
    /// of a row; elements that round to 0 are dropped.
    ///
    /// # Errors
    /// When the weight is not of a floating-point dtype, holds a value that is not finite, or `group`
    /// is not one of [`GROUPS`].
    pub fn to_scaled(&self, group: usize) -> Result<Weight, String> {
        if !GROUPS.contains(&group) {
            return Err(format!("groups of {group} columns, not 32 or 64"));
        }
        let values = match self.dtype.is_float() {
            true => self.to_f32(),
            false => None,
        };
        let values = values.ok_or_else(|| format!("{} does not become I8", self.dtype))?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(format!("element {at} is {}", values[at]));
        }
        let (rows, cols) = self.matrix();
        let stride = cols.div_ceil(8);
        let mut mask = vec![0u8; rows * stride];
        let (mut stored, mut offsets, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for (r, row) in values.chunks_exact(cols.max(1)).enumerate() {
            offsets.extend((stored.len() as i64).to_le_bytes());
            for (g, part) in row.chunks(group).enumerate() {
                let scale = scale_of(part);
                scales.extend(scale.to_le_bytes());
                let inverse = match scale.to_f32() {
                    0.0 => 0.0,
                    s => 1.0 / s,
                };
                for (i, v) in part.iter().enumerate() {
                    let q = (v * inverse).round_ties_even().clamp(-LARGEST, LARGEST) as i8;
                    if q != 0 {
                        let c = g * group + i;
                        mask[r * stride + c / 8] |= 1 << (c % 8);
                        stored.push(q as u8);
                    }
                }
            }
        }
        // Rows without columns have no chunks.
        offsets.resize(rows * 8, 0);
        let bitmask = Bitmask {
            rows,
            cols,
            values: stored.into(),
            mask: mask.into(),
            row_offsets: Some(offsets.into()),
        };
        let scales = Scales {
            group,
            values: scales.into(),
        };
        Weight::scaled(self.shape.clone(), bitmask, scales)
    }
}

/// The stored elements of a weight with scales.
pub(super) fn stored_f32(b: &Bitmask, scales: &Scales) -> Vec<f32> {
    let mut out = Vec::with_capacity(b.values.len());
    for r in 0..b.rows {
        for c in b.row_columns(r) {
            let q = b.values.get(out.len()).map_or(0.0, |&q| f32::from(q as i8));
            out.push(q * scales.get(r, b.cols, c / scales.group));
        }
    }
    out
}

/// The scale that puts the largest magnitude at 127 or just below, rounded up so that nothing is cut.
fn scale_of(values: &[f32]) -> bf16 {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let exact = largest / LARGEST;
    let near = bf16::from_f32(exact);
    match near.to_f32() < exact {
        true => bf16::from_bits(near.to_bits() + 1),
        false => near,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight() -> (Vec<f32>, Weight) {
        let values: Vec<f32> = (0..3 * 70)
            .map(|i| match i % 3 {
                0 => 0.0,
                _ => (i * 37 % 101) as f32 / 50.0 - 1.0,
            })
            .collect();
        let weight = Weight::from_f32(&[3, 70], &values);
        (values, weight)
    }

    #[test]
    fn elements_are_off_by_half_a_step_at_most_and_zeros_stay() {
        let (values, weight) = weight();
        for (group, w) in [(32, weight.clone()), (64, weight.encode())] {
            let scaled = w.to_scaled(group).unwrap();
            assert_eq!(
                (scaled.dtype(), scaled.element_dtype()),
                (DType::I8, DType::F32)
            );
            assert!(scaled.is_sparse());
            let scales = scaled.scales().unwrap();
            let back = scaled.to_f32().unwrap();
            for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                let step = scales.get(i / 70, 70, i % 70 / group);
                assert!((a - b).abs() <= step * 0.501, "{i}: {a} {b}");
                assert!(*a != 0.0 || *b == 0.0);
            }
            assert_eq!(scaled.decode().dtype(), DType::F32);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (_, weight) = weight();
        assert!(weight.to_scaled(16).unwrap_err().contains("16"));
        let nan = Weight::from_f32(&[1, 2], &[1.0, f32::NAN]);
        assert!(nan.to_scaled(32).unwrap_err().contains("element 1"));
        let scaled = weight.to_scaled(32).unwrap();
        assert!(scaled.to_scaled(32).is_err());
        let Encoding::Bitmask(b) = scaled.encoding().clone() else {
            panic!("not encoded")
        };
        let with = |group, values: Vec<u8>| {
            let scales = Scales {
                group,
                values: values.into(),
            };
            Weight::scaled(vec![3, 70], b.clone(), scales).unwrap_err()
        };
        assert!(with(32, vec![0; 16]).contains("3 rows of 3 groups need 18"));
        assert!(with(48, vec![0; 12]).contains("48"));
        for scale in [bf16::INFINITY, bf16::NAN, bf16::MAX] {
            let mut scales = vec![0; 18];
            scales[4..6].copy_from_slice(&scale.to_le_bytes());
            assert!(with(32, scales).contains("scale 2"));
        }
        let mut bitmask = b.clone();
        bitmask.values = b.values.iter().map(|_| 0x80).collect::<Vec<u8>>().into();
        let error = Weight::scaled(vec![3, 70], bitmask, scaled.scales().unwrap().clone());
        assert!(error.unwrap_err().contains("-128"));
    }
}
