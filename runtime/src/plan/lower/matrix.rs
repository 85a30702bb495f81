//! A weight as rows of a layer's matrix, read from the model's bytes as packing asks.

use crate::DType;
use crate::kernels::cpu::hash::Hash;
use crate::kernels::cpu::weights::MatrixRows;
use crate::model::{Bitmask, Encoding, Weight};
use half::{bf16, f16};
use std::ops::Range;

/// What each row is multiplied with.
#[derive(Clone, Copy)]
pub enum Scale<'s> {
    /// One number for all.
    All(f32),
    /// A number for each row.
    Rows(&'s [f32]),
}

impl Scale<'_> {
    fn of(&self, row: usize) -> f32 {
        match self {
            Scale::All(s) => *s,
            Scale::Rows(list) => list[row],
        }
    }
}

/// Rows of `[outer, inner]`: those of the weight, or of its transpose.
pub struct Matrix<'w> {
    data: Data<'w>,
    scale: Scale<'w>,
    first: usize,
    outer: usize,
    inner: usize,
}

#[derive(Clone)]
enum Data<'w> {
    Dense(&'w [u8], DType),
    Bitmask(&'w Bitmask, DType),
    /// Rows of the transpose or of a weight with scales: where each starts, columns, values.
    Lists(std::sync::Arc<(Vec<usize>, Vec<u32>, Vec<f32>)>),
}

fn number(dtype: DType, bytes: &[u8], i: usize) -> f32 {
    let two = |i: usize| [bytes[2 * i], bytes[2 * i + 1]];
    match dtype {
        DType::F16 => f16::from_le_bytes(two(i)).to_f32(),
        DType::BF16 => bf16::from_le_bytes(two(i)).to_f32(),
        _ => f32::from_le_bytes(std::array::from_fn(|b| bytes[4 * i + b])),
    }
}

fn scaled<'w>(bits: &Bitmask, weight: &Weight) -> Data<'w> {
    let values = weight.stored_f32().unwrap_or_default();
    let starts = (0..bits.rows).map(|r| bits.row_start(r));
    let starts = starts.chain([values.len()]).collect();
    let columns = (0..bits.rows).flat_map(|r| bits.row_columns(r).map(|c| c as u32));
    Data::Lists(std::sync::Arc::new((starts, columns.collect(), values)))
}

impl<'w> Matrix<'w> {
    /// The weight, of a floating-point dtype or with scales, transposed when `transpose`.
    pub fn new(weight: &'w Weight, transpose: bool, scale: Scale<'w>) -> Matrix<'w> {
        let (rows, cols) = weight.matrix();
        let dtype = weight.dtype();
        let mut matrix = Matrix {
            data: match (weight.encoding(), weight.scales()) {
                (Encoding::Dense(bytes), _) => Data::Dense(bytes, dtype),
                (Encoding::Bitmask(bits), None) => Data::Bitmask(bits, dtype),
                (Encoding::Bitmask(bits), Some(_)) => scaled(bits, weight),
            },
            scale: Scale::All(1.0),
            first: 0,
            outer: rows,
            inner: cols,
        };
        if transpose {
            matrix = matrix.transposed();
        }
        Matrix { scale, ..matrix }
    }

    fn transposed(self) -> Matrix<'w> {
        let mut starts = vec![0; self.inner + 1];
        for r in 0..self.outer {
            self.visit(r, 0..self.inner, |c, _| starts[c + 1] += 1);
        }
        for c in 0..self.inner {
            starts[c + 1] += starts[c];
        }
        let total = starts[self.inner];
        let (mut columns, mut values) = (vec![0; total], vec![0.0; total]);
        let mut next = starts.clone();
        for r in 0..self.outer {
            self.visit(r, 0..self.inner, |c, v| {
                (columns[next[c]], values[next[c]]) = (r as u32, v);
                next[c] += 1;
            });
        }
        Matrix {
            data: Data::Lists(std::sync::Arc::new((starts, columns, values))),
            outer: self.inner,
            inner: self.outer,
            ..self
        }
    }

    /// Rows of one group: `rows` of them from `first` on.
    pub fn part(&self, first: usize, rows: usize) -> Matrix<'w> {
        Matrix {
            data: self.data.clone(),
            first: self.first + first,
            outer: rows,
            ..*self
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.outer, self.inner)
    }

    /// Every element, row-major.
    pub fn dense(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.outer * self.inner];
        for (r, out) in out.chunks_exact_mut(self.inner.max(1)).enumerate() {
            self.visit(r, 0..self.inner, |c, v| out[c] = v);
        }
        out
    }
}

