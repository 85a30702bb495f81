//! Instance normalisation over channels-last images: every plane by its own mean and variance.

use rayon::prelude::*;

/// Sizes of the images.
#[derive(Clone, Debug)]
pub(super) struct Planes {
    pub channels: usize,
    /// Pixels of a plane.
    pub size: usize,
    pub epsilon: f32,
}

/// By channel: the mean, and `1 / sqrt(variance + epsilon)`.
type Moments = Vec<[f64; 2]>;

impl Planes {
    fn image(&self) -> usize {
        self.channels * self.size
    }

    fn moments(&self, x: &[f32]) -> Moments {
        let count = self.size.max(1) as f64;
        let mut moments = vec![[0.0f64; 2]; self.channels];
        for row in x.chunks_exact(self.channels) {
            moments
                .iter_mut()
                .zip(row)
                .for_each(|(m, &x)| m[0] += f64::from(x));
        }
        moments.iter_mut().for_each(|m| m[0] /= count);
        for row in x.chunks_exact(self.channels) {
            for (m, &x) in moments.iter_mut().zip(row) {
                m[1] += (f64::from(x) - m[0]).powi(2);
            }
        }
        let inverse = |square: f64| 1.0 / (square / count + f64::from(self.epsilon)).sqrt();
        moments.iter_mut().for_each(|m| m[1] = inverse(m[1]));
        moments
    }

    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias`.
    pub fn forward(&self, x: &[f32], [scale, bias]: [&[f32]; 2], y: &mut [f32]) {
        let images = y
            .par_chunks_mut(self.image())
            .zip(x.par_chunks(self.image()));
        images.for_each(|(y, x)| {
            let moments = self.moments(x);
            for (y, x) in (y.chunks_exact_mut(self.channels)).zip(x.chunks_exact(self.channels)) {
                for (c, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                    let [mean, inverse] = moments[c];
                    let normal = (f64::from(x) - mean) * inverse;
                    *y = (normal * f64::from(scale[c]) + f64::from(bias[c])) as f32;
                }
            }
        });
    }

    /// Turns the output's gradient into the input's, and adds those of scale and bias to theirs, where they are wanted.
    pub fn backward(&self, x: &[f32], scale: &[f32], dy: &mut [f32], own: [&mut [f32]; 2]) {
        let count = self.size.max(1) as f64;
        let images = dy
            .par_chunks_mut(self.image())
            .zip(x.par_chunks(self.image()));
        let sums: Vec<Vec<[f64; 2]>> = images
            .map(|(dy, x)| {
                let moments = self.moments(x);
                // Sums of the gradient times the normalised value, and of the gradient.
                let mut sums = vec![[0.0f64; 2]; self.channels];
                for (dy, x) in (dy.chunks_exact(self.channels)).zip(x.chunks_exact(self.channels)) {
                    for (c, (&d, &x)) in dy.iter().zip(x).enumerate() {
                        let [mean, inverse] = moments[c];
                        sums[c][0] += f64::from(d) * (f64::from(x) - mean) * inverse;
                        sums[c][1] += f64::from(d);
                    }
                }
                for (dy, x) in
                    (dy.chunks_exact_mut(self.channels)).zip(x.chunks_exact(self.channels))
                {
                    for (c, (d, &x)) in dy.iter_mut().zip(x).enumerate() {
                        let [mean, inverse] = moments[c];
                        let normal = (f64::from(x) - mean) * inverse;
                        let rest = f64::from(*d) - (sums[c][1] + normal * sums[c][0]) / count;
                        *d = (inverse * f64::from(scale[c]) * rest) as f32;
                    }
                }
                sums
            })
            .collect();
        for (i, own) in own.into_iter().enumerate() {
            for (c, d) in own.iter_mut().enumerate() {
                *d += sums.iter().map(|s| s[c][i]).sum::<f64>() as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against central differences of a weighted sum of the outputs.
    #[test]
    fn gradients_are_those_of_central_differences() {
        let planes = Planes {
            channels: 3,
            size: 10,
            epsilon: 0.01,
        };
        let numbers = |n: usize, seed: usize| -> Vec<f64> {
            (0..n)
                .map(|i| ((i * 37 + seed * 11) as f64 * 0.7).sin())
                .collect()
        };
        let (x, weights) = (numbers(60, 1), numbers(60, 2));
        let (scale, bias) = (numbers(3, 3), numbers(3, 4));
        let loss = |x: &[f64], scale: &[f64], bias: &[f64]| -> f64 {
            let at = |n: usize, p: usize, c: usize| (n * 10 + p) * 3 + c;
            let mut sum = 0.0;
            for (n, c) in (0..2).flat_map(|n| (0..3).map(move |c| (n, c))) {
                let plane: Vec<f64> = (0..10).map(|p| x[at(n, p, c)]).collect();
                let mean = plane.iter().sum::<f64>() / 10.0;
                let variance = plane.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 10.0;
                for (p, v) in plane.iter().enumerate() {
                    let y = (v - mean) / (variance + 0.01).sqrt() * scale[c] + bias[c];
                    sum += y * weights[at(n, p, c)];
                }
            }
            sum
        };
        let single = |v: &[f64]| -> Vec<f32> { v.iter().map(|&v| v as f32).collect() };
        let (mut dx, mut ds, mut db) = (single(&weights), vec![0.0; 3], vec![0.0; 3]);
        planes.backward(&single(&x), &single(&scale), &mut dx, [&mut ds, &mut db]);
        let check = |found: &[f32], of: usize| {
            for (i, &found) in found.iter().enumerate() {
                let at = |d: f64| {
                    let mut all = [x.clone(), scale.clone(), bias.clone()];
                    all[of][i] += d;
                    loss(&all[0], &all[1], &all[2])
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!(
                    (f64::from(found) - slope).abs() < 1e-4 * (1.0 + slope.abs()),
                    "{of} {i}: {found} {slope}"
                );
            }
        };
        check(&dx, 0);
        check(&ds, 1);
        check(&db, 2);
    }
}
