//! From an image of bytes to what a network was trained on: resize, crop, normalise.

use super::{Image, resize};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Preprocessing that whole families of models share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// torchvision's: shorter side to 256/224 of the crop, centre crop, ImageNet statistics.
    Imagenet,
    /// ImageNet statistics on 32x32 images, as the CIFAR-10 ResNets of akamaster are trained.
    Cifar10,
    /// Grey, mean 0.2860 and standard deviation 0.3530.
    FashionMnist,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 3] = [Preset::Imagenet, Preset::Cifar10, Preset::FashionMnist];

    /// The name that the command line uses.
    pub const fn name(self) -> &'static str {
        match self {
            Preset::Imagenet => "imagenet",
            Preset::Cifar10 => "cifar10",
            Preset::FashionMnist => "fashion-mnist",
        }
    }

    /// The preset for models with this input: grey is Fashion-MNIST, colour up to 64 pixels
    /// CIFAR-10, larger ImageNet.
    pub fn for_input(channels: usize, height: usize) -> Preset {
        match (channels, height) {
            (1, _) => Preset::FashionMnist,
            (_, ..=64) => Preset::Cifar10,
            _ => Preset::Imagenet,
        }
    }
}

/// What happens to an image before the network sees it: scaled to `[0, 1]`, resized and cropped
/// where its size differs, then `(x - mean) / std` by channel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preprocess {
    /// The preset it started from.
    pub preset: Preset,
    /// Channels, height and width of the network's input.
    pub input: [usize; 3],
    /// One mean, or one per channel.
    pub mean: Vec<f32>,
    /// One standard deviation, or one per channel.
    pub std: Vec<f32>,
    /// The length to which the shorter side of an image is resized, antialiased bilinear as in Pillow, before the
    /// centre crop; images of the input's size are left alone unless `always_resize`.
    pub size: Option<usize>,
    /// Resize images of the input's size too.
    pub always_resize: bool,
}

