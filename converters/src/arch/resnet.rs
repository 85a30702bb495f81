//! torchvision's ResNets: basic blocks or bottlenecks (the stride on the 3x3 convolution), grouped
//! and wide ones included.

use super::builder::{Builder, Value};
use super::fresh::Fresh;
use lacuna::model::Weights;

/// The depths that torchvision has.
pub(super) const DEPTHS: [usize; 5] = [18, 34, 50, 101, 152];

const STAGES: [&str; 4] = ["layer1", "layer2", "layer3", "layer4"];

pub(super) fn detect(tensors: &Weights) -> bool {
    let has = |name: &str| tensors.contains_key(name);
    has("conv1.weight") && has("layer4.0.conv2.weight") && has("fc.weight")
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let blocks = STAGES.map(|stage| b.count(stage));
    if blocks.contains(&0) {
        return Err(format!(
            "stages of {blocks:?} blocks; each has at least one"
        ));
    }
    let stem = b.size("conv1.weight", 2);
    if b.has("conv1.weight") && stem != 7 {
        return Err(format!(
            "the stem is {stem}x{stem}; torchvision's is 7x7 and followed by a pooling"
        ));
    }
    let bottleneck = b.has("layer1.0.conv3.weight");
    let x = b.input("conv1", 224);
    let x = b.conv("conv1", &x, 2, 3);
    let x = b.norm("bn1", &x);
    let x = b.relu("relu", &x);
    let mut x = b.max_pool("maxpool", &x, 3, 2, 1);
    for (stage, count) in STAGES.iter().zip(blocks) {
        for i in 0..count {
            let stride = if i == 0 && *stage != "layer1" { 2 } else { 1 };
            x = block(b, &format!("{stage}.{i}"), &x, stride, bottleneck);
        }
    }
    b.classify("fc", &x);
    Ok(member(b, blocks, bottleneck))
}

/// The name of the network with these blocks.
fn member(b: &Builder<'_>, blocks: [usize; 4], bottleneck: bool) -> String {
    let plain = b.size("layer1.0.conv1.weight", 0) == 64;
    let depth = match (bottleneck, blocks) {
        (false, [2, 2, 2, 2]) => 18,
        (false, [3, 4, 6, 3]) => 34,
        (true, [3, 4, 6, 3]) => 50,
        (true, [3, 4, 23, 3]) => 101,
        (true, [3, 8, 36, 3]) => 152,
        _ => return "resnet".into(),
    };
    if plain {
        format!("resnet{depth}")
    } else {
        "resnet".into()
    }
}

fn block(b: &mut Builder<'_>, name: &str, x: &Value, stride: usize, bottleneck: bool) -> Value {
    let part = |p: &str| format!("{name}.{p}");
    let y = if bottleneck {
        let y = b.conv(&part("conv1"), x, 1, 0);
        let y = b.norm(&part("bn1"), &y);
        let y = b.relu(&part("relu1"), &y);
        let y = b.conv(&part("conv2"), &y, stride, 1);
        let y = b.norm(&part("bn2"), &y);
        let y = b.relu(&part("relu2"), &y);
        let y = b.conv(&part("conv3"), &y, 1, 0);
        b.norm(&part("bn3"), &y)
    } else {
        let y = b.conv(&part("conv1"), x, stride, 1);
        let y = b.norm(&part("bn1"), &y);
        let y = b.relu(&part("relu1"), &y);
        let y = b.conv(&part("conv2"), &y, 1, 1);
        b.norm(&part("bn2"), &y)
    };
    let short = if b.has(&part("downsample.0.weight")) {
        let s = b.conv(&part("downsample.0"), x, stride, 0);
        b.norm(&part("downsample.1"), &s)
    } else {
        x.clone()
    };
    let y = b.add(&part("add"), &y, &short);
    b.relu(&part("relu"), &y)
}

/// `resnet-18` to `resnet-152`: a thousand classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    let (blocks, expansion) = match super::depth(name, &["resnet"]) {
        Some(18) => ([2, 2, 2, 2], 1),
        Some(34) => ([3, 4, 6, 3], 1),
        Some(50) => ([3, 4, 6, 3], 4),
        Some(101) => ([3, 4, 23, 3], 4),
        Some(152) => ([3, 8, 36, 3], 4),
        _ => return false,
    };
    f.conv("conv1", 64, 3, 7);
    f.norm("bn1", 64);
    let mut inputs = 64;
    for (s, (stage, count)) in STAGES.iter().zip(blocks).enumerate() {
        let width = 64 << s;
        let outputs = width * expansion;
        for i in 0..count {
            let part = |p: &str| format!("{stage}.{i}.{p}");
            let layers = match expansion {
                1 => vec![(width, inputs, 3), (width, width, 3)],
                _ => vec![(width, inputs, 1), (width, width, 3), (outputs, width, 1)],
            };
            for (n, (o, c, k)) in layers.into_iter().enumerate() {
                f.conv(&part(&format!("conv{}", n + 1)), o, c, k);
                f.norm(&part(&format!("bn{}", n + 1)), o);
            }
            if inputs != outputs || (i == 0 && s > 0) {
                f.conv(&part("downsample.0"), outputs, inputs, 1);
                f.norm(&part("downsample.1"), outputs);
            }
            inputs = outputs;
        }
    }
    f.linear("fc", 1000, inputs);
    true
}
