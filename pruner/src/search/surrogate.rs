//! What a change of levels does, learnt from the evaluations so far.

use super::Levels;
use crate::matrix::Matrix;
use crate::structured::solve;
use std::collections::BTreeMap;

/// An evaluation.
pub(super) struct Sample {
    /// Evaluations on the same windows.
    pub group: (usize, usize),
    /// Tokens of the windows.
    pub tokens: usize,
    pub levels: Levels,
    pub divergence: f64,
}

/// The divergence as a sum over modules of a parabola of the level: least squares with a small penalty over all samples, each
/// group with a level of its own.
pub(super) struct Surrogate {
    centre: Levels,
    /// For each module the factors of the distance from the centre and of its square.
    factors: Vec<f64>,
}

/// The penalty, as a share of the mean of the diagonal.
const PENALTY: f64 = 1e-3;

impl Surrogate {
    /// Fits around `centre`; `None` where nothing can be learnt.
    pub fn fit(centre: &Levels, samples: &[Sample]) -> Option<Surrogate> {
        let n = 2 * centre.len();
        let mut groups: BTreeMap<(usize, usize), Vec<&Sample>> = BTreeMap::new();
        for sample in samples.iter().filter(|s| s.levels.len() == centre.len()) {
            groups.entry(sample.group).or_default().push(sample);
        }
        let (mut square, mut right) = (Matrix::zeros(n, n), Matrix::zeros(n, 1));
        for group in groups.values().filter(|g| g.len() > 1) {
            let count = group.len() as f64;
            let rows: Vec<Vec<f64>> = group.iter().map(|s| features(centre, &s.levels)).collect();
            let mean: Vec<f64> = (0..n)
                .map(|i| rows.iter().map(|r| r[i]).sum::<f64>() / count)
                .collect();
            let level = group.iter().map(|s| s.divergence).sum::<f64>() / count;
            for (row, sample) in rows.iter().zip(group) {
                let weight = sample.tokens as f64;
                let row: Vec<f64> = row.iter().zip(&mean).map(|(r, m)| r - m).collect();
                for (i, a) in row.iter().enumerate().filter(|a| *a.1 != 0.0) {
                    right.data[i] += weight * a * (sample.divergence - level);
                    for (s, b) in square.data[i * n..][..n].iter_mut().zip(&row) {
                        *s += weight * a * b;
                    }
                }
            }
        }
        let mean = (0..n).map(|i| square.data[i * n + i]).sum::<f64>() / n.max(1) as f64;
        if mean <= 0.0 {
            return None;
        }
        (0..n).for_each(|i| square.data[i * n + i] += PENALTY * mean);
        let factors = solve(&square, &right).ok()?.data;
        Some(Surrogate {
            centre: centre.clone(),
            factors,
        })
    }

    /// The divergence of `levels`, less that of the centre.
    pub fn predict(&self, levels: &Levels) -> f64 {
        let features = features(&self.centre, levels);
        features.iter().zip(&self.factors).map(|(x, f)| x * f).sum()
    }
}

fn features(centre: &Levels, levels: &Levels) -> Vec<f64> {
    let pairs = centre.iter().zip(levels);
    pairs
        .flat_map(|(&c, &l)| {
            let far = l as f64 - c as f64;
            [far, far * far]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_parabolas_are_learnt_whatever_the_windows() {
        let centre = vec![2; 5];
        let truth = |levels: &Levels, group: usize| -> f64 {
            let each = levels.iter().enumerate().map(|(m, &l)| {
                let far = l as f64 - 2.0;
                (m as f64 - 1.5) * far + 0.3 * m as f64 * far * far
            });
            each.sum::<f64>() + 7.0 * group as f64
        };
        let mut samples = Vec::new();
        for group in 0..3 {
            for m in 0..5 {
                for level in [0, 1, 2, 3] {
                    let mut levels = centre.clone();
                    levels[m] = level;
                    levels[(m + group + 1) % 5] = 3;
                    let divergence = truth(&levels, group);
                    samples.push(Sample {
                        group: (group, 0),
                        tokens: 10,
                        levels,
                        divergence,
                    });
                }
            }
        }
        let found = Surrogate::fit(&centre, &samples).unwrap();
        for levels in [vec![4, 2, 2, 1, 0], vec![0, 4, 3, 2, 2]] {
            let (near, wanted) = (found.predict(&levels), truth(&levels, 0));
            assert!(
                (near - wanted).abs() < 0.05 * wanted.abs().max(1.0),
                "{near} {wanted}"
            );
        }
        assert!(Surrogate::fit(&centre, &samples[..1]).is_none());
    }
}