impl Preprocess {
    /// The preset's preprocessing for a network input of `[channels, height, width]`.
    pub fn new(preset: Preset, input: [usize; 3]) -> Preprocess {
        let (mean, std) = match preset {
            Preset::Imagenet | Preset::Cifar10 => {
                (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225])
            }
            Preset::FashionMnist => (vec![0.2860], vec![0.3530]),
        };
        let size = input[1].min(input[2]) * 256 / 224;
        Preprocess {
            preset,
            input,
            mean,
            std,
            size: (preset == Preset::Imagenet).then_some(size),
            always_resize: false,
        }
    }

    /// Refuses means and deviations that do not fit the channels or cannot divide.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Evaluation(what));
        let [channels, height, width] = self.input;
        for (what, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                return refuse(format!(
                    "{what} has {} values, the model's input has {channels} channels",
                    values.len()
                ));
            }
            if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                return refuse(format!("{what} {v} is not finite"));
            }
        }
        if let Some(v) = self.std.iter().find(|v| **v <= 0.0) {
            return refuse(format!("std {v} is not positive"));
        }
        match self.size {
            Some(size) if size < height.max(width) || size > 1 << 14 => refuse(format!(
                "a shorter side of {size} does not hold a crop of {height}x{width}, or is beyond 16384"
            )),
            _ => Ok(()),
        }
    }

    /// Writes the image as the network's input, channels outermost; `out` has
    /// `channels * height * width` elements.
    pub fn apply(&self, image: &Image, out: &mut [f32]) -> Result<(), String> {
        let [channels, height, width] = self.input;
        if image.channels != channels && image.channels != 1 {
            return Err(format!(
                "the image has {} channels, the model's input {channels}",
                image.channels
            ));
        }
        let fits = image.height == height && image.width == width;
        let resized;
        let image = match self.size {
            Some(size) if !fits || self.always_resize => {
                resized = shorter_side(image, size)?;
                &resized
            }
            _ if fits => image,
            _ => {
                return Err(format!(
                    "the image is {}x{}, the model's input {height}x{width}; --size resizes",
                    image.height, image.width
                ));
            }
        };
        let top = centre(image.height, height);
        let left = centre(image.width, width);
        let at = |values: &[f32], c: usize| values[c.min(values.len() - 1)];
        for c in 0..channels {
            let (mean, std) = (at(&self.mean, c), at(&self.std, c));
            // A grey image fills every channel.
            let channel = c.min(image.channels - 1);
            for y in 0..height {
                let row = (top + y) * image.width + left;
                let to = &mut out[(c * height + y) * width..][..width];
                for (x, to) in to.iter_mut().enumerate() {
                    let byte = image.pixels[(row + x) * image.channels + channel];
                    *to = (f32::from(byte) / 255.0 - mean) / std;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [channels, height, width] = self.input;
        write!(f, "{}: ", self.preset.name())?;
        match self.size {
            Some(size) if self.always_resize => {
                write!(f, "shorter side to {size}, centre crop {height}x{width}, ")?;
            }
            Some(size) => write!(
                f,
                "images not of {height}x{width}: shorter side to {size}, centre crop; "
            )?,
            None => write!(f, "{height}x{width}, ")?,
        }
        write!(
            f,
            "{channels} channel{}, x/255, mean {:?}, std {:?}",
            if channels == 1 { "" } else { "s" },
            self.mean,
            self.std
        )
    }
}

/// Resizes the shorter side to `size`.
fn shorter_side(image: &Image, size: usize) -> Result<Image, String> {
    let short = image.height.min(image.width);
    if short == 0 {
        return Err("the image is empty".into());
    }
    let scale = |n: usize| if n == short { size } else { size * n / short };
    let (height, width) = (scale(image.height), scale(image.width));
    if height.max(width) > 1 << 16 {
        return Err(format!(
            "an aspect ratio of {}x{}",
            image.height, image.width
        ));
    }
    if image.pixels.len() != image.height * image.width * image.channels {
        return Err("the pixels do not fill the image".into());
    }
    Ok(resize::bilinear(image, height, width))
}

/// Where a centre crop starts: the half of what is left, rounded to even as torchvision does.
fn centre(image: usize, crop: usize) -> usize {
    let left = image.saturating_sub(crop);
    left / 2 + usize::from(left % 4 == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(height: usize, width: usize, channels: usize) -> Image {
        let pixels = (0..height * width * channels).map(|i| i as u8).collect();
        Image {
            height,
            width,
            channels,
            pixels,
        }
    }

    #[test]
    fn channels_come_apart_and_are_normalised() {
        let mut p = Preprocess::new(Preset::Cifar10, [3, 1, 2]);
        p.mean = vec![0.0];
        p.std = vec![1.0 / 255.0, 0.5 / 255.0, 1.0 / 255.0];
        let mut out = [0.0; 6];
        p.apply(&image(1, 2, 3), &mut out).unwrap();
        let expected = [0.0, 3.0, 2.0, 8.0, 2.0, 5.0];
        assert!(
            out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4),
            "{out:?}"
        );
    }

    #[test]
    fn a_larger_image_is_resized_by_its_shorter_side_and_cropped_in_the_middle() {
        let p = Preprocess {
            size: Some(4),
            mean: vec![0.0],
            std: vec![1.0],
            ..Preprocess::new(Preset::FashionMnist, [1, 4, 4])
        };
        // Left half black, right half white, 8 x 16: after the resize 4 x 8, the crop is its middle.
        let pixels = (0..8 * 16)
            .map(|i| if i % 16 < 8 { 0 } else { 255 })
            .collect();
        let wide = Image {
            height: 8,
            width: 16,
            channels: 1,
            pixels,
        };
        let mut out = [9.0; 16];
        p.apply(&wide, &mut out).unwrap();
        for row in out.chunks(4) {
            assert!(row[0] < 0.01 && row[3] > 0.99, "{row:?}");
        }
    }

    #[test]
    fn a_crop_of_odd_margins_started_a_pixel_off_from_torchvision() {
        // int(round(n / 2)) in Python.
        for (margin, start) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (5, 2),
            (7, 4),
            (117, 58),
            (119, 60),
        ] {
            assert_eq!(centre(224 + margin, 224), start, "{margin}");
        }
    }

    #[test]
    fn images_that_do_not_fit_are_refused_with_a_way_out() {
        let p = Preprocess::new(Preset::Cifar10, [3, 32, 32]);
        let mut out = vec![0.0; 3 * 32 * 32];
        let e = p.apply(&image(28, 28, 3), &mut out).unwrap_err();
        assert!(e.contains("28x28") && e.contains("--size"), "{e}");
        let p = Preprocess::new(Preset::FashionMnist, [1, 28, 28]);
        let e = p.apply(&image(28, 28, 3), &mut out).unwrap_err();
        assert!(e.contains("3 channels"), "{e}");
    }

    #[test]
    fn statistics_must_fit() {
        let mut p = Preprocess::new(Preset::Cifar10, [3, 32, 32]);
        p.check().unwrap();
        p.mean = vec![0.1, 0.2];
        assert!(p.check().unwrap_err().to_string().contains("mean has 2"));
        p.mean = vec![0.1];
        p.std = vec![0.0];
        assert!(p.check().unwrap_err().to_string().contains("not positive"));
        p.std = vec![1.0];
        p.size = Some(16);
        assert!(p.check().unwrap_err().to_string().contains("16"));
    }
}
