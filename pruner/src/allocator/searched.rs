//! Sparsities that a search found.

use super::{Allocation, Allocator, Budget, at_sparsities};
use crate::{Error, Layer, Result};
use std::collections::BTreeMap;

/// Each layer loses the share that stands beside its name; in all the budget's share goes, to the weight.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    /// By the name of a layer's weight, in `[0, 1)`.
    pub sparsities: BTreeMap<String, f64>,
}

impl Allocator for Searched {
    fn name(&self) -> &'static str {
        "search"
    }

    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation> {
        let of = |l: &Layer<'_>| {
            let given = self.sparsities.get(l.name).copied();
            match given {
                Some(s) if (0.0..1.0).contains(&s) => Ok(s),
                Some(s) => Err(Error::Recipe(format!("sparsities: `{}` = {s}", l.name))),
                None if self.sparsities.is_empty() => Err(Error::Recipe(
                    "allocator `search` looks for sparsities on a text: give one; a dry run has none".into(),
                )),
                None => Err(Error::Recipe(format!("sparsities: none for `{}`", l.name))),
            }
        };
        let start: Vec<f64> = layers.iter().map(of).collect::<Result<_>>()?;
        if let Some(name) = (self.sparsities.keys()).find(|n| !layers.iter().any(|l| l.name == **n))
        {
            return Err(Error::Recipe(format!(
                "sparsities: `{name}` is no layer that is pruned"
            )));
        }
        at_sparsities(layers, &start, budget)
    }
}
