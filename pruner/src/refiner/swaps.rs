//! SparseSwaps (arXiv 2512.10922): a zero and a weight of a row change places while that helps.

use super::Refiner;
use crate::matrix::Matrix;
use crate::{Result, Task};
use lacuna::Weight;
use rayon::prelude::*;

/// In each row the swap that lowers the error of the outputs most is made, up to 100 times: a weight goes, and one that
/// was gone comes back with its old value. With a pattern, inside a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct SparseSwaps;

const SWAPS: usize = 100;

impl Refiner for SparseSwaps {
    fn name(&self) -> &'static str {
        "sparse-swaps"
    }

    fn refine(&self, task: &Task<'_>, pruned: Weight) -> Result<Weight> {
        let h = task.gram()?.damped().map_err(|e| task.refuse(e))?;
        let (dense, mut pruned) = (Matrix::of(task.layer.weight), Matrix::of(&pruned));
        let cols = dense.cols;
        let largest: Vec<f64> = (0..h.rows)
            .map(|p| {
                let others = h.row(p).iter().enumerate().filter(|(u, _)| *u != p);
                others.map(|(_, v)| v.abs()).fold(0.0, f64::max)
            })
            .collect();
        let gap: Vec<f64> = (dense.data.iter().zip(&pruned.data))
            .map(|(d, p)| d - p)
            .collect();
        let mut images = Matrix::new(dense.rows, cols, gap).times(h);
        let group = task.pattern.map_or(cols, |p| p.of);
        let rows = pruned
            .data
            .par_chunks_exact_mut(cols)
            .zip(images.data.par_chunks_exact_mut(cols));
        rows.zip(dense.data.par_chunks_exact(cols))
            .for_each(|((pruned, image), dense)| {
                let mut row = Row {
                    dense,
                    pruned,
                    image,
                    h,
                    largest: &largest,
                };
                for _ in 0..SWAPS {
                    if !row.swap(group) {
                        break;
                    }
                }
            });
        pruned.to_weight(task.layer)
    }
}

/// A row `w`, its pruned form `ŵ`, and `(w - ŵ) H`.
struct Row<'a> {
    dense: &'a [f64],
    pruned: &'a mut [f64],
    image: &'a mut [f64],
    h: &'a Matrix,
    /// The largest magnitude of each row of `H` off the diagonal.
    largest: &'a [f64],
}

impl Row<'_> {
    /// Makes the best swap, if there is one.
    fn swap(&mut self, group: usize) -> bool {
        let (h, cols) = (self.h, self.dense.len());
        let (mut best, mut pair) = (0.0, None);
        let mut scale = 0.0f64;
        for first in (0..cols).step_by(group) {
            let members = first..(first + group).min(cols);
            // What each weight's going and each zero's coming back change by themselves.
            let mut going = Vec::new();
            let mut coming = Vec::new();
            for i in members {
                let (kept, own) = (self.pruned[i], h.data[i * cols + i]);
                if kept != 0.0 {
                    going.push((2.0 * kept * self.image[i] + kept * kept * own, i));
                } else if self.dense[i] != 0.0 {
                    let w = self.dense[i];
                    coming.push((w * w * own - 2.0 * w * self.image[i], i));
                }
            }
            let by_change =
                |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            going.sort_unstable_by(by_change);
            coming.sort_unstable_by(by_change);
            let widest = coming
                .iter()
                .map(|c| self.dense[c.1].abs())
                .fold(0.0, f64::max);
            scale = scale.max(coming.first().map_or(0.0, |c| c.0.abs()));
            for &(a, p) in &going {
                let kept = self.pruned[p];
                let most = 2.0 * kept.abs() * self.largest[p] * widest;
                let across = h.row(p);
                for &(b, u) in &coming {
                    // The others come back at a higher price, and this is the most that both together save.
                    if a + b - most >= best {
                        break;
                    }
                    let change = a + b - 2.0 * kept * self.dense[u] * across[u];
                    if change < best {
                        (best, pair) = (change, Some((p, u)));
                    }
                }
            }
        }
        let Some((p, u)) = pair.filter(|_| best < -1e-12 * scale) else {
            return false;
        };
        let (kept, back) = (self.pruned[p], self.dense[u]);
        let changes = self.image.iter_mut().zip(h.row(p).iter().zip(h.row(u)));
        changes.for_each(|(image, (hp, hu))| *image += kept * hp - back * hu);
        self.pruned[p] = 0.0;
        self.pruned[u] = back;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vector 7.5: the change that a swap is chosen by is that of the error.
    #[test]
    fn a_swap_lowers_the_error_by_what_the_formula_says() {
        let n = 6;
        let x: Vec<f64> = (0..n * n)
            .map(|i| ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0)
            .collect();
        let x = Matrix::new(n, n, x);
        let mut h = Matrix::zeros(n, n);
        for i in 0..n {
            for j in 0..n {
                h.data[i * n + j] = (0..n).map(|k| x.data[k * n + i] * x.data[k * n + j]).sum();
            }
        }
        let dense = [0.9, -0.3, 0.5, 0.7, -1.1, 0.2];
        let error = |pruned: &[f64]| {
            let gap: Vec<f64> = dense.iter().zip(pruned).map(|(d, p)| d - p).collect();
            crate::calibration::energy(&Matrix::new(1, n, gap), &h)
        };
        let start = [0.9, -0.3, 0.5, 0.0, 0.0, 0.0];
        let gap = dense.iter().zip(&start).map(|(d, p)| d - p).collect();
        let mut image = Matrix::new(1, n, gap).times(&h).data;
        let mut pruned = start.to_vec();
        let largest = vec![f64::INFINITY; n];
        let mut least = error(&start);
        for p in 0..3 {
            for u in 3..6 {
                let mut other = start;
                (other[p], other[u]) = (0.0, dense[u]);
                least = least.min(error(&other));
            }
        }
        let mut row = Row {
            dense: &dense,
            pruned: &mut pruned,
            image: &mut image,
            h: &h,
            largest: &largest,
        };
        assert!(row.swap(n));
        assert!((error(&pruned) - least).abs() < 1e-12 * least);
        let fresh = Matrix::new(
            1,
            n,
            dense.iter().zip(&pruned).map(|(d, p)| d - p).collect(),
        );
        for (kept, fresh) in image.iter().zip(&fresh.times(&h).data) {
            assert!((kept - fresh).abs() < 1e-12);
        }
    }
}
