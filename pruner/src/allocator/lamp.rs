//! LAMP: magnitudes normalised by what is left of their layer, then one ranking.

use super::{Allocation, Allocator, Budget, Ties};
use crate::{Layer, Result};
use rayon::prelude::*;

/// The score of a weight is its square over the sum of the squares of its layer that are not smaller (Lee et al., 2021); the
/// smallest scores of all layers go. The largest weight of a layer has score 1, so that no layer empties before every layer
/// has one weight left. A floor protects each layer's largest weights; both floor modes give the same answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lamp;

impl Allocator for Lamp {
    fn name(&self) -> &'static str {
        "lamp"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let caps = budget.caps(layers);
        let scores: Vec<Vec<f64>> = (layers.par_iter().zip(&caps))
            .map(|(l, &cap)| {
                let mut all = scores(&l.weight.to_f32().unwrap_or_default());
                all.truncate(cap);
                all
            })
            .collect();
        // Scores rise within a layer: a cut is a binary search in each.
        let below = |bits: u64| -> Vec<usize> {
            scores
                .iter()
                .map(|s| s.partition_point(|x| x.to_bits() < bits))
                .collect()
        };
        let k = budget.remove.min(caps.iter().sum());
        // The smallest score that the k-th removal reaches: positive numbers rank as their bits do.
        let (mut low, mut high) = (0u64, 1.0f64.to_bits() + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match below(middle + 1).iter().sum::<usize>() >= k {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let (mut remove, at_most) = (below(low), below(low + 1));
        let mut left = match budget.ties {
            Ties::Exact => k - remove.iter().sum::<usize>(),
            Ties::Keep => 0,
        };
        for (remove, at_most) in remove.iter_mut().zip(at_most) {
            let take = left.min(at_most - *remove);
            *remove += take;
            left -= take;
        }
        let held = |i: usize| {
            budget.sigma > 0 && k > 0 && remove[i] == caps[i] && caps[i] < layers[i].numel()
        };
        Ok(Allocation {
            floored: (0..layers.len()).map(held).collect(),
            remove,
            threshold: None,
        })
    }
}

/// The scores of a layer's weights, ascending.
fn scores(weights: &[f32]) -> Vec<f64> {
    let mut squares: Vec<f64> = weights
        .iter()
        .map(|&w| f64::from(w) * f64::from(w))
        .collect();
    squares.par_sort_unstable_by(f64::total_cmp);
    let mut behind = 0.0;
    for square in squares.iter_mut().rev() {
        behind += *square;
        *square = if behind > 0.0 { *square / behind } else { 0.0 };
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_divide_by_the_squares_that_are_not_smaller() {
        let s = scores(&[2.0, -1.0, 3.0, 0.0]);
        let expected = [0.0, 1.0 / 14.0, 4.0 / 13.0, 1.0];
        assert!(
            s.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15),
            "{s:?}"
        );
        assert_eq!(scores(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
