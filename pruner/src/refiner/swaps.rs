//! SparseSwaps (arXiv 2512.10922): a zero and a weight of a row change places while that helps.

use super::Refiner;
use crate::matrix::Matrix;
use crate::{Result, Task};
use lacuna::Weight;
use rayon::prelude::*;

/// In each row the swap that lowers the error of the outputs most is made, up to 100 times: a weight goes, and one that
/// was gone comes back with its old value. With a pattern, inside a group. A thread holds an f32 for each pair of its row: of
/// `n` inputs, half of them left, `n²` bytes.
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
                let mut row = Row::new(dense, pruned, image, h, group);
                for _ in 0..SWAPS {
                    if !row.swap() {
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
    groups: Vec<Group>,
}

/// Inputs that change places with each other alone.
#[derive(Default)]
struct Group {
    /// Those that are left, and those that are gone.
    left: Vec<usize>,
    gone: Vec<usize>,
    /// What each pair saves together: for each that is left a row.
    pairs: Vec<f32>,
}

/// Pairs are ranked in f32; the change by the best is then computed in full.
impl<'a> Row<'a> {
    fn new(
        dense: &'a [f64],
        pruned: &'a mut [f64],
        image: &'a mut [f64],
        h: &'a Matrix,
        group: usize,
    ) -> Row<'a> {
        let mut row = Row {
            dense,
            pruned,
            image,
            h,
            groups: Vec::new(),
        };
        let make = |first: usize| {
            let members = first..(first + group).min(dense.len());
            let (left, gone): (Vec<usize>, _) = members.partition(|&i| row.pruned[i] != 0.0);
            let pairs = left.iter().flat_map(|&p| gone.iter().map(move |&u| (p, u)));
            Group {
                pairs: pairs.map(|(p, u)| row.saved(p, u) as f32).collect(),
                left,
                gone,
            }
        };
        let firsts = (0..dense.len()).step_by(group.max(1));
        row.groups = firsts.map(make).collect();
        row
    }

    /// What a weight's going and a zero's coming back save together, besides what each changes by itself.
    fn saved(&self, p: usize, u: usize) -> f64 {
        2.0 * self.pruned[p] * self.dense[u] * self.h.row(p)[u]
    }

    /// What the error changes by when a weight goes, and when a zero comes back.
    fn going(&self, p: usize) -> f64 {
        let kept = self.pruned[p];
        2.0 * kept * self.image[p] + kept * kept * self.h.row(p)[p]
    }

    fn coming(&self, u: usize) -> f64 {
        match self.dense[u] {
            0.0 => f64::INFINITY,
            w => w * w * self.h.row(u)[u] - 2.0 * w * self.image[u],
        }
    }

    /// Makes the best swap, if there is one.
    fn swap(&mut self) -> bool {
        let (mut best, mut found) = (0.0f32, None);
        let mut scale = 0.0f64;
        for (at, group) in self.groups.iter().enumerate() {
            let coming: Vec<f64> = group.gone.iter().map(|&u| self.coming(u)).collect();
            let least = coming.iter().copied().fold(f64::INFINITY, f64::min);
            if !least.is_finite() {
                continue;
            }
            scale = scale.max(least.abs());
            let coming: Vec<f32> = coming.into_iter().map(|c| c as f32).collect();
            let rows = group.pairs.chunks_exact(coming.len());
            for (i, (&p, pairs)) in group.left.iter().zip(rows).enumerate() {
                let change = self.going(p) as f32 + lowest(&coming, pairs);
                if change < best {
                    let sums = coming.iter().zip(pairs).map(|(c, p)| c - p);
                    let first = sums.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
                    (best, found) = (change, first.map(|f| (at, i, f.0)));
                }
            }
        }
        let Some((at, i, j)) = found else {
            return false;
        };
        let (p, u) = (self.groups[at].left[i], self.groups[at].gone[j]);
        let (kept, back) = (self.pruned[p], self.dense[u]);
        let change = self.going(p) + self.coming(u) - self.saved(p, u);
        if change >= -1e-12 * scale {
            return false;
        }
        let changes = self
            .image
            .iter_mut()
            .zip(self.h.row(p).iter().zip(self.h.row(u)));
        changes.for_each(|(image, (hp, hu))| *image += kept * hp - back * hu);
        self.pruned[p] = 0.0;
        self.pruned[u] = back;
        let mut group = std::mem::take(&mut self.groups[at]);
        (group.left[i], group.gone[j]) = (u, p);
        let across = group.gone.len();
        for (value, &other) in group.pairs[i * across..].iter_mut().zip(&group.gone) {
            *value = self.saved(u, other) as f32;
        }
        let column = group.pairs[j..].iter_mut().step_by(across);
        for (value, &other) in column.zip(&group.left) {
            *value = self.saved(other, p) as f32;
        }
        self.groups[at] = group;
        true
    }
}

