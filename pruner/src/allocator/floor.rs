//! The minimum threshold of Global MP, `refine` mode: layer sparsities rescaled and clamped.

use crate::{Error, Result};

/// How far below the target the weighted sparsity may end.
const TOLERANCE: f64 = 1e-12;
/// Rescales before the target counts as out of reach.
const ROUNDS: usize = 100_000;

/// Layer sparsities that respect a floor.
#[derive(Clone, Debug, PartialEq)]
pub struct Refined {
    /// The sparsity of each layer.
    pub sparsities: Vec<f64>,
    /// Whether the floor holds the layer: it is clamped, or whole because it is below the floor.
    pub held: Vec<bool>,
    /// How often the sparsities were rescaled.
    pub rounds: usize,
}

/// Moves sparsity from layers that the floor `sigma` holds to the others.
///
/// Layers of fewer than `sigma` weights get 0. All sparsities are scaled so that their mean, weighted
/// by size, meets `target`; a larger layer that would keep fewer than `sigma` weights is clamped to
/// keep `sigma`; both are repeated until the target is met. A layer of exactly `sigma` weights is
/// scaled and never clamped, as in the reference: who wants it whole passes 0 for it.
///
/// Fails where the target is out of reach, as when only layers with sparsity 0 have room.
pub fn refine(sizes: &[usize], start: &[f64], sigma: usize, target: f64) -> Result<Refined> {
    let total: usize = sizes.iter().sum();
    let mean = |s: &[f64]| -> f64 {
        let removed: f64 = s.iter().zip(sizes).map(|(s, &n)| s * n as f64).sum();
        removed / total.max(1) as f64
    };
    let mut sparsities = start.to_vec();
    let mut held = vec![false; sizes.len()];
    for i in 0..sizes.len() {
        if sizes[i] < sigma {
            held[i] = sparsities[i] > 0.0;
            sparsities[i] = 0.0;
        }
    }
    let mut rounds = 0;
    let mut reached = mean(&sparsities);
    loop {
        // The first scaling is unconditional, as in the reference.
        if rounds > 0 && reached >= target - TOLERANCE {
            return Ok(Refined {
                sparsities,
                held,
                rounds,
            });
        }
        let scale = target / reached;
        if !scale.is_finite() && target > 0.0 || rounds == ROUNDS {
            return Err(Error::Refine { reached, target });
        }
        rounds += 1;
        for i in 0..sizes.len() {
            let n = sizes[i] as f64;
            if sparsities[i] > 0.0 {
                sparsities[i] *= scale;
                held[i] = sizes[i] > sigma && (1.0 - sparsities[i]) * n < sigma as f64;
                if held[i] {
                    sparsities[i] = 1.0 - sigma as f64 / n;
                }
            }
        }
        let before = std::mem::replace(&mut reached, mean(&sparsities));
        if reached < target - TOLERANCE && reached <= before && rounds > 1 {
            return Err(Error::Refine { reached, target });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance, "{a} is not {b}");
        }
    }

    fn weighted(n: &[usize], s: &[f64]) -> f64 {
        let removed: f64 = n.iter().zip(s).map(|(&n, s)| n as f64 * s).sum();
        removed / n.iter().sum::<usize>() as f64
    }

    #[test]
    fn refine_reproduces_the_reference_on_five_layers() {
        let n = [864, 10_000, 50_000, 200_000, 400];
        let s = [0.2, 0.7, 0.93, 0.9999, 0.99];
        let target = weighted(&n, &s);
        assert!((target - 0.972_383_489_497_2).abs() < 1e-13);
        let r = refine(&n, &s, 500, target).unwrap();
        let expected = [0.203_264_2, 0.711_424_8, 0.945_178_6, 0.9975, 0.0];
        close(&r.sparsities, &expected, 5e-8);
        assert!((weighted(&n, &r.sparsities) - target).abs() <= 1e-12);
        assert_eq!(r.held, [false, false, false, true, true]);
        // The one before the loop, and 91 in it.
        assert_eq!(r.rounds, 1 + 91);
    }

    #[test]
    fn refine_reproduces_the_reference_on_a_target_of_95_percent() {
        let n = [400, 4000, 20_000, 60_000, 5];
        let r = refine(&n, &[0.1, 0.6, 0.9, 0.995, 0.0], 400, 0.95).unwrap();
        let expected = [0.100_708_2, 0.604_249_0, 0.906_373_5, 0.993_333_3, 0.0];
        close(&r.sparsities, &expected, 5e-8);
        assert!((weighted(&n, &r.sparsities) - 0.95).abs() <= 1e-12);
    }

    #[test]
    fn a_target_that_scaling_cannot_reach_is_an_error() {
        let e = refine(&[1000, 1000], &[1.0, 0.0], 10, 0.9).unwrap_err();
        assert!(matches!(e, Error::Refine { .. }), "{e}");
        let e = refine(&[5, 1000], &[1.0, 0.0], 10, 0.004).unwrap_err();
        assert!(e.to_string().contains("global"), "{e}");
    }

    #[test]
    fn nothing_to_remove_needs_no_scaling() {
        let r = refine(&[100, 100], &[0.0, 0.0], 10, 0.0).unwrap();
        assert_eq!(r.sparsities, [0.0, 0.0]);
    }
}
