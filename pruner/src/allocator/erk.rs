//! Erdős–Rényi kernel densities: small layers stay denser.

use super::{Allocation, Allocator, Budget, at_sparsities};
use crate::{Layer, Result};

/// The density of a layer is proportional to `(outputs + inputs + kh + kw) / (outputs * inputs * kh * kw)`; a layer that
/// would be denser than 1 stays whole, and the others share what is left (Evci et al., RigL).
#[derive(Clone, Copy, Debug, Default)]
pub struct Erk;

impl Allocator for Erk {
    fn name(&self) -> &'static str {
        "erk"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let shapes: Vec<&[usize]> = layers.iter().map(|l| l.weight.shape()).collect();
        let density = 1.0 - budget.remove as f64 / budget.total.max(1) as f64;
        let start: Vec<f64> = densities(&shapes, density)
            .iter()
            .map(|d| 1.0 - d)
            .collect();
        at_sparsities(layers, &start, budget)
    }
}

/// The densities of layers of these shapes, whose mean by size is `density`.
pub fn densities(shapes: &[&[usize]], density: f64) -> Vec<f64> {
    let size = |s: &[usize]| s.iter().product::<usize>() as f64;
    let raw = |s: &[usize]| s.iter().sum::<usize>() as f64 / size(s).max(1.0);
    let total: f64 = shapes.iter().map(|s| size(s)).sum();
    let mut whole = vec![false; shapes.len()];
    loop {
        let (mut left, mut weight) = (density * total, 0.0);
        for (s, &whole) in shapes.iter().zip(&whole) {
            match whole {
                true => left -= size(s),
                false => weight += raw(s) * size(s),
            }
        }
        let scale = left.max(0.0) / f64::max(weight, f64::MIN_POSITIVE);
        let over: Vec<usize> = (0..shapes.len())
            .filter(|&i| !whole[i] && scale * raw(shapes[i]) > 1.0)
            .collect();
        if over.is_empty() {
            let of = |(s, &whole): (&&[usize], &bool)| if whole { 1.0 } else { scale * raw(s) };
            return shapes.iter().zip(&whole).map(of).collect();
        }
        over.into_iter().for_each(|i| whole[i] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_follow_the_sums_of_the_axes_and_meet_the_mean() {
        let shapes: [&[usize]; 3] = [&[16, 3, 3, 3], &[32, 16, 3, 3], &[10, 32]];
        let d = densities(&shapes, 0.1);
        // By hand: 25/432, 54/4608 and 42/320, of sums 25 + 54 + 42 = 121 for 0.1 * 5360 = 536 weights. The third would be
        // 0.5814, the first 0.2564.
        let scale = 536.0 / 121.0;
        for (d, raw) in d.iter().zip([25.0 / 432.0, 54.0 / 4608.0, 42.0 / 320.0]) {
            assert!((d - scale * raw).abs() < 1e-12, "{d}");
        }
        let d = densities(&shapes, 0.3);
        assert_eq!(d[2], 1.0);
        let kept: f64 = d
            .iter()
            .zip(shapes)
            .map(|(d, s)| d * s.iter().product::<usize>() as f64)
            .sum();
        assert!((kept - 1608.0).abs() < 1e-9);
        assert_eq!(densities(&shapes, 1.0), [1.0; 3]);
    }
}
