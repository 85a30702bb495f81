//! Second moments of the inputs of a layer, and what solvers make of them.

use crate::matrix::{Matrix, chunked};
use crate::{Error, Result};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Llt, SelfAdjointEigen};
use faer::{Accum, MatMut, MatRef, Par, Side};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Columns of a panel of `XᵀX`; fixed, so that sums do not depend on threads.
const PANEL: usize = 64;

/// Sums over the inputs `x` of a layer: `Σ x`, and `Σ x xᵀ` or its diagonal alone, in f64.
#[derive(Clone, Debug)]
pub struct Moments {
    width: usize,
    tokens: usize,
    sums: Vec<f64>,
    diagonal: Vec<f64>,
    /// The lower triangle, row-major in a square; empty where only the diagonal is kept.
    full: Vec<f64>,
}

impl Moments {
    /// No sum yet over inputs of so many features.
    pub fn new(width: usize, full: bool) -> Moments {
        Moments {
            width,
            tokens: 0,
            sums: vec![0.0; width],
            diagonal: vec![0.0; width],
            full: vec![0.0; if full { width * width } else { 0 }],
        }
    }

    /// Adds inputs, one after the other. Products of a call are summed in f32, calls in f64.
    ///
    /// # Errors
    /// When the values are not whole inputs or one is not finite; the index of the first is given.
    pub fn add(&mut self, inputs: &[f32]) -> Result<(), String> {
        let width = self.width;
        if width == 0 || !inputs.len().is_multiple_of(width) {
            return Err(format!("{} values are no inputs of {width}", inputs.len()));
        }
        if let Some(at) = inputs.iter().position(|x| !x.is_finite()) {
            return Err(format!(
                "feature {} of token {} is {}",
                at % width,
                at / width,
                inputs[at]
            ));
        }
        let tokens = inputs.len() / width;
        self.tokens += tokens;
        for row in inputs.chunks_exact(width) {
            let sums = self.sums.iter_mut().zip(&mut self.diagonal);
            for ((sum, square), &x) in sums.zip(row) {
                *sum += f64::from(x);
                *square += f64::from(x) * f64::from(x);
            }
        }
        if self.full.is_empty() {
            return Ok(());
        }
        let x = MatRef::from_row_major_slice(inputs, tokens, width);
        self.full
            .par_chunks_mut(PANEL * width)
            .enumerate()
            .for_each(|(panel, rows)| {
                let (first, count) = (panel * PANEL, rows.len() / width);
                let columns = first + count;
                let mut part = vec![0f32; count * columns];
                matmul(
                    MatMut::from_row_major_slice_mut(&mut part, count, columns),
                    Accum::Replace,
                    x.subcols(first, count).transpose(),
                    x.subcols(0, columns),
                    1.0,
                    Par::Seq,
                );
                for (row, part) in rows.chunks_exact_mut(width).zip(part.chunks_exact(columns)) {
                    for (sum, &p) in row.iter_mut().zip(part) {
                        *sum += f64::from(p);
                    }
                }
            });
        Ok(())
    }

    /// Inputs that were added.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `Σ x²` of each feature.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// The mean of each feature; 0 where nothing was added.
    pub fn means(&self) -> Vec<f64> {
        let n = self.tokens.max(1) as f64;
        self.sums.iter().map(|s| s / n).collect()
    }

    /// `Σ (x - mean)²` of each feature.
    pub fn spreads(&self) -> Vec<f64> {
        let n = self.tokens.max(1) as f64;
        let both = self.sums.iter().zip(&self.diagonal);
        both.map(|(s, q)| (q - s * s / n).max(0.0)).collect()
    }

    /// `Σ x xᵀ`, both triangles; `None` where only the diagonal was kept.
    pub(crate) fn square(&self) -> Option<Matrix> {
        let n = self.width;
        if self.full.is_empty() && n > 0 {
            return None;
        }
        let mut square = Matrix::new(n, n, self.full.clone());
        for r in 0..n {
            for c in r + 1..n {
                square.data[r * n + c] = square.data[c * n + r];
            }
        }
        Some(square)
    }
}

/// Second moments `H = Σ x xᵀ + c I` with damping `c`, and their factors, which are made when first asked for.
/// A feature that is always 0 has only the damping: Wanda and SparseGPT take its weights first, and a refit leaves them
/// alone.
#[derive(Debug)]
pub struct Gram {
    /// `Σ x²` of each feature, without damping.
    diagonal: Vec<f64>,
    /// `H`, where the whole of it was collected.
    damped: Option<Matrix>,
    factor: OnceLock<Result<Matrix, String>>,
    eigen: OnceLock<Result<Eigen, String>>,
    correlations: OnceLock<Matrix>,
}

/// `D^-½ H D^-½ = Q Λ Qᵀ` with `D` the diagonal of `H`.
#[derive(Debug)]
pub(crate) struct Eigen {
    /// `Q`, an eigenvector a column.
    pub vectors: Vec<f32>,
    /// `Λ`.
    pub values: Vec<f64>,
}

