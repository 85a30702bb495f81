//! The small network for Fashion-MNIST: four convolutions with batch normalisation, two poolings,
//! a global mean and a linear layer.

use super::builder::Builder;
use super::fresh::Fresh;
use lacuna::model::Weights;

pub(super) fn detect(tensors: &Weights) -> bool {
    ["conv1.weight", "conv4.weight", "bn4.weight", "fc.weight"]
        .iter()
        .all(|name| tensors.contains_key(*name))
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let mut x = b.input("conv1", 28);
    for i in 1..=4 {
        x = b.conv(&format!("conv{i}"), &x, 1, 1);
        x = b.norm(&format!("bn{i}"), &x);
        x = b.relu(&format!("relu{i}"), &x);
        if i <= 2 {
            x = b.max_pool(&format!("pool{i}"), &x, 2, 2, 0);
        }
    }
    b.classify("fc", &x);
    Ok("fashion-cnn".into())
}

/// `fashion-cnn`: ten classes.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    if name != "fashion-cnn" {
        return false;
    }
    const CHANNELS: [usize; 5] = [1, 32, 64, 128, 128];
    for i in 1..CHANNELS.len() {
        f.conv(&format!("conv{i}"), CHANNELS[i], CHANNELS[i - 1], 3);
        f.norm(&format!("bn{i}"), CHANNELS[i]);
    }
    f.linear("fc", 10, CHANNELS[4]);
    true
}
