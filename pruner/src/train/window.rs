//! Pooling over channels-last images.

use lacuna::model::Window;
use rayon::prelude::*;

/// A pooling's sizes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pool {
    pub batch: usize,
    pub channels: usize,
    pub input: [usize; 2],
    pub output: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    pub window: Window,
}

impl Pool {
    /// The pixels of the input in the window of output pixel `(y, x)`.
    fn pixels(&self, y: usize, x: usize) -> impl Iterator<Item = usize> + '_ {
        let w = &self.window;
        let along = move |i: usize, k: usize, axis: usize| {
            let at = i * w.strides[axis] + k * w.dilations[axis];
            at.checked_sub(self.pads[axis])
                .filter(|&at| at < self.input[axis])
        };
        (0..w.kernel[0]).flat_map(move |ky| {
            let row = along(y, ky, 0);
            (0..w.kernel[1]).filter_map(move |kx| Some(row? * self.input[1] + along(x, kx, 1)?))
        })
    }

    /// Elements that the mean of a window divides by: those that the input and its padding have.
    fn count(&self, y: usize, x: usize, with_padding: bool) -> usize {
        if !with_padding {
            return self.pixels(y, x).count();
        }
        let w = &self.window;
        let along = |i: usize, axis: usize| {
            let end = self.input[axis] + self.pads[axis] + self.pads[axis + 2];
            (0..w.kernel[axis])
                .filter(|k| i * w.strides[axis] + k * w.dilations[axis] < end)
                .count()
        };
        along(y, 0) * along(x, 1)
    }

    fn sizes(&self) -> [usize; 2] {
        [self.input, self.output].map(|[h, w]| h * w * self.channels)
    }

    /// The largest element of each window; `from` tells the pixel that it came from, the first of equal ones.
    pub fn max(&self, x: &[f32], y: &mut [f32], from: &mut [u32]) {
        let ([size, out], c) = (self.sizes(), self.channels);
        let images = y
            .par_chunks_mut(out)
            .zip(from.par_chunks_mut(out))
            .zip(x.par_chunks(size));
        images.for_each(|((y, from), x)| {
            y.fill(f32::NEG_INFINITY);
            from.fill(u32::MAX);
            let pixels = y
                .chunks_exact_mut(c)
                .zip(from.chunks_exact_mut(c))
                .enumerate();
            for (i, (y, from)) in pixels {
                for pixel in self.pixels(i / self.output[1], i % self.output[1]) {
                    let x = &x[pixel * c..][..c];
                    for ((y, from), &x) in y.iter_mut().zip(from.iter_mut()).zip(x) {
                        if x > *y || x.is_nan() || *from == u32::MAX {
                            (*y, *from) = (x, pixel as u32);
                        }
                    }
                }
            }
        });
    }

    pub fn max_back(&self, dy: &[f32], from: &[u32], dx: &mut [f32]) {
        let ([size, out], c) = (self.sizes(), self.channels);
        dx.par_chunks_mut(size).enumerate().for_each(|(n, dx)| {
            dx.fill(0.0);
            let (dy, from) = (&dy[n * out..][..out], &from[n * out..][..out]);
            for (i, (d, &pixel)) in dy.iter().zip(from).enumerate() {
                if let Some(to) = dx.get_mut(pixel as usize * c + i % c) {
                    *to += d;
                }
            }
        });
    }

    pub fn average(&self, x: &[f32], y: &mut [f32], with_padding: bool) {
        let ([size, out], c) = (self.sizes(), self.channels);
        (y.par_chunks_mut(out).zip(x.par_chunks(size))).for_each(|(y, x)| {
            for (i, y) in y.chunks_exact_mut(c).enumerate() {
                let (row, column) = (i / self.output[1], i % self.output[1]);
                y.fill(0.0);
                for pixel in self.pixels(row, column) {
                    y.iter_mut()
                        .zip(&x[pixel * c..][..c])
                        .for_each(|(y, x)| *y += x);
                }
                let count = self.count(row, column, with_padding).max(1) as f32;
                y.iter_mut().for_each(|y| *y /= count);
            }
        });
    }

    pub fn average_back(&self, dy: &[f32], dx: &mut [f32], with_padding: bool) {
        let ([size, out], c) = (self.sizes(), self.channels);
        (dx.par_chunks_mut(size).zip(dy.par_chunks(out))).for_each(|(dx, dy)| {
            dx.fill(0.0);
            for (i, dy) in dy.chunks_exact(c).enumerate() {
                let (row, column) = (i / self.output[1], i % self.output[1]);
                let part = 1.0 / self.count(row, column, with_padding).max(1) as f32;
                for pixel in self.pixels(row, column) {
                    dx[pixel * c..][..c]
                        .iter_mut()
                        .zip(dy)
                        .for_each(|(d, g)| *d += g * part);
                }
            }
        });
    }
}
