//! The ResNets of He et al. for CIFAR: a 3x3 stem, three stages of n basic blocks, a linear layer.
//! Shortcuts between stages have no tensors (option A: every second pixel, channels padded with
//! zeros on both sides) or are 1x1 convolutions (option B).

use super::builder::{Builder, Value};
use super::fresh::Fresh;
use lacuna::model::{Op, PadMode, Weights};

const STAGES: [&str; 3] = ["layer1", "layer2", "layer3"];

pub(super) fn detect(tensors: &Weights) -> bool {
    let has = |name: &str| tensors.contains_key(name);
    has("conv1.weight")
        && has("layer3.0.conv2.weight")
        && has("linear.weight")
        && !has("layer4.0.conv1.weight")
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let blocks = STAGES.map(|stage| b.count(stage));
    let x = b.input("conv1", 32);
    let x = b.conv("conv1", &x, 1, 1);
    let x = b.norm("bn1", &x);
    let mut x = b.relu("relu1", &x);
    for (stage, count) in STAGES.iter().zip(blocks) {
        for i in 0..count {
            let stride = if i == 0 && *stage != "layer1" { 2 } else { 1 };
            x = block(b, &format!("{stage}.{i}"), &x, stride)?;
        }
    }
    b.classify("linear", &x);
    Ok(match blocks {
        [n, m, k] if n == m && m == k && n > 0 => format!("cifar-resnet{}", 6 * n + 2),
        [0, ..] | [_, 0, _] | [.., 0] => {
            return Err(format!(
                "stages of {blocks:?} blocks; each has at least one"
            ));
        }
        _ => "cifar-resnet".into(),
    })
}

fn block(b: &mut Builder<'_>, name: &str, x: &Value, stride: usize) -> Result<Value, String> {
    let part = |p: &str| format!("{name}.{p}");
    let y = b.conv(&part("conv1"), x, stride, 1);
    let y = b.norm(&part("bn1"), &y);
    let y = b.relu(&part("relu1"), &y);
    let y = b.conv(&part("conv2"), &y, 1, 1);
    let y = b.norm(&part("bn2"), &y);
    let short = if b.has(&part("shortcut.0.weight")) {
        let s = b.conv(&part("shortcut.0"), x, stride, 0);
        b.norm(&part("shortcut.1"), &s)
    } else if stride != 1 || y.channels != x.channels {
        padded(b, name, x, stride, y.channels)?
    } else {
        x.clone()
    };
    let y = b.add(&part("add"), &y, &short);
    Ok(b.relu(&part("relu2"), &y))
}

/// Option A: rows and columns in steps of `stride`, and zero channels, half before and half after.
fn padded(
    b: &mut Builder<'_>,
    name: &str,
    x: &Value,
    stride: usize,
    channels: usize,
) -> Result<Value, String> {
    let mut y = x.clone();
    if stride != 1 {
        let op = Op::Slice {
            axes: vec![2, 3],
            starts: vec![0; 2],
            ends: vec![i64::MAX; 2],
            steps: vec![stride as i64; 2],
        };
        y = b.apply(&format!("{name}.shortcut.slice"), op, x);
    }
    let half = match channels.checked_sub(x.channels) {
        Some(more) if more % 2 == 0 => (more / 2) as i64,
        // A missing tensor leaves the channels open; the end reports it.
        _ if channels == 0 => 0,
        _ => {
            return Err(format!(
                "`{name}` goes from {} to {channels} channels, which no even zero padding does",
                x.channels
            ));
        }
    };
    if half != 0 {
        let op = Op::Pad {
            pads: vec![0, half, 0, 0, 0, half, 0, 0],
            mode: PadMode::Constant(0.0),
        };
        y = b.apply(&format!("{name}.shortcut.pad"), op, &y);
        y.channels = channels;
    }
    Ok(y)
}

/// `resnet-20` to `resnet-110` (depth 6n + 2): shortcuts without tensors, ten classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    let Some(depth) = super::depth(name, &["cifar-resnet", "resnet"]) else {
        return false;
    };
    if !(8..=1202).contains(&depth) || depth % 6 != 2 || super::resnet::DEPTHS.contains(&depth) {
        return false;
    }
    f.conv("conv1", 16, 3, 3);
    f.norm("bn1", 16);
    let mut inputs = 16;
    for (s, stage) in STAGES.iter().enumerate() {
        let channels = 16 << s;
        for i in 0..(depth - 2) / 6 {
            let part = |p: &str| format!("{stage}.{i}.{p}");
            f.conv(&part("conv1"), channels, inputs, 3);
            f.norm(&part("bn1"), channels);
            f.conv(&part("conv2"), channels, channels, 3);
            f.norm(&part("bn2"), channels);
            inputs = channels;
        }
    }
    f.linear("linear", 10, inputs);
    true
}
