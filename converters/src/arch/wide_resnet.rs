//! Wide ResNets for CIFAR (Zagoruyko and Komodakis): pre-activated basic blocks, three groups of them.
//!
//! A block whose channels change normalises before the branches part, so that its 1x1 shortcut sees the
//! activations; others add the block's own input.

use super::builder::{Builder, Value};
use super::fresh::Fresh;
use lacuna::model::Weights;

const GROUPS: [&str; 3] = ["block1.layer", "block2.layer", "block3.layer"];
const STEM: usize = 16;

pub(super) fn detect(tensors: &Weights) -> bool {
    let has = |name: &str| tensors.contains_key(name);
    has("conv1.weight") && has("block3.layer.0.conv2.weight") && has("fc.weight")
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let blocks = GROUPS.map(|group| b.count(group));
    let x = b.input("conv1", 32);
    let mut x = b.conv("conv1", &x, 1, 1);
    for (g, (group, count)) in GROUPS.iter().zip(blocks).enumerate() {
        for i in 0..count {
            let stride = if i == 0 && g > 0 { 2 } else { 1 };
            x = block(b, &format!("{group}.{i}"), &x, stride);
        }
    }
    let x = b.norm("bn1", &x);
    let x = b.relu("relu", &x);
    b.classify("fc", &x);
    match blocks {
        [n, m, k] if n == m && m == k && n > 0 => {
            let width = b.size("block1.layer.0.conv1.weight", 0) / STEM;
            Ok(format!("wrn-{}-{width}", 6 * n + 4))
        }
        _ => Err(format!(
            "groups of {blocks:?} blocks; they are equal and not empty"
        )),
    }
}

fn block(b: &mut Builder<'_>, name: &str, x: &Value, stride: usize) -> Value {
    let part = |p: &str| format!("{name}.{p}");
    let a = b.norm(&part("bn1"), x);
    let a = b.relu(&part("relu1"), &a);
    let y = b.conv(&part("conv1"), &a, stride, 1);
    let y = b.norm(&part("bn2"), &y);
    let y = b.relu(&part("relu2"), &y);
    let y = b.conv(&part("conv2"), &y, 1, 1);
    let short = match b.has(&part("convShortcut.weight")) {
        true => b.conv(&part("convShortcut"), &a, stride, 0),
        false => x.clone(),
    };
    b.add(&part("add"), &y, &short)
}

/// `wrn-D-W`: depth 6n + 4, W times the channels of a ResNet; ten classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    let Some((depth, width)) = name.strip_prefix("wrn-").and_then(|n| n.split_once('-')) else {
        return false;
    };
    let (Ok(depth), Ok(width)) = (depth.parse::<usize>(), width.parse::<usize>()) else {
        return false;
    };
    if !(10..=100).contains(&depth) || depth % 6 != 4 || !(1..=20).contains(&width) {
        return false;
    }
    f.conv("conv1", STEM, 3, 3);
    let mut inputs = STEM;
    for (g, group) in GROUPS.iter().enumerate() {
        let channels = (STEM << g) * width;
        for i in 0..(depth - 4) / 6 {
            let part = |p: &str| format!("{group}.{i}.{p}");
            f.norm(&part("bn1"), inputs);
            f.conv(&part("conv1"), channels, inputs, 3);
            f.norm(&part("bn2"), channels);
            f.conv(&part("conv2"), channels, channels, 3);
            if inputs != channels {
                f.conv(&part("convShortcut"), channels, inputs, 1);
            }
            inputs = channels;
        }
    }
    f.norm("bn1", inputs);
    f.linear("fc", 10, inputs);
    true
}
