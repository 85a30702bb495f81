//! OWL (arXiv 2310.05175): blocks with more outliers stay denser.

use super::{Allocation, Allocator, Budget, at_sparsities};
use crate::{Error, Layer, Result};

/// The density of a block differs from the mean by up to `2 * 0.08`, in proportion to its share of outliers: elements with
/// `|w| ‖x‖` above five times the mean of the block. Where a density would leave `[0, 1]` all move less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owl;

/// How many times the mean an outlier is.
pub(crate) const OUTLIER: f64 = 5.0;

const LAMBDA: f64 = 0.08;

impl Allocator for Owl {
    fn name(&self) -> &'static str {
        "owl"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let outliers: Option<Vec<f64>> = layers.iter().map(|l| l.outliers).collect();
        let outliers = outliers.ok_or_else(|| {
            Error::Calibration(
                "allocator `owl` counts outliers on a text: give one; a dry run has none".into(),
            )
        })?;
        let sizes: Vec<usize> = layers.iter().map(Layer::numel).collect();
        let start = sparsities(&outliers, &sizes, budget.sparsity);
        at_sparsities(layers, &start, budget)
    }
}

/// Sparsities whose mean, weighted by the sizes, is `sparsity`.
fn sparsities(outliers: &[f64], sizes: &[usize], sparsity: f64) -> Vec<f64> {
    let (low, high) =
        (outliers.iter()).fold((f64::INFINITY, 0.0f64), |(l, h), &d| (l.min(d), h.max(d)));
    let unit = |d: f64| {
        if high > low {
            (d - low) / (high - low)
        } else {
            0.0
        }
    };
    let total: usize = sizes.iter().sum();
    let sum: f64 = outliers
        .iter()
        .zip(sizes)
        .map(|(&d, &n)| unit(d) * n as f64)
        .sum();
    let mean = sum / total.max(1) as f64;
    let apart: Vec<f64> = outliers.iter().map(|&d| 2.0 * (unit(d) - mean)).collect();
    let room = |a: &f64| match *a {
        a if a > 0.0 => sparsity / a,
        a if a < 0.0 => (1.0 - sparsity) / -a,
        _ => f64::INFINITY,
    };
    let lambda = apart.iter().map(room).fold(LAMBDA, f64::min);
    apart.iter().map(|a| sparsity - lambda * a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_stays_and_outliers_keep_more() {
        let found = sparsities(&[1.0, 2.0, 5.0], &[10, 10, 10], 0.5);
        let expect = [
            0.16 * 5.0 / 12.0,
            0.16 * (5.0 / 12.0 - 0.25),
            -0.16 * 7.0 / 12.0,
        ];
        for (f, e) in found.iter().zip(expect) {
            assert!((f - 0.5 - e).abs() < 1e-12, "{f} {e}");
        }
        let uneven = sparsities(&[1.0, 3.0], &[30, 10], 0.9);
        assert!((uneven[0] * 30.0 + uneven[1] * 10.0 - 36.0).abs() < 1e-9);
        for s in sparsities(&[0.0, 1.0, 1.0], &[1, 1, 1], 0.97) {
            assert!((0.0..=1.0).contains(&s), "{s}");
        }
        assert_eq!(sparsities(&[2.0, 2.0], &[5, 5], 0.3), [0.3, 0.3]);
    }
}
