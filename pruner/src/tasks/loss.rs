//! Losses of outputs that are kept channels last, with their gradients.

use super::{Head, LossName};
use rayon::prelude::*;

/// What the outputs of some samples are held against.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    /// A class for each row of the output.
    Classes(Vec<u16>),
    /// Numbers as the output lies.
    Numbers(Vec<f32>),
    /// Labelled boxes, so many numbers of a sample.
    Boxes(usize, Vec<f32>),
}

impl Target {
    #[cfg(test)]
    pub fn of_classes(labels: &[usize]) -> Target {
        Target::Classes(labels.iter().map(|&l| l as u16).collect())
    }

    /// The part of one sample.
    fn sample(&self, head: &Head, i: usize) -> Part<'_> {
        match self {
            Target::Classes(v) => Part::Classes(&v[i * head.rows..][..head.rows]),
            Target::Numbers(v) => {
                let each = head.rows * head.width;
                Part::Numbers(&v[i * each..][..each])
            }
            Target::Boxes(each, v) => Part::Boxes(&v[i * each..][..*each]),
        }
    }
}

enum Part<'a> {
    Classes(&'a [u16]),
    Numbers(&'a [f32]),
    Boxes(&'a [f32]),
}

/// What a batch's outputs are worth to a task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The sum of the samples' losses.
    pub sum: f64,
    /// Samples of one row whose label has the largest output.
    pub correct: usize,
}

impl Found {
    /// Of what [`losses`] finds.
    pub fn sum(losses: &[(f64, bool)]) -> Found {
        Found {
            sum: losses.iter().map(|l| l.0).sum(),
            correct: losses.iter().filter(|l| l.1).count(),
        }
    }
}

/// The loss of each sample of `values [samples, rows, width]`, and whether its first row was right. With `factor` the
/// values become the gradient of the sum of the losses times it.
///
/// `smoothing` spreads that part of a class's target over all classes.
pub(crate) fn losses(
    head: &Head,
    values: &mut [f32],
    target: &Target,
    smoothing: f32,
    factor: Option<f64>,
) -> Vec<(f64, bool)> {
    let each = (head.rows * head.width).max(1);
    let samples = values.par_chunks_exact_mut(each).enumerate();
    samples
        .map(|(i, values)| match (head.loss, target.sample(head, i)) {
            (loss, Part::Boxes(labels)) => {
                let grid = head.grid.as_ref();
                let own = grid.map(|g| g.loss(loss, values, labels, smoothing, factor));
                (own.unwrap_or_default(), false)
            }
            (_, Part::Classes(labels)) => cross_entropy(head, values, labels, smoothing, factor),
            (LossName::Kl, Part::Numbers(wanted)) => {
                (divergence(head, values, wanted, factor), false)
            }
            (loss, Part::Numbers(wanted)) => (difference(loss, values, wanted, factor), false),
        })
        .collect()
}

/// The largest of a row, and the logarithm of the sum of `e^(x - largest)`.
fn normaliser(row: &[f32]) -> (f32, f64) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
    (largest, total.ln())
}

/// `(1 - smoothing) * -log p[label] + smoothing * mean over classes of -log p`, the mean over the rows that count.
fn cross_entropy(
    head: &Head,
    values: &mut [f32],
    labels: &[u16],
    smoothing: f32,
    factor: Option<f64>,
) -> (f64, bool) {
    let counted = labels.iter().filter(|&&l| Some(l) != head.ignore).count();
    let (share, even) = (1.0 / counted.max(1) as f64, smoothing / head.width as f32);
    let (mut loss, mut right) = (0.0, false);
    for (i, (row, &label)) in values.chunks_exact_mut(head.width).zip(labels).enumerate() {
        if Some(label) == head.ignore {
            if factor.is_some() {
                row.fill(0.0);
            }
            continue;
        }
        let label = usize::from(label);
        let (largest, log) = normaliser(row);
        if i == 0 {
            right = row.iter().position(|&x| x == largest) == Some(label);
        }
        let target = |class: usize| even + if class == label { 1.0 - smoothing } else { 0.0 };
        if smoothing == 0.0 {
            loss -= f64::from(row[label] - largest) - log;
        } else {
            for (class, x) in row.iter().enumerate() {
                loss -= f64::from(target(class)) * (f64::from(*x - largest) - log);
            }
        }
        let Some(factor) = factor else { continue };
        let part = (factor * share) as f32;
        for (class, x) in row.iter_mut().enumerate() {
            let log_p = f64::from(*x - largest) - log;
            *x = (log_p.exp() as f32 - target(class)) * part;
        }
    }
    (loss * share, right)
}

