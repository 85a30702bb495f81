//! A dense product over strided operands: what the gradients of convolutions and linear layers are made of.

use super::isa::Isa;
use super::simd::{LANES, Simd, first};

/// Columns of a block of the right operand.
pub const BLOCK: usize = 2 * LANES;

/// `c[i][j] (+)= Σ_s Σ_k a[steps[s][0] + i * a[0] + k * a[1]] * b[steps[s][1] + k * b[0] + (j / 32) * b[1] + j % 32]`.
///
/// Every sum is taken in the order of `s` and `k`, from what `c` holds or from zero: it does not depend on how
/// rows and columns are cut into tiles.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Rows of `c`.
    pub rows: usize,
    /// Columns of `c`.
    pub cols: usize,
    /// Offsets into `a` and `b` of each part of the sum.
    pub steps: &'a [[usize; 2]],
    /// Products of each part of the sum.
    pub depth: usize,
    /// Strides of rows and of depth in `a`.
    pub a: [usize; 2],
    /// Strides of depth and of blocks of [`BLOCK`] columns in `b`.
    pub b: [usize; 2],
    /// Stride of rows in `c`.
    pub c: usize,
    /// Add to what `c` holds.
    pub accumulate: bool,
}

impl Product<'_> {
    /// Computes the product.
    ///
    /// # Panics
    /// When a stride leads out of a slice, or rows of `c` overlap.
    pub fn run(&self, isa: Isa, a: &[f32], b: &[f32], c: &mut [f32]) {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        let blocks = (self.cols - 1) / BLOCK;
        let width = self.cols.min(BLOCK);
        let tail = (self.cols - 1) % BLOCK + 1;
        let (own_a, own_b) = (
            last(self.rows, self.a[0]) + last(self.depth, self.a[1]),
            last(self.depth, self.b[0])
                + (blocks * self.b[1] + tail).max(blocks.saturating_sub(1) * self.b[1] + width),
        );
        if self.depth > 0 {
            for &[from_a, from_b] in self.steps {
                assert!(from_a + own_a < a.len(), "the left operand ends early");
                assert!(from_b + own_b <= b.len(), "the right operand ends early");
            }
        }
        assert!(self.rows == 1 || self.c >= self.cols, "rows overlap");
        let end = last(self.rows, self.c) + self.cols;
        assert!(end <= c.len(), "the result ends early");
        assert!(isa.is_available(), "this CPU has no {isa}");
        // SAFETY: every offset that the strides make lies within its slice, and the CPU has the instructions.
        unsafe { isa.product(self, a.as_ptr(), b.as_ptr(), c.as_mut_ptr()) }
    }

    /// The product, tile by tile.
    ///
    /// # Safety
    /// The CPU has the features of `S`; every offset that the strides make lies within its buffer.
    #[inline(always)]
    pub(super) unsafe fn tiles<S: Simd>(&self, a: *const f32, b: *const f32, c: *mut f32) {
        let mut j = 0;
        while j < self.cols {
            let n = (self.cols - j).min(BLOCK);
            // SAFETY: the caller's promise; a block lies within the columns.
            unsafe {
                let (b, c) = (b.add(j / BLOCK * self.b[1]), c.add(j));
                match (n > LANES, n.is_multiple_of(LANES)) {
                    (true, true) => self.block::<S, 2, true>(a, b, c, n),
                    (true, false) => self.block::<S, 2, false>(a, b, c, n),
                    (false, true) => self.block::<S, 1, true>(a, b, c, n),
                    (false, false) => self.block::<S, 1, false>(a, b, c, n),
                }
            }
            j += n;
        }
    }

    /// The rows of one block of columns.
    #[inline(always)]
    unsafe fn block<S: Simd, const NV: usize, const FULL: bool>(
        &self,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        n: usize,
    ) {
        let mut i = 0;
        while i < self.rows {
            let left = self.rows - i;
            // SAFETY: the caller's promise; a tile has no more rows than are left.
            unsafe {
                let (a, c) = (a.add(i * self.a[0]), c.add(i * self.c));
                i += match left {
                    16.. if S::MANY && NV == 1 => self.tile::<S, 16, NV, FULL>(a, b, c, n),
                    12.. if S::MANY && NV == 2 => self.tile::<S, 12, NV, FULL>(a, b, c, n),
                    8.. if S::MANY => self.tile::<S, 8, NV, FULL>(a, b, c, n),
                    4.. if S::MANY || NV == 1 => self.tile::<S, 4, NV, FULL>(a, b, c, n),
                    2.. => self.tile::<S, 2, NV, FULL>(a, b, c, n),
                    _ => self.tile::<S, 1, NV, FULL>(a, b, c, n),
                };
            }
        }
    }

    /// One tile in registers. Returns its rows.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const FULL: bool>(
        &self,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        n: usize,
    ) -> usize {
        let mask = first(n - (NV - 1) * LANES);
        // SAFETY: the caller's promise; lanes behind the columns are masked off.
        unsafe {
            let load = |p: *const f32, v: usize| match FULL || v + 1 < NV {
                true => S::load(p.add(v * LANES)),
                false => S::load_mask(p.add(v * LANES), mask),
            };
            let mut sums = [[S::splat(0.0); NV]; MR];
            if self.accumulate {
                for (r, row) in sums.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = load(c.add(r * self.c), v);
                    }
                }
            }
            for &[from_a, from_b] in self.steps {
                // A pointer for every four rows, so that addresses fit the registers.
                let mut rows: [*const f32; 4] =
                    std::array::from_fn(|g| a.add(from_a).wrapping_add(4 * g * self.a[0]));
                let mut columns = b.add(from_b);
                for _ in 0..self.depth {
                    let right: [S::V; NV] = std::array::from_fn(|v| load(columns, v));
                    for (r, row) in sums.iter_mut().enumerate() {
                        let left = S::splat(*rows[r / 4].add(r % 4 * self.a[0]));
                        for (sum, right) in row.iter_mut().zip(right) {
                            *sum = S::fma(left, right, *sum);
                        }
                    }
                    for row in &mut rows {
                        *row = row.wrapping_add(self.a[1]);
                    }
                    columns = columns.wrapping_add(self.b[0]);
                }
            }
            for (r, row) in sums.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    let to = c.add(r * self.c + v * LANES);
                    match FULL || v + 1 < NV {
                        true => S::store(to, sum),
                        false => S::store_mask(to, sum, mask),
                    }
                }
            }
        }
        MR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 32_768.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn strided_products_are_those_of_loops() {
        for isa in Isa::available() {
            for (rows, cols, depth, steps) in [
                (1, 1, 1, 1),
                (7, 10, 5, 3),
                (16, 16, 9, 2),
                (29, 33, 4, 1),
                (13, 70, 3, 3),
                (12, 64, 0, 2),
            ] {
                for accumulate in [false, true] {
                    let (stride_a, stride_b, stride_c) =
                        ([3, 2], [40, depth * 40 * steps + 7], cols + 2);
                    let offsets: Vec<[usize; 2]> =
                        (0..steps).map(|s| [s * 5, s * depth * 40]).collect();
                    let product = Product {
                        rows,
                        cols,
                        steps: &offsets,
                        depth,
                        a: stride_a,
                        b: stride_b,
                        c: stride_c,
                        accumulate,
                    };
                    let a = numbers(rows * 3 + depth * 2 + steps * 5, 1);
                    let b = numbers(stride_b[1] * (cols / 32 + 1) + 64, 2);
                    let mut c = numbers(rows * stride_c, 3);
                    let before = c.clone();
                    product.run(isa, &a, &b, &mut c);
                    for i in 0..rows {
                        for j in 0..stride_c {
                            let mut sum = 0.0f64;
                            if accumulate || j >= cols {
                                sum = before[i * stride_c + j].into();
                            }
                            for &[from_a, from_b] in offsets.iter().filter(|_| j < cols) {
                                for k in 0..depth {
                                    let left = a[from_a + i * 3 + k * 2];
                                    let right = b[from_b + k * 40 + j / 32 * stride_b[1] + j % 32];
                                    sum += f64::from(left) * f64::from(right);
                                }
                            }
                            let found = f64::from(c[i * stride_c + j]);
                            assert!(
                                (found - sum).abs() < 1e-4,
                                "{isa} {rows}x{cols}x{depth}: [{i}][{j}] is {found}, not {sum}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "the left operand ends early")]
    fn a_stride_out_of_the_operand_is_caught() {
        let product = Product {
            rows: 4,
            cols: 4,
            steps: &[[0, 0]],
            depth: 4,
            a: [4, 1],
            b: [4, 0],
            c: 4,
            accumulate: false,
        };
        product.run(Isa::Scalar, &[0.0; 15], &[0.0; 16], &mut [0.0; 16]);
    }
}
