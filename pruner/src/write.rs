//! Saving a result, and checking what was saved.

use crate::{Error, Plan, Pruned, Result};
use lacuna::Model;
use rayon::prelude::*;
use std::path::Path;

/// Saves a pruned model, reopens it, and compares the zeros of every layer with the plan.
/// Returns the reopened model.
pub fn save(pruned: &Pruned, path: &Path) -> Result<Model> {
    pruned.model.save(path)?;
    verify(&pruned.plan, path)
}

/// Opens what was written and compares the zeros of every layer with the plan.
pub(crate) fn verify(plan: &Plan, path: &Path) -> Result<Model> {
    let reopened = Model::open(path)?;
    plan.layers.par_iter().try_for_each(|layer| {
        let weight = reopened.weights().get(&layer.weight);
        let found = weight.map_or(0, |w| w.numel() - w.count_nonzero());
        if weight.is_none() || found != layer.zeros_after {
            return Err(Error::Verify {
                path: path.to_owned(),
                weight: layer.weight.clone(),
                found,
                planned: layer.zeros_after,
            });
        }
        Ok(())
    })?;
    Ok(reopened)
}
