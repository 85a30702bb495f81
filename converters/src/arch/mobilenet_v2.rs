//! torchvision's MobileNetV2: inverted residuals between a 3x3 stem and a 1x1 convolution.

use super::builder::{Builder, Value};
use super::fresh::Fresh;
use lacuna::model::{Op, Weights};

/// The stride of each inverted residual; no tensor tells it.
const STRIDES: [usize; 17] = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1];

pub(super) fn detect(tensors: &Weights) -> bool {
    let has = |name: &str| tensors.contains_key(name);
    has("features.0.0.weight")
        && has("features.1.conv.0.0.weight")
        && has("features.17.conv.2.weight")
        && has("classifier.1.weight")
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let blocks = b.count("features");
    if blocks != STRIDES.len() + 2 {
        return Err(format!(
            "{blocks} features; MobileNetV2 has {}",
            STRIDES.len() + 2
        ));
    }
    let x = b.input("features.0.0", 224);
    let mut x = unit(b, "features.0", &x, 2, 1);
    for (i, stride) in STRIDES.into_iter().enumerate() {
        x = block(b, &format!("features.{}", i + 1), &x, stride);
    }
    let x = unit(b, "features.18", &x, 1, 0);
    b.classify("classifier.1", &x);
    Ok("mobilenet-v2".into())
}

/// A convolution, a normalisation and a ReLU6.
fn unit(b: &mut Builder<'_>, name: &str, x: &Value, stride: usize, pad: usize) -> Value {
    let y = b.conv(&format!("{name}.0"), x, stride, pad);
    let y = b.norm(&format!("{name}.1"), &y);
    let relu6 = Op::Clip {
        min: Some(0.0),
        max: Some(6.0),
    };
    b.apply(&format!("{name}.2"), relu6, &y)
}

fn block(b: &mut Builder<'_>, name: &str, x: &Value, stride: usize) -> Value {
    let part = |p: &str| format!("{name}.conv.{p}");
    // Without an expansion the block starts with its depthwise convolution.
    let (y, next) = if b.has(&part("3.weight")) {
        let y = unit(b, &part("0"), x, 1, 0);
        (unit(b, &part("1"), &y, stride, 1), 2)
    } else {
        (unit(b, &part("0"), x, stride, 1), 1)
    };
    let y = b.conv(&part(&next.to_string()), &y, 1, 0);
    let y = b.norm(&part(&(next + 1).to_string()), &y);
    if stride == 1 && y.channels == x.channels {
        b.add(&format!("{name}.add"), &y, x)
    } else {
        y
    }
}

/// `mobilenet-v2`: width 1, a thousand classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    if name != "mobilenet-v2" {
        return false;
    }
    /// Expansion, output channels and repeats.
    const SETTINGS: [(usize, usize, usize); 7] = [
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ];
    f.conv("features.0.0", 32, 3, 3);
    f.norm("features.0.1", 32);
    let (mut inputs, mut at) = (32, 1);
    for (expansion, outputs, repeats) in SETTINGS {
        for _ in 0..repeats {
            let part = |p: &str| format!("features.{at}.conv.{p}");
            let hidden = inputs * expansion;
            let mut next = 0;
            if expansion != 1 {
                f.conv(&part("0.0"), hidden, inputs, 1);
                f.norm(&part("0.1"), hidden);
                next = 1;
            }
            f.grouped(&part(&format!("{next}.0")), hidden, hidden, 3, hidden);
            f.norm(&part(&format!("{next}.1")), hidden);
            f.conv(&part(&(next + 1).to_string()), outputs, hidden, 1);
            f.norm(&part(&(next + 2).to_string()), outputs);
            (inputs, at) = (outputs, at + 1);
        }
    }
    f.conv("features.18.0", 1280, inputs, 1);
    f.norm("features.18.1", 1280);
    f.linear("classifier.1", 1000, 1280);
    true
}