impl MatrixRows for Matrix<'_> {
    fn visit(&self, row: usize, columns: Range<usize>, mut f: impl FnMut(usize, f32)) {
        let row = self.first + row;
        let scale = self.scale.of(row);
        let mut give = |c: usize, v: f32| {
            if v != 0.0 {
                f(c, v * scale);
            }
        };
        match &self.data {
            Data::Dense(bytes, DType::F32) => {
                let row = &bytes[row * self.inner * 4..][..self.inner * 4];
                let values = row[columns.start * 4..columns.end * 4].as_chunks::<4>().0;
                for (c, v) in columns.zip(values) {
                    give(c, f32::from_le_bytes(*v));
                }
            }
            Data::Dense(bytes, dtype) => {
                let from = row * self.inner;
                for c in columns {
                    give(c, number(*dtype, bytes, from + c));
                }
            }
            Data::Bitmask(bits, dtype) => {
                let mask = bits.mask_row(row);
                let (first, skip) = (columns.start / 8, columns.start % 8);
                let ones = |b: &[u8]| b.iter().map(|b| b.count_ones() as usize).sum::<usize>();
                let mut at = bits.row_start(row) + ones(&mask[..first]);
                for (i, &byte) in mask.iter().enumerate().skip(first) {
                    if i * 8 >= columns.end {
                        break;
                    }
                    let mut left = byte;
                    if i == first && skip > 0 {
                        at += (byte & ((1 << skip) - 1)).count_ones() as usize;
                        left &= 0xff << skip;
                    }
                    while left != 0 {
                        let c = i * 8 + left.trailing_zeros() as usize;
                        if c >= columns.end {
                            break;
                        }
                        left &= left - 1;
                        give(c, number(*dtype, &bits.values, at));
                        at += 1;
                    }
                }
            }
            Data::Lists(lists) => {
                let (starts, list, values) = &**lists;
                let range = starts[row]..starts[row + 1];
                let list = &list[range.clone()];
                let from = list.partition_point(|c| (*c as usize) < columns.start);
                let to = list.partition_point(|c| (*c as usize) < columns.end);
                for (c, v) in list[from..to].iter().zip(&values[range][from..to]) {
                    give(*c as usize, *v);
                }
            }
        }
    }
}

/// Takes in what a weight is, for the name of what is made from it.
pub fn hash_weight(weight: &Weight, hash: &mut Hash) {
    hash.write(format!("{}{:?}", weight.dtype(), weight.shape()).as_bytes());
    match weight.encoding() {
        Encoding::Dense(bytes) => hash.write(bytes),
        Encoding::Bitmask(bits) => {
            hash.write(&bits.mask);
            hash.write(&bits.values);
            if let Some(scales) = weight.scales() {
                hash.write(&scales.group.to_le_bytes());
                hash.write(&scales.values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(matrix: &Matrix<'_>, columns: Range<usize>) -> Vec<Vec<(usize, f32)>> {
        let row = |r: usize| {
            let mut list = Vec::new();
            matrix.visit(r, columns.clone(), |c, v| list.push((c, v)));
            list
        };
        (0..matrix.shape().0).map(row).collect()
    }

    #[test]
    fn rows_agree_between_encodings_dtypes_transposition_and_parts() {
        let values: Vec<f32> = (0..7 * 37)
            .map(|i| if i % 3 == 0 { 0.0 } else { (i % 50) as f32 })
            .collect();
        let dense = Weight::from_f32(&[7, 37], &values);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let dense = dense.to_dtype(dtype).unwrap();
            let sparse = dense.encode();
            for columns in [0..37, 0..0, 3..4, 8..16, 5..37, 9..30] {
                let of = |w| rows(&Matrix::new(w, false, Scale::All(2.0)), columns.clone());
                assert_eq!(of(&dense), of(&sparse), "{columns:?}");
                let want = |r: usize| {
                    let list = columns.clone().map(|c| (c, 2.0 * values[r * 37 + c]));
                    list.filter(|v| v.1 != 0.0).collect::<Vec<_>>()
                };
                assert_eq!(of(&sparse), (0..7).map(want).collect::<Vec<_>>());
            }
            let turned = Matrix::new(&sparse, true, Scale::All(1.0));
            assert_eq!(turned.shape(), (37, 7));
            let back = turned.dense();
            assert!((0..7 * 37).all(|i| back[i % 37 * 7 + i / 37] == values[i]));
            let part = turned.part(30, 7);
            assert_eq!(part.dense(), back[30 * 7..]);
        }
    }
}
