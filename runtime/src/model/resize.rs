//! Where the elements of a resized axis come from.

use serde::{Deserialize, Serialize};

/// How large a resized picture is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resized {
    /// Height and width times these, rounded down.
    Scales([f32; 2]),
    /// This height and width.
    Sizes([usize; 2]),
}

/// How an element of a resized axis is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The nearest element, a tie going down.
    NearestPreferFloor,
    /// The nearest element, a tie going up.
    NearestPreferCeil,
    /// The element before.
    NearestFloor,
    /// The element behind.
    NearestCeil,
    /// Between the elements before and behind.
    Linear,
}

/// Where an index of a resized axis lies in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coordinates {
    /// Centres of pixels.
    HalfPixel,
    /// The same, but the first element where there is only one.
    PytorchHalfPixel,
    /// First to first, last to last.
    AlignCorners,
    /// First to first, by the scale.
    Asymmetric,
}

impl Resized {
    /// The size of axis `i` (0 height, 1 width) of an input of `input` elements, and the scale.
    pub(crate) fn of(self, i: usize, input: usize) -> (usize, f64) {
        match self {
            Resized::Scales(scales) => {
                let scale = f64::from(scales[i]);
                ((input as f64 * scale).floor().max(0.0) as usize, scale)
            }
            Resized::Sizes(sizes) => (sizes[i], sizes[i] as f64 / input.max(1) as f64),
        }
    }
}

/// For each element of the resized axis `i`: the two elements of the input that it lies between, and the weight of
/// the second. `input` is not 0.
pub fn taps(
    resized: Resized,
    interpolation: Interpolation,
    coordinates: Coordinates,
    i: usize,
    input: usize,
) -> Vec<(usize, usize, f32)> {
    let (output, scale) = resized.of(i, input);
    let last = input.saturating_sub(1);
    (0..output)
        .map(|o| {
            let half = (o as f64 + 0.5) / scale - 0.5;
            let x = match coordinates {
                Coordinates::HalfPixel => half,
                Coordinates::PytorchHalfPixel if output > 1 => half,
                Coordinates::AlignCorners if output > 1 => {
                    o as f64 * last as f64 / (output - 1) as f64
                }
                Coordinates::PytorchHalfPixel | Coordinates::AlignCorners => 0.0,
                Coordinates::Asymmetric => o as f64 / scale,
            };
            let near = |x: f64| (x.max(0.0) as usize).min(last);
            let one = match interpolation {
                Interpolation::NearestPreferFloor => near((x - 0.5).ceil()),
                Interpolation::NearestPreferCeil => near((x + 0.5).floor()),
                Interpolation::NearestFloor => near(x.floor()),
                Interpolation::NearestCeil => near(x.ceil()),
                Interpolation::Linear => {
                    let x = x.clamp(0.0, last as f64);
                    let low = near(x.floor());
                    return (low, (low + 1).min(last), (x - low as f64) as f32);
                }
            };
            (one, one, 0.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_lie_where_onnx_has_them() {
        let two = Resized::Scales([2.0, 2.0]);
        let nearest = |c, i| -> Vec<usize> { taps(two, i, c, 0, 3).iter().map(|t| t.0).collect() };
        assert_eq!(
            nearest(Coordinates::Asymmetric, Interpolation::NearestFloor),
            [0, 0, 1, 1, 2, 2]
        );
        assert_eq!(
            nearest(Coordinates::HalfPixel, Interpolation::NearestPreferFloor),
            [0, 0, 1, 1, 2, 2]
        );
        let line = taps(two, Interpolation::Linear, Coordinates::HalfPixel, 1, 2);
        assert_eq!(line, [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.0)]);
        let corners = Resized::Sizes([3, 3]);
        let line = taps(
            corners,
            Interpolation::Linear,
            Coordinates::AlignCorners,
            0,
            2,
        );
        assert_eq!(line, [(0, 1, 0.0), (0, 1, 0.5), (1, 1, 0.0)]);
    }
}
