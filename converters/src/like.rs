//! A model's weights under the names of the checkpoint that it was converted from.

use crate::format::Format;
use crate::source::Source;
use crate::{Result, read_tensors};
use lacuna::Model;
use lacuna::model::Weights;
use std::collections::BTreeSet;
use std::path::Path;

/// The tensors of a state dict, with the model's weights in the place of those that they came from: a checkpoint
/// that whoever loads the original loads too. Tensors that the model does not have, such as counters, stay.
///
/// A tensor belongs to the weight of its name, or of its name without what some wrapper put before it, or with
/// `model.` before it; its shape must be that of the weight.
///
/// # Errors
/// When the file is no state dict, a weight of the model has no tensor there, or a shape differs.
pub fn in_place_of(model: &Model, checkpoint: impl AsRef<Path>) -> Result<Weights> {
    let path = checkpoint.as_ref();
    let format = Format::of_file(path)?;
    let source = Source::open(path)?;
    let mut tensors = read_tensors(format, &source)?;
    let weights = model.weights();
    let mut used = BTreeSet::new();
    for (name, tensor) in &mut tensors {
        let parts = std::iter::successors(Some(name.as_str()), |n| Some(n.split_once('.')?.1));
        let below = format!("model.{name}");
        let found = parts
            .chain([below.as_str()])
            .find_map(|n| weights.get_key_value(n));
        let Some((own, weight)) = found else {
            continue;
        };
        if weight.shape() != tensor.shape() {
            return Err(source.tensor_error(
                name,
                format!(
                    "of shape {:?}, the model's `{own}` is {:?}",
                    tensor.shape(),
                    weight.shape()
                ),
            ));
        }
        used.insert(own.as_str());
        *tensor = weight.clone();
    }
    match weights.keys().find(|name| !used.contains(name.as_str())) {
        Some(name) => Err(source.error(format!(
            "has no tensor for the weight `{name}`: it is not the checkpoint of this model"
        ))),
        None => Ok(tensors),
    }
}
