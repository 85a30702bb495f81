//! The small network for Fashion-MNIST: four convolutions with batch normalisation, two poolings,
//! a global mean and a linear layer.

use super::builder::Builder;
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