/// The lowest difference of two numbers at the same place, in sixteen parts, which compilers do at once.
fn lowest(a: &[f32], b: &[f32]) -> f32 {
    let less = |a: f32, b: f32| if a < b { a } else { b };
    let (x, rest) = a.as_chunks::<16>();
    let (y, last) = b.as_chunks::<16>();
    let mut least = [f32::INFINITY; 16];
    for (x, y) in x.iter().zip(y) {
        for i in 0..16 {
            least[i] = less(x[i] - y[i], least[i]);
        }
    }
    let tail = rest.iter().zip(last).map(|(a, b)| a - b);
    least.into_iter().chain(tail).fold(f32::INFINITY, less)
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
        let mut least = error(&start);
        for p in 0..3 {
            for u in 3..6 {
                let mut other = start;
                (other[p], other[u]) = (0.0, dense[u]);
                least = least.min(error(&other));
            }
        }
        let mut row = Row::new(&dense, &mut pruned, &mut image, &h, n);
        assert!(row.swap());
        assert!((error(row.pruned) - least).abs() < 1e-12 * least);
        let fresh = Matrix::new(
            1,
            n,
            dense.iter().zip(&*row.pruned).map(|(d, p)| d - p).collect(),
        );
        for (kept, fresh) in row.image.iter().zip(&fresh.times(&h).data) {
            assert!((kept - fresh).abs() < 1e-12);
        }
    }

    /// Every swap is the best there is in its groups, until none helps.
    #[test]
    fn swaps_are_the_best_of_all_pairs_until_none_helps() {
        let n = 24;
        let value = |i: usize, by: usize| ((i * by + 13) % 1009) as f64 / 504.0 - 1.0;
        let x = Matrix::new(n, n, (0..n * n).map(|i| value(i, 7919)).collect());
        let h = x.transposed().times(&x);
        let dense: Vec<f64> = (0..n)
            .map(|i| if i == 5 { 0.0 } else { value(i, 389) })
            .collect();
        let error = |pruned: &[f64]| {
            let gap = dense.iter().zip(pruned).map(|(d, p)| d - p).collect();
            crate::calibration::energy(&Matrix::new(1, n, gap), &h)
        };
        for group in [n, 4, 10] {
            // What is left need not have its old value.
            let start = |i: usize| if i % 4 < 2 { dense[i] * 1.1 } else { 0.0 };
            let mut pruned: Vec<f64> = (0..n).map(start).collect();
            let gap = dense.iter().zip(&pruned).map(|(d, p)| d - p).collect();
            let mut image = Matrix::new(1, n, gap).times(&h).data;
            let mut own = pruned.clone();
            let mut row = Row::new(&dense, &mut pruned, &mut image, &h, group);
            let mut swaps = 0;
            loop {
                let before = error(&own);
                let mut least = before;
                for (p, u) in (0..n * n).map(|i| (i / n, i % n)) {
                    if p / group == u / group && own[p] != 0.0 && own[u] == 0.0 && dense[u] != 0.0 {
                        let mut other = own.clone();
                        (other[p], other[u]) = (0.0, dense[u]);
                        least = least.min(error(&other));
                    }
                }
                let swapped = row.swap();
                own = row.pruned.to_vec();
                assert!(
                    (error(&own) - least).abs() < 1e-6 * before,
                    "group of {group}, swap {swaps}"
                );
                if !swapped {
                    break;
                }
                assert!(error(&own) < before);
                swaps += 1;
            }
            assert!(swaps > 2, "{swaps} swaps in groups of {group}");
        }
    }
}
