//! MobileNet-V1 (Howard et al.): a strided 3x3 stem, then pairs of a depthwise and a 1x1 convolution, one sequence
//! `model.0` to `model.13` of modules as the widely used PyTorch versions name them.

use super::builder::{Builder, Value};
use super::fresh::Fresh;
use lacuna::model::Weights;

/// Output channels and stride of each pair.
const PAIRS: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];
const STEM: usize = 32;

pub(super) fn detect(tensors: &Weights) -> bool {
    let has = |name: &str| tensors.contains_key(name);
    has("model.0.0.weight") && has("model.13.3.weight") && has("fc.weight")
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let blocks = b.count("model");
    if blocks != PAIRS.len() + 1 {
        return Err(format!(
            "{blocks} blocks; MobileNet-V1 has {}",
            PAIRS.len() + 1
        ));
    }
    let x = b.input("model.0.0", 224);
    let mut x = unit(b, "model.0", &x, [0, 1, 2], 2, 1);
    for (i, (_, stride)) in PAIRS.into_iter().enumerate() {
        let name = format!("model.{}", i + 1);
        x = unit(b, &name, &x, [0, 1, 2], stride, 1);
        x = unit(b, &name, &x, [3, 4, 5], 1, 0);
    }
    b.classify("fc", &x);
    Ok("mobilenet-v1".into())
}

/// A convolution, a normalisation and a ReLU at these places of a sequence.
fn unit(
    b: &mut Builder<'_>,
    name: &str,
    x: &Value,
    at: [usize; 3],
    stride: usize,
    pad: usize,
) -> Value {
    let [conv, norm, relu] = at.map(|i| format!("{name}.{i}"));
    let y = b.conv(&conv, x, stride, pad);
    let y = b.norm(&norm, &y);
    b.relu(&relu, &y)
}

/// `mobilenet-v1`: width 1, a thousand classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    if name != "mobilenet-v1" {
        return false;
    }
    f.conv("model.0.0", STEM, 3, 3);
    f.norm("model.0.1", STEM);
    let mut inputs = STEM;
    for (i, (outputs, _)) in PAIRS.into_iter().enumerate() {
        let part = |p: usize| format!("model.{}.{p}", i + 1);
        f.grouped(&part(0), inputs, inputs, 3, inputs);
        f.norm(&part(1), inputs);
        f.conv(&part(3), outputs, inputs, 1);
        f.norm(&part(4), outputs);
        inputs = outputs;
    }
    f.linear("fc", 1000, inputs);
    true
}
