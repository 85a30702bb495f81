//! What a list of times says.

use serde::Serialize;

/// Fewer runs than this say nothing about one in a hundred.
const RUNS_FOR_P99: usize = 100;

/// A time this far above the median, in units of the median absolute deviation scaled to a normal
/// distribution's standard deviation, is an outlier (Iglewicz and Hoaglin).
const OUTLIER_SCORE: f64 = 3.5;

/// Statistics of a list of times, in the unit of the times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many times there are.
    pub n: usize,
    /// The shortest.
    pub min: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// The sample standard deviation; 0 for a single time.
    pub sd: f64,
    /// The median.
    pub p50: f64,
    /// Nine in ten are at most this long.
    pub p90: f64,
    /// Nineteen in twenty are at most this long.
    pub p95: f64,
    /// 99 in a hundred are at most this long; only from 100 times on.
    pub p99: Option<f64>,
    /// Times far above the median: modified z-score over 3.5.
    pub outliers: usize,
}

impl Summary {
    /// Statistics of `times`, or `None` when there are none.
    pub fn of(times: &[f64]) -> Option<Summary> {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let min = *sorted.first()?;
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|t| (t - mean).powi(2)).sum();
        let p50 = quantile(&sorted, 0.5);
        let mut deviations: Vec<f64> = sorted.iter().map(|t| (t - p50).abs()).collect();
        deviations.sort_by(f64::total_cmp);
        let spread = quantile(&deviations, 0.5) / 0.6745;
        let outlier = |t: f64| spread > 0.0 && (t - p50) / spread > OUTLIER_SCORE;
        Some(Summary {
            n,
            min,
            mean,
            sd: (squares / (n.max(2) - 1) as f64).sqrt(),
            p50,
            p90: quantile(&sorted, 0.9),
            p95: quantile(&sorted, 0.95),
            p99: (n >= RUNS_FOR_P99).then(|| quantile(&sorted, 0.99)),
            outliers: sorted.iter().filter(|t| outlier(**t)).count(),
        })
    }

    /// Whether something else was at work: more than one run in ten is an outlier, or the
    /// standard deviation is more than a tenth of the mean.
    pub fn noisy(&self) -> bool {
        self.outliers * 10 > self.n || self.sd > 0.1 * self.mean
    }
}

/// The median, or `None` of nothing.
pub fn median(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| quantile(&sorted, 0.5))
}

/// The `q`-quantile of ascending values, linear between neighbours; 0 of nothing.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_ten_numbers() {
        let s = Summary::of(&[10., 1., 9., 2., 8., 3., 7., 4., 6., 5.]).unwrap();
        assert_eq!((s.n, s.min, s.mean, s.p50), (10, 1.0, 5.5, 5.5));
        assert!((s.sd - 3.0276503540974917).abs() < 1e-12);
        assert!((s.p90 - 9.1).abs() < 1e-12 && (s.p95 - 9.55).abs() < 1e-12);
        assert_eq!((s.p99, s.outliers), (None, 0));
    }

    #[test]
    fn one_in_a_hundred_needs_a_hundred() {
        let times: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(Summary::of(&times[..99]).unwrap().p99, None);
        assert_eq!(Summary::of(&times).unwrap().p99, Some(98.01));
    }

    #[test]
    fn a_slow_run_is_an_outlier_and_a_fast_one_is_not() {
        let mut times: Vec<f64> = (0..20).map(|i| 100.0 + f64::from(i % 5)).collect();
        assert_eq!(Summary::of(&times).unwrap().outliers, 0);
        times.push(150.0);
        times.push(50.0);
        let s = Summary::of(&times).unwrap();
        assert_eq!(s.outliers, 1);
        assert!(s.noisy());
    }

    #[test]
    fn equal_times_and_single_times_have_no_spread() {
        let s = Summary::of(&[3.0; 8]).unwrap();
        assert_eq!((s.sd, s.outliers, s.noisy()), (0.0, 0, false));
        let s = Summary::of(&[3.0]).unwrap();
        assert_eq!((s.sd, s.p90), (0.0, 3.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
