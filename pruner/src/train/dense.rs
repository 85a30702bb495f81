//! Linear layers: rows of inputs times a matrix.

use super::parts::parts;
use lacuna::{Isa, Product};
use rayon::prelude::*;

/// Columns of a packed block of the matrix.
pub(super) const BLOCK: usize = 32;
/// Rows of a part of a product.
const ROWS: usize = 48;

/// A linear layer's sizes: `y [rows, outputs] = x [rows, inputs] * w`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dense {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// The matrix is `[outputs, inputs]` and not `[inputs, outputs]`.
    pub transposed: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the bias.
    pub beta: f32,
}

impl Dense {
    /// Entry `(input, output)` of the matrix.
    fn at(&self, input: usize, output: usize) -> usize {
        match self.transposed {
            true => output * self.inputs + input,
            false => input * self.outputs + output,
        }
    }

    /// The matrix times `alpha` in blocks of `columns` by `depth`: `[block][depth][column of the block]`.
    fn pack(
        &self,
        weight: &[f32],
        columns: usize,
        depth: usize,
        at: impl Fn(usize, usize) -> usize + Sync,
    ) -> Vec<f32> {
        let mut packed = vec![0.0; columns.div_ceil(BLOCK) * depth * BLOCK];
        packed
            .par_chunks_mut((depth * BLOCK).max(1))
            .enumerate()
            .for_each(|(b, to)| {
                for k in 0..depth {
                    for j in 0..BLOCK.min(columns - b * BLOCK) {
                        to[k * BLOCK + j] = self.alpha * weight[at(k, b * BLOCK + j)];
                    }
                }
            });
        packed
    }

    /// The matrix as a right operand.
    pub fn packed(&self, weight: &[f32]) -> Vec<f32> {
        self.pack(weight, self.outputs, self.inputs, |k, j| self.at(k, j))
    }

    /// Its transpose.
    pub fn packed_back(&self, weight: &[f32]) -> Vec<f32> {
        self.pack(weight, self.inputs, self.outputs, |k, j| self.at(j, k))
    }

    pub fn forward(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let packed = self.packed(weight);
        product(isa, x, self.inputs, &packed, self.outputs, y);
        let Some(bias) = bias else { return };
        let bias: Vec<f32> = bias.iter().map(|b| b * self.beta).collect();
        for y in y.chunks_exact_mut(self.outputs) {
            // A single number is that of every output.
            y.iter_mut()
                .zip(bias.iter().cycle())
                .for_each(|(y, b)| *y += b);
        }
    }

    /// The input's gradient.
    pub fn backward_input(&self, isa: Isa, weight: &[f32], dy: &[f32], dx: &mut [f32]) {
        let packed = self.packed_back(weight);
        product(isa, dy, self.outputs, &packed, self.inputs, dx);
    }

    /// Adds the gradients of matrix and bias to theirs.
    pub fn backward_weight(
        &self,
        isa: Isa,
        x: &[f32],
        dy: &[f32],
        dweight: &mut [f32],
        dbias: Option<&mut [f32]>,
    ) {
        let (left, right, rows, cols) = match self.transposed {
            true => (dy, x, self.outputs, self.inputs),
            false => (x, dy, self.inputs, self.outputs),
        };
        let scaled: Vec<f32>;
        let left = match self.alpha == 1.0 {
            true => left,
            false => {
                scaled = left.iter().map(|x| x * self.alpha).collect();
                &scaled
            }
        };
        let each = rows.div_ceil(parts(rows).len().max(1)).max(1);
        dweight
            .par_chunks_mut((each * cols).max(1))
            .enumerate()
            .for_each(|(i, to)| {
                let product = Product {
                    rows: to.len() / cols.max(1),
                    cols,
                    steps: &[[i * each, 0]],
                    depth: self.rows,
                    a: [1, rows],
                    b: [cols, BLOCK],
                    c: cols,
                    accumulate: true,
                };
                product.run(isa, left, right, to);
            });
        if let Some(dbias) = dbias {
            let len = dbias.len().max(1);
            for dy in dy.chunks_exact(self.outputs) {
                for (j, d) in dy.iter().enumerate() {
                    dbias[j % len] += self.beta * d;
                }
            }
        }
    }
}

fn product(isa: Isa, a: &[f32], depth: usize, packed: &[f32], cols: usize, c: &mut [f32]) {
    c.par_chunks_mut((ROWS * cols).max(1))
        .enumerate()
        .for_each(|(i, c)| {
            let product = Product {
                rows: c.len() / cols.max(1),
                cols,
                steps: &[[i * ROWS * depth, 0]],
                depth,
                a: [depth, 1],
                b: [BLOCK, depth * BLOCK],
                c: cols,
                accumulate: false,
            };
            product.run(isa, a, packed, c);
        });
}
