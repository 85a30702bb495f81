//! Row-major matrices of f64 and their products, summed in an order that does not depend on threads.

use crate::{Error, Layer, Result};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use lacuna::Weight;
use rayon::prelude::*;

/// Rows that one task works on.
pub(crate) const ROWS: usize = 48;

/// A row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f64>,
}

impl Matrix {
    /// `data` is `rows * cols` long.
    pub fn new(rows: usize, cols: usize, data: Vec<f64>) -> Matrix {
        debug_assert_eq!(data.len(), rows * cols);
        Matrix { rows, cols, data }
    }

    pub fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, vec![0.0; rows * cols])
    }

    /// The values of a weight, output features by input features.
    pub fn of(weight: &Weight) -> Matrix {
        let (rows, cols) = weight.matrix();
        let values = weight.to_f32().unwrap_or_default();
        Matrix::new(rows, cols, values.iter().map(|&v| f64::from(v)).collect())
    }

    /// A weight of the layer's shape and dtype.
    pub fn to_weight(&self, layer: &Layer<'_>) -> Result<Weight> {
        self.shaped(layer, layer.weight.shape())
    }

    /// A weight of this matrix's shape in the layer's dtype.
    pub fn to_stored(&self, layer: &Layer<'_>) -> Result<Weight> {
        self.shaped(layer, &[self.rows, self.cols])
    }

    /// A value that is not 0 stays so where the dtype has a number small enough.
    fn shaped(&self, layer: &Layer<'_>, shape: &[usize]) -> Result<Weight> {
        let refuse = |what: String| {
            Error::Runtime(lacuna::Error::Weight {
                weight: layer.name.to_owned(),
                what,
            })
        };
        let values: Vec<f32> = self.data.iter().map(|&v| v as f32).collect();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(refuse(format!("element {at} became {}", self.data[at])));
        }
        let weight = Weight::from_f32(shape, &values);
        weight.to_dtype(layer.weight.dtype()).map_err(refuse)
    }

    /// Columns become rows.
    pub fn transposed(&self) -> Matrix {
        let at = (0..self.cols).flat_map(|c| (0..self.rows).map(move |r| (r, c)));
        let data = at.map(|(r, c)| self.data[r * self.cols + c]).collect();
        Matrix::new(self.cols, self.rows, data)
    }

    pub fn view(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
    }

    pub fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols..][..self.cols]
    }

    /// The product with another matrix.
    pub fn times(&self, other: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(self.rows, other.cols);
        let parts = out.data.par_chunks_mut(ROWS * other.cols.max(1));
        parts
            .zip(chunked(&self.data, self.cols))
            .for_each(|(out, part)| product(out, part, other, part.len() / self.cols.max(1)));
        out
    }
}

/// The rows of a row-major matrix in parts for one task each.
pub(crate) fn chunked<T: Sync>(data: &[T], cols: usize) -> rayon::slice::Chunks<'_, T> {
    data.par_chunks(ROWS * cols.max(1))
}

/// As [`chunked`], to write.
pub(crate) fn chunked_mut<T: Send>(data: &mut [T], cols: usize) -> rayon::slice::ChunksMut<'_, T> {
    data.par_chunks_mut(ROWS * cols.max(1))
}

/// `out = a b` for `count` rows of `a`, on this thread.
pub(crate) fn product(out: &mut [f64], a: &[f64], b: &Matrix, count: usize) {
    matmul(
        MatMut::from_row_major_slice_mut(out, count, b.cols),
        Accum::Replace,
        MatRef::from_row_major_slice(a, count, b.rows),
        b.view(),
        1.0,
        Par::Seq,
    );
}
