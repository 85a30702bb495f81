//! `Resize`, and `Upsample` before it, over two spatial axes.

use super::axes;
use super::call::Call;
use super::convert::Converter;
use super::ints::Int;
use super::value::Value;
use lacuna::model::{Coordinates, Dim, Interpolation, Op, Resized};

/// Converts one of the two.
pub(super) fn convert(c: &mut Converter<'_>, call: &mut Call<'_>) -> Result<Value, String> {
    let x = call.input(0)?.clone();
    let shape = x.shape();
    if shape.len() != 4 {
        return Err(format!(
            "{} axes; only pictures [N,C,H,W] are resized",
            shape.len()
        ));
    }
    // Which inputs hold scales and sizes, by operator set.
    let (scales, sizes) = match (call.op, call.opset) {
        ("Upsample", ..9) => (None, None),
        ("Upsample", _) | (_, ..11) => (Some(1), None),
        _ => (Some(2), Some(3)),
    };
    let listed = match call.attrs.ints("axes")? {
        None => (0..4).collect(),
        Some(axes) => axes::indices(axes, 4)?,
    };
    let factors = match scales {
        None => call.attrs.floats("scales")?.map(<[f32]>::to_vec),
        Some(i) if call.optional(i).is_none() => None,
        Some(i) => call.weight(i)?.weight.to_f32(),
    };
    let wanted = match sizes {
        Some(i) => call.shape_list(i)?,
        None => None,
    };
    let resized = match (factors.filter(|f| !f.is_empty()), wanted) {
        (Some(_), Some(_)) => return Err("both scales and sizes".into()),
        (Some(factors), None) => {
            if factors.len() != listed.len() {
                return Err(format!(
                    "{} scales for {} axes",
                    factors.len(),
                    listed.len()
                ));
            }
            let mut all = [1.0f32; 4];
            for (&axis, &factor) in listed.iter().zip(&factors) {
                all[axis] = factor;
            }
            if all[..2] != [1.0; 2] {
                return Err(format!(
                    "scales {factors:?} change more than height and width"
                ));
            }
            Resized::Scales([all[2], all[3]])
        }
        (None, Some(list)) => {
            if list.items.len() != listed.len() {
                return Err(format!(
                    "{} sizes for {} axes",
                    list.items.len(),
                    listed.len()
                ));
            }
            let mut all: Vec<Int> = x.shape_ints();
            for (&axis, size) in listed.iter().zip(&list.items) {
                if axis < 2 && *size != all[axis] {
                    return Err(format!(
                        "axis {axis} is resized to {size}; only height and width are"
                    ));
                }
                all[axis] = size.clone();
            }
            let known = |axis: usize| {
                let n = all[axis].known().and_then(|n| usize::try_from(n).ok());
                n.ok_or_else(|| format!("axis {axis} is resized to {}", all[axis]))
            };
            Resized::Sizes([known(2)?, known(3)?])
        }
        (None, None) => return Err("neither scales nor sizes".into()),
    };
    let since_11 = call.op == "Resize" && call.opset >= 11;
    let nearest = call.attrs.text("nearest_mode")?;
    let interpolation = match call.attrs.text("mode")? {
        None | Some("nearest") => match nearest {
            None if !since_11 => Interpolation::NearestFloor,
            None | Some("round_prefer_floor") => Interpolation::NearestPreferFloor,
            Some("round_prefer_ceil") => Interpolation::NearestPreferCeil,
            Some("floor") => Interpolation::NearestFloor,
            Some("ceil") => Interpolation::NearestCeil,
            Some(other) => return Err(format!("nearest_mode `{other}`")),
        },
        Some("linear" | "bilinear") => Interpolation::Linear,
        Some(other) => return Err(format!("mode `{other}`; supported: nearest, linear")),
    };
    let coordinates = match call.attrs.text("coordinate_transformation_mode")? {
        None if !since_11 => Coordinates::Asymmetric,
        None | Some("half_pixel") => Coordinates::HalfPixel,
        Some("pytorch_half_pixel") => Coordinates::PytorchHalfPixel,
        Some("align_corners") => Coordinates::AlignCorners,
        Some("asymmetric") => Coordinates::Asymmetric,
        Some(other) => {
            return Err(format!(
                "coordinate_transformation_mode `{other}`; supported: half_pixel, \
                 pytorch_half_pixel, align_corners, asymmetric"
            ));
        }
    };
    if let (Coordinates::AlignCorners, Resized::Scales(scales)) = (coordinates, resized) {
        for (scale, size) in scales.iter().zip(&shape[2..]) {
            let whole = match size {
                Dim::Fixed(n) => (*n as f64 * f64::from(*scale)).fract() == 0.0,
                Dim::Symbol(_) => false,
            };
            // The standard's corners then lie beyond the last element, those of other runtimes on it.
            if !whole {
                return Err(format!(
                    "align_corners with a scale of {scale} of {size} elements"
                ));
            }
        }
    }
    if call.attrs.flag("antialias", false)? {
        return Err("antialias 1 is not supported".into());
    }
    match call.attrs.text("keep_aspect_ratio_policy")? {
        None | Some("stretch") => {}
        Some(other) => {
            return Err(format!(
                "keep_aspect_ratio_policy `{other}`; supported: stretch"
            ));
        }
    }
    // Of cubic interpolation and of crops.
    call.attrs
        .ignore(&["cubic_coeff_a", "exclude_outside", "extrapolation_value"]);
    let op = Op::Resize {
        resized,
        interpolation,
        coordinates,
    };
    c.emit(call, op, &[&x])
}
