//! A matrix as it lies in the bytes: plain, or a mask and the values of its set bits.

use crate::{Error, Floats, Reader};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    columns: usize,
    /// A row's bits begin at a whole byte; empty where every value is there.
    mask: &'a [u8],
    values: Floats<'a>,
}

impl<'a> Matrix<'a> {
    pub fn read(reader: &mut Reader<'a>, rows: usize, columns: usize) -> Result<Matrix<'a>, Error> {
        let (mask, count): (&[u8], usize) = match reader.u32()? {
            0 => (&[], rows.saturating_mul(columns)),
            1 => {
                let stride = columns.div_ceil(8);
                let mask = reader.take(rows.saturating_mul(stride))?;
                // Bits behind the last column count for nothing.
                let bits = |(i, byte): (usize, &u8)| {
                    (byte & in_row(columns, i % stride)).count_ones() as usize
                };
                (mask, mask.iter().enumerate().map(bits).sum())
            }
            other => return Err(Error::Encoding(other)),
        };
        let values = reader.floats(count)?;
        Ok(Matrix {
            columns,
            mask,
            values,
        })
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Values that are stored.
    pub fn stored(&self) -> usize {
        self.values.0.len()
    }

    /// Adds the product with `x` to `y`.
    pub fn add(&self, x: &[f32], y: &mut [f32]) {
        let mut values = self.values.0.iter().map(|v| f32::from_le_bytes(*v));
        if self.mask.is_empty() {
            for y in y {
                *y += x.iter().zip(&mut values).map(|(x, w)| x * w).sum::<f32>();
            }
            return;
        }
        let stride = self.columns.div_ceil(8);
        for (y, row) in y.iter_mut().zip(self.mask.chunks_exact(stride)) {
            let mut sum = 0.0;
            for (i, byte) in row.iter().enumerate() {
                let mut bits = byte & in_row(self.columns, i);
                while bits != 0 {
                    let column = 8 * i + bits.trailing_zeros() as usize;
                    if let (Some(w), Some(x)) = (values.next(), x.get(column)) {
                        sum += w * x;
                    }
                    bits &= bits - 1;
                }
            }
            *y += sum;
        }
    }
}

/// The bits of byte `i` of a row that stand for columns.
fn in_row(columns: usize, i: usize) -> u8 {
    match columns.saturating_sub(8 * i) {
        0 => 0,
        n if n >= 8 => 0xff,
        n => (1 << n) - 1,
    }
}