/// Sum over classes of `q (log q - log p)`, the mean over the rows.
fn divergence(head: &Head, values: &mut [f32], wanted: &[f32], factor: Option<f64>) -> f64 {
    let share = 1.0 / head.rows.max(1) as f64;
    let mut loss = 0.0;
    let rows = values.chunks_exact_mut(head.width);
    for (row, wanted) in rows.zip(wanted.chunks_exact(head.width)) {
        let [(largest, log), (high, log_wanted)] = [normaliser(row), normaliser(wanted)];
        for (x, w) in row.iter_mut().zip(wanted) {
            let log_p = f64::from(*x - largest) - log;
            let log_q = f64::from(*w - high) - log_wanted;
            let q = log_q.exp();
            loss += q * (log_q - log_p);
            if let Some(factor) = factor {
                *x = ((log_p.exp() - q) * factor * share) as f32;
            }
        }
    }
    // Rounding takes equal outputs a little below zero.
    (loss * share).max(0.0)
}

fn difference(name: LossName, values: &mut [f32], wanted: &[f32], factor: Option<f64>) -> f64 {
    let share = 1.0 / values.len().max(1) as f64;
    let mut loss = 0.0;
    for (x, w) in values.iter_mut().zip(wanted) {
        let d = f64::from(*x) - f64::from(*w);
        let (own, slope) = match name {
            LossName::SmoothL1 if d.abs() < 1.0 => (0.5 * d * d, d),
            LossName::SmoothL1 => (d.abs() - 0.5, d.signum()),
            _ => (d * d, 2.0 * d),
        };
        loss += own;
        if let Some(factor) = factor {
            *x = (slope * factor * share) as f32;
        }
    }
    loss * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::head::test_head;

    #[test]
    fn smoothing_spreads_a_part_of_the_target() {
        // ln(e^1 + e^2 + e^3) = 3.4076059644
        let head = test_head(LossName::CrossEntropy, 3, 1, None);
        let one = |label: u16, smoothing: f32| {
            let mut logits = [1.0, 2.0, 3.0];
            let target = Target::Classes(vec![label]);
            let found = losses(&head, &mut logits, &target, smoothing, Some(1.0))[0];
            (found, logits)
        };
        let ((loss, right), _) = one(2, 0.0);
        assert!((loss - 0.407_605_964).abs() < 1e-7 && right);
        let ((loss, right), gradient) = one(0, 0.3);
        let expected = 0.7 * 2.407_605_964 + 0.3 * 1.407_605_964;
        assert!((loss - expected).abs() < 1e-7 && !right);
        assert!(gradient.iter().sum::<f32>().abs() < 1e-6);
    }

    /// Every loss against central differences of itself, over two samples of several rows, one row ignored.
    #[test]
    fn gradients_are_slopes() {
        let values: Vec<f32> = (0..24).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.4).collect();
        let numbers: Vec<f32> = (0..24).map(|i| ((i * 5 % 13) as f32 - 6.0) * 0.3).collect();
        let classes = Target::Classes(vec![0, 2, 7, 1, 1, 0, 2, 2]);
        for (name, target) in [
            (LossName::CrossEntropy, classes),
            (LossName::Mse, Target::Numbers(numbers.clone())),
            (LossName::SmoothL1, Target::Numbers(numbers.clone())),
            (LossName::Kl, Target::Numbers(numbers)),
        ] {
            let head = test_head(name, 3, 4, Some(7));
            let sum = |values: &[f32], factor| -> (f64, Vec<f32>) {
                let mut values = values.to_vec();
                let found = losses(&head, &mut values, &target, 0.1, factor);
                (found.iter().map(|f| f.0).sum(), values)
            };
            let (_, gradient) = sum(&values, Some(0.5));
            for i in 0..values.len() {
                let moved = |by: f32| {
                    let mut moved = values.clone();
                    moved[i] += by;
                    sum(&moved, None).0
                };
                let slope = 0.5 * (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!(
                    (slope - f64::from(gradient[i])).abs() < 2e-4,
                    "{name:?} {i}"
                );
            }
        }
    }

    #[test]
    fn equal_outputs_are_no_distance_apart() {
        let head = test_head(LossName::Kl, 4, 1, None);
        let wanted = vec![0.5, -3.0, 8.0, 0.1];
        let found = losses(
            &head,
            &mut wanted.clone(),
            &Target::Numbers(wanted),
            0.0,
            None,
        );
        assert_eq!(found[0].0, 0.0);
    }
}
