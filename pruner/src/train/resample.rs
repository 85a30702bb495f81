//! Resizing of pictures that are kept channels last.

use rayon::prelude::*;

/// For each index of a resized axis the two of the input that it lies between, and the weight of the second.
pub(super) type Taps = Vec<(usize, usize, f32)>;

/// A resized picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resample {
    pub channels: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Of rows and of columns.
    pub taps: [Taps; 2],
}

impl Resample {
    fn sizes(&self) -> [usize; 2] {
        let [h, w] = self.input;
        let [rows, columns] = &self.taps;
        [h * w, rows.len() * columns.len()].map(|n| (n * self.channels).max(1))
    }

    /// Calls `f` with each element of the output, one of the input that it is made of, and its share.
    fn each(&self, mut f: impl FnMut(usize, usize, f32)) {
        let [rows, columns] = &self.taps;
        for (y, &(up, down, lower)) in rows.iter().enumerate() {
            for (x, &(left, right, later)) in columns.iter().enumerate() {
                let to = (y * columns.len() + x) * self.channels;
                for (row, a) in [(up, 1.0 - lower), (down, lower)] {
                    for (column, b) in [(left, 1.0 - later), (right, later)] {
                        if a * b != 0.0 {
                            f(to, (row * self.input[1] + column) * self.channels, a * b);
                        }
                    }
                }
            }
        }
    }

    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let ([size, out], c) = (self.sizes(), self.channels);
        let samples = y.par_chunks_mut(out).zip(x.par_chunks(size));
        samples.for_each(|(y, x)| {
            y.fill(0.0);
            self.each(|to, from, share| {
                for (y, x) in y[to..to + c].iter_mut().zip(&x[from..from + c]) {
                    *y += share * x;
                }
            });
        });
    }

    /// Adds to the input's gradient.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let ([size, out], c) = (self.sizes(), self.channels);
        let samples = dx.par_chunks_mut(size).zip(dy.par_chunks(out));
        samples.for_each(|(dx, dy)| {
            self.each(|to, from, share| {
                for (dx, dy) in dx[from..from + c].iter_mut().zip(&dy[to..to + c]) {
                    *dx += share * dy;
                }
            });
        });
    }
}
