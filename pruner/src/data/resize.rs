//! Resizing as Pillow's antialiased bilinear filter does it, bit for bit: torchvision evaluates its
//! models on such images, and a rounding more or less can turn a class.

use super::Image;

/// Fractional bits of a filter's weights.
const BITS: u32 = 22;

/// The inputs that make one output: where they start, and the weight of each.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes an image: rows first, then columns, each rounded to a byte.
pub fn bilinear(image: &Image, height: usize, width: usize) -> Image {
    let channels = image.channels;
    let mut pixels = image.pixels.clone();
    if width != image.width {
        let taps = taps(image.width, width);
        let row = image.width * channels;
        let mut out = Vec::with_capacity(image.height * width * channels);
        for row in pixels.chunks_exact(row.max(1)) {
            for tap in &taps {
                for c in 0..channels {
                    let from = row[tap.start * channels + c..].iter().step_by(channels);
                    out.push(sum(tap, from));
                }
            }
        }
        pixels = out;
    }
    if height != image.height {
        let row = width * channels;
        let mut out = Vec::with_capacity(height * row);
        for tap in taps(image.height, height) {
            for i in 0..row {
                let from = pixels[tap.start * row + i..].iter().step_by(row);
                out.push(sum(&tap, from));
            }
        }
        pixels = out;
    }
    Image {
        height,
        width,
        channels,
        pixels,
    }
}

fn sum<'a>(tap: &Tap, from: impl Iterator<Item = &'a u8>) -> u8 {
    let products = tap.weights.iter().zip(from);
    let sum: i32 = products.map(|(w, &p)| w * i32::from(p)).sum();
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// The taps of every output along an axis of `from` inputs and `to` outputs.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    // A triangle as wide as an output pixel, and at least as wide as an input pixel.
    let support = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let triangle = |x: usize| 1.0 - ((x as f64 - centre + 0.5) / support).abs();
            let weights: Vec<f64> = (start..end).map(|x| triangle(x).max(0.0)).collect();
            let total: f64 = weights.iter().sum();
            let fixed = |w: &f64| (w / total * f64::from(1 << BITS) + 0.5) as i32;
            Tap {
                start,
                weights: weights.iter().map(fixed).collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Image.fromarray(a).resize((w, h), Image.BILINEAR)` of Pillow 13.0.0, where
    /// `a = np.array([(i * i * 7 + i * 13) % 256 for i in range(7 * 9 * 3)], np.uint8).reshape(7, 9, 3)`.
    #[test]
    fn rounding_once_instead_of_after_each_pass_made_other_pixels_than_pillow() {
        let image = Image {
            height: 7,
            width: 9,
            channels: 3,
            pixels: (0..7 * 9 * 3u32)
                .map(|i| (i * i * 7 + i * 13) as u8)
                .collect(),
        };
        let smaller = [
            59, 147, 132, 102, 128, 117, 145, 129, 84, 157, 144, 185, 150, 101, 176, 117, 165, 119,
            115, 132, 90, 124, 88, 145, 127, 116, 99, 140, 147, 65, 111, 127, 135, 84, 121, 118,
            143, 116, 100, 155, 127, 130, 116, 135, 169, 163, 174, 87, 121, 143, 108, 136, 98, 137,
            124, 67, 161, 77, 112, 187,
        ];
        assert_eq!(bilinear(&image, 4, 5).pixels, smaller);
        let taller = [
            78, 119, 141, 167, 128, 130, 153, 136, 198, 74, 146, 130, 139, 136, 96, 146, 109, 185,
            91, 172, 115, 123, 130, 94, 138, 106, 144, 151, 183, 99, 144, 96, 165, 129, 159, 59,
            106, 130, 103, 105, 77, 122, 138, 129, 56, 85, 116, 130, 109, 97, 98, 138, 124, 103,
            98, 144, 169, 157, 148, 103, 128, 149, 188, 132, 128, 82, 146, 102, 123, 136, 131, 188,
            150, 154, 80, 132, 93, 140, 101, 98, 173, 157, 194, 116, 120, 101, 153, 54, 65, 155,
        ];
        assert_eq!(bilinear(&image, 10, 3).pixels, taller);
        assert_eq!(bilinear(&image, 7, 9), image);
    }
}