impl Gram {
    /// Damps by `damping` of the mean of the diagonal.
    ///
    /// # Errors
    /// When nothing was added, or every input was 0.
    pub fn new(moments: &Moments, damping: f64) -> Result<Gram, String> {
        let n = moments.width.max(1) as f64;
        let mean = moments.diagonal.iter().sum::<f64>() / n;
        if !mean.is_finite() || mean <= 0.0 {
            return Err(format!(
                "the inputs are all 0 ({} tokens): nothing to calibrate on",
                moments.tokens
            ));
        }
        let mut damped = moments.square();
        if let Some(square) = &mut damped {
            for i in 0..square.rows {
                square.data[i * square.cols + i] += damping * mean;
            }
        }
        Ok(Gram {
            diagonal: moments.diagonal.clone(),
            damped,
            factor: OnceLock::new(),
            eigen: OnceLock::new(),
            correlations: OnceLock::new(),
        })
    }

    /// `Σ x²` of each feature, without damping.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// `H`.
    pub(crate) fn damped(&self) -> Result<&Matrix, String> {
        let none = || "only the diagonal of the second moments was collected".to_owned();
        self.damped.as_ref().ok_or_else(none)
    }

    /// The upper triangular `U` with `H⁻¹ = Uᵀ U`.
    pub(crate) fn inverse_factor(&self) -> Result<&Matrix, String> {
        let make = || {
            let h = self.damped()?;
            let singular = |_| {
                "the second moments are singular: more windows, or a larger --damping".to_owned()
            };
            let inverse = Llt::new(h.view(), Side::Lower).map_err(singular)?.inverse();
            let factor = Llt::new(inverse.as_ref(), Side::Lower).map_err(singular)?;
            let (lower, n) = (factor.L(), h.rows);
            let mut upper = Matrix::zeros(n, n);
            for c in 0..n {
                for r in 0..=c {
                    upper.data[r * n + c] = lower[(c, r)];
                }
            }
            match upper.data.iter().all(|v| v.is_finite()) {
                true => Ok(upper),
                false => Err("the inverse of the second moments is not finite".into()),
            }
        };
        self.factor.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// The square root of the diagonal of `H`: what weights are multiplied by where
    /// [`correlations`](Gram::correlations) take the place of `H`.
    pub(crate) fn scale(&self) -> Result<Vec<f64>, String> {
        let h = self.damped()?;
        let scale: Vec<f64> = (0..h.rows).map(|i| h.data[i * h.cols + i].sqrt()).collect();
        match scale.iter().all(|s| *s > 0.0) {
            true => Ok(scale),
            false => Err("a feature is always 0: give a --damping above 0".into()),
        }
    }

    /// `D^-½ H D^-½`.
    pub(crate) fn correlations(&self) -> Result<&Matrix, String> {
        let (h, scale) = (self.damped()?, self.scale()?);
        Ok(self.correlations.get_or_init(|| {
            let mut unit = h.clone();
            for (row, a) in unit.data.chunks_exact_mut(h.cols).zip(&scale) {
                for (v, b) in row.iter_mut().zip(&scale) {
                    *v /= a * b;
                }
            }
            unit
        }))
    }

    /// The eigendecomposition of [`correlations`](Gram::correlations).
    pub(crate) fn eigen(&self) -> Result<&Eigen, String> {
        let make = || {
            let unit = self.correlations()?;
            let found = SelfAdjointEigen::new(unit.view(), Side::Lower);
            let found = found.map_err(|e| format!("no eigendecomposition: {e:?}"))?;
            let (vectors, n) = (found.U(), unit.rows);
            let values = (0..n).map(|i| found.S()[i].max(0.0)).collect();
            let at = |i: usize| vectors[(i / n, i % n)] as f32;
            let vectors = (0..n * n).map(at).collect();
            Ok(Eigen { vectors, values })
        };
        self.eigen.get_or_init(make).as_ref().map_err(Clone::clone)
    }
}

/// `Σ_rows d S dᵀ` for rows `d` of a matrix and symmetric `S`: what a change of weights does to the outputs.
pub(crate) fn energy(rows: &Matrix, square: &Matrix) -> f64 {
    let parts: Vec<f64> = chunked(&rows.data, rows.cols)
        .map(|part| {
            let count = part.len() / rows.cols.max(1);
            let mut image = vec![0.0; part.len()];
            crate::matrix::product(&mut image, part, square, count);
            part.iter().zip(&image).map(|(a, b)| a * b).sum()
        })
        .collect();
    parts.iter().sum()
}

impl Gram {
    /// A message about the layer whose moments these are.
    pub(crate) fn refuse(layer: &str, what: String) -> Error {
        Error::Calibration(format!("weight `{layer}`: {what}"))
    }
}
