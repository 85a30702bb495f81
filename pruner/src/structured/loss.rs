//! What the outputs of a matrix lose when its weights change, on inputs of which second moments are known.

use crate::calibration::{Moments, energy};
use crate::matrix::Matrix;

pub(super) struct Lost {
    square: Matrix,
    means: Vec<f64>,
    tokens: f64,
    /// `‖X Wᵀ‖²`.
    whole: f64,
}

impl Lost {
    /// For changes of `dense`, `[outputs, inputs]`; none without inputs, or with their diagonal alone.
    pub fn new(inputs: &Moments, dense: &Matrix) -> Option<Lost> {
        let square = inputs.square().filter(|_| inputs.tokens() > 0)?;
        Some(Lost {
            whole: energy(dense, &square).max(f64::MIN_POSITIVE),
            square,
            means: inputs.means(),
            tokens: inputs.tokens() as f64,
        })
    }

    /// `‖X gapᵀ - bias‖²` as a share of the outputs before, where `gap` went and `bias` came.
    pub fn share(&self, gap: &Matrix, bias: Option<&[f64]>) -> f64 {
        let mut lost = energy(gap, &self.square);
        if let Some(bias) = bias {
            let image = image(gap, &self.means);
            let parts = bias.iter().zip(image);
            lost += self.tokens * parts.map(|(b, m)| b * (b - 2.0 * m)).sum::<f64>();
        }
        lost.max(0.0) / self.whole
    }
}

/// The outputs of `[outputs, inputs]` weights for one input.
pub(super) fn image(weights: &Matrix, input: &[f64]) -> Vec<f64> {
    let rows = weights.data.chunks_exact(weights.cols.max(1));
    rows.map(|row| row.iter().zip(input).map(|(w, x)| w * x).sum())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_takes_the_mean_of_what_went() {
        let x: [[f32; 3]; 4] = [
            [1.0, 2.0, -1.0],
            [0.5, 3.0, 2.0],
            [-2.0, 1.0, 0.0],
            [4.0, -1.0, 1.5],
        ];
        let mut moments = Moments::new(3, true);
        moments.add(x.as_flattened()).unwrap();
        let dense = Matrix::new(2, 3, vec![0.5, -1.0, 2.0, 1.0, 0.25, -0.75]);
        // The second input goes.
        let gap = Matrix::new(2, 3, vec![0.0, -1.0, 0.0, 0.0, 0.25, 0.0]);
        let lost = Lost::new(&moments, &dense).unwrap();
        let bias = image(&gap, &moments.means());
        assert_eq!(bias, [-1.25, 0.3125]);
        let brute = |bias: &[f64]| {
            let (mut gone, mut whole) = (0.0, 0.0);
            for x in &x {
                let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
                let [left, all] = [&gap, &dense].map(|m| image(m, &x));
                gone += (left.iter().zip(bias))
                    .map(|(l, b)| (l - b).powi(2))
                    .sum::<f64>();
                whole += all.iter().map(|a| a * a).sum::<f64>();
            }
            gone / whole
        };
        assert!((lost.share(&gap, Some(&bias)) - brute(&bias)).abs() < 1e-9);
        assert!((lost.share(&gap, None) - brute(&[0.0, 0.0])).abs() < 1e-9);
        assert!(lost.share(&gap, Some(&bias)) < lost.share(&gap, None));
    }
}
