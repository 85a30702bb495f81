//! Softmax cross-entropy with label smoothing.

/// What a batch's outputs are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Loss {
    /// The sum of the images' losses.
    pub sum: f64,
    /// Images whose label has the largest output.
    pub correct: usize,
}

/// The loss of `logits [images, classes]`, and in their place its gradient, that of the mean over the images.
///
/// `(1 - smoothing) * -log p[label] + smoothing * mean over classes of -log p`.
pub(super) fn cross_entropy(logits: &mut [f32], labels: &[usize], smoothing: f32) -> Loss {
    let classes = logits.len() / labels.len().max(1);
    let share = 1.0 / labels.len() as f32;
    let even = smoothing / classes as f32;
    let mut loss = Loss::default();
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = row.iter().position(|&x| x == largest);
        loss.correct += usize::from(first == Some(label));
        let total: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        let log = total.ln();
        for (class, x) in row.iter_mut().enumerate() {
            let log_p = f64::from(*x - largest) - log;
            let target = even + if class == label { 1.0 - smoothing } else { 0.0 };
            if target != 0.0 {
                loss.sum -= f64::from(target) * log_p;
            }
            *x = (log_p.exp() as f32 - target) * share;
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_spreads_a_part_of_the_target() {
        // ln(e^1 + e^2 + e^3) = 3.4076059644
        let mut logits = [1.0, 2.0, 3.0];
        let loss = cross_entropy(&mut logits, &[2], 0.0);
        assert!((loss.sum - 0.407_605_964).abs() < 1e-7 && loss.correct == 1);
        let mut logits = [1.0, 2.0, 3.0];
        let loss = cross_entropy(&mut logits, &[0], 0.3);
        let expected = 0.7 * 2.407_605_964 + 0.3 * 1.407_605_964;
        assert!((loss.sum - expected).abs() < 1e-7 && loss.correct == 0);
        assert!(logits.iter().sum::<f32>().abs() < 1e-6);
    }
}
