//! Depthwise convolutions: every channel by itself, side by side in a vector.

use super::Conv;
use crate::train::border::PADDED;
use lacuna::Isa;

impl Conv {
    /// A depthwise weight as `[tap][channel]`.
    pub(super) fn by_tap(&self, weight: &[f32]) -> Vec<f32> {
        let (c, taps) = (self.channels[0], self.taps());
        (0..taps * c)
            .map(|i| weight[i % c * taps + i / c])
            .collect()
    }

    /// Where tap `t` of output pixel `(y, x)` lies in the padded image, in pixels.
    pub(super) fn pixel(&self, y: usize, x: usize, t: usize) -> usize {
        let (ky, kx) = (t / self.kernel[1], t % self.kernel[1]);
        let row = y * self.strides[0] + ky * self.dilations[0];
        row * self.padded()[1] + x * self.strides[1] + kx * self.dilations[1]
    }

    #[inline(always)]
    pub(super) fn depthwise_image(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let c = self.channels[0];
        for (i, out) in out.chunks_exact_mut(c).enumerate() {
            out.fill(0.0);
            for (t, weight) in weight.chunks_exact(c).enumerate() {
                let at = self.pixel(i / self.output[1], i % self.output[1], t) * c;
                for ((o, x), w) in out.iter_mut().zip(&x[at..at + c]).zip(weight) {
                    *o += x * w;
                }
            }
        }
    }

    pub(super) fn depthwise_back(
        &self,
        isa: Isa,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: Option<(&mut [f32], bool)>,
        dw: &mut [f32],
    ) {
        let c = self.channels[0];
        isa.vectorize(|| {
            for (i, dy) in dy.chunks_exact(c).enumerate() {
                for (t, dw) in dw.chunks_exact_mut(c).enumerate() {
                    let at = self.pixel(i / self.output[1], i % self.output[1], t) * c;
                    for ((d, x), dy) in dw.iter_mut().zip(&x[at..at + c]).zip(dy) {
                        *d += x * dy;
                    }
                }
            }
        });
        let Some((dx, accumulate)) = dx else { return };
        let [height, width] = self.padded();
        PADDED.with_borrow_mut(|[_, padded]| {
            padded.clear();
            padded.resize(height * width * c, 0.0);
            isa.vectorize(|| {
                for (i, dy) in dy.chunks_exact(c).enumerate() {
                    for (t, weight) in weight.chunks_exact(c).enumerate() {
                        let at = self.pixel(i / self.output[1], i % self.output[1], t) * c;
                        for ((d, w), dy) in padded[at..at + c].iter_mut().zip(weight).zip(dy) {
                            *d += w * dy;
                        }
                    }
                }
            });
            self.crop(padded, dx, accumulate);
        });
    }
}
