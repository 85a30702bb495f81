//! Opens a model and counts what is in it.

use crate::Result;
use lacuna::Model;
use lacuna::model::Dim;
use lacuna_convert::Options;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// A model with what opening it took.
#[derive(Debug)]
pub struct Opened {
    /// The model, its weights encoded where that makes them smaller.
    pub model: Model,
    /// Reading the file and, for an outside format, converting it.
    pub load: Duration,
    /// Encoding dense weights that have zeros; 0 when that was not done.
    pub encode: Duration,
}

/// Opens a Lacuna file or anything that the converters open. A model without any sparse weight is
/// encoded on the fly when `encode` says so; one that has some is taken as its maker left it.
///
/// A model whose only input has a fixed first dimension is opened once more with `batch` in its
/// place, unless `batch` is 1.
///
/// # Errors
/// Those of the converters.
pub fn open(path: &Path, batch: usize, encode: bool) -> Result<Opened> {
    let mut start = Instant::now();
    let mut options = Options::default();
    let mut model = lacuna_convert::open(path, &options)?;
    if batch != 1
        && let [input] = model.graph().inputs.as_slice()
        && let [Dim::Fixed(first), rest @ ..] = input.shape.as_slice()
        && *first != batch
    {
        let mut shape = vec![Dim::Fixed(batch)];
        shape.extend_from_slice(rest);
        options.input = Some(shape);
        start = Instant::now();
        model = lacuna_convert::open(path, &options)?;
    }
    let load = start.elapsed();
    let mut spent = Duration::ZERO;
    if encode && !model.weights().values().any(|w| w.is_sparse()) {
        let start = Instant::now();
        model = model.encoded();
        spent = start.elapsed();
    }
    Ok(Opened {
        model,
        load,
        encode: spent,
    })
}

/// What is in a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Elements of all weights.
    pub parameters: usize,
    /// Those that are not zero.
    pub nonzeros: usize,
    /// Elements of the weights that pruning looks at: convolutions and linears.
    pub prunable: usize,
    /// Those of them that are not zero.
    pub prunable_nonzeros: usize,
}

impl Facts {
    /// Counts floating-point weights; shape constants are no parameters.
    pub fn of(model: &Model) -> Facts {
        let mut facts = Facts::default();
        for weight in model
            .weights()
            .values()
            .filter(|w| w.element_dtype().is_float())
        {
            facts.parameters += weight.numel();
            facts.nonzeros += weight.count_nonzero();
        }
        for (name, _) in model.prunable() {
            if let Some(weight) = model.weights().get(name) {
                facts.prunable += weight.numel();
                facts.prunable_nonzeros += weight.count_nonzero();
            }
        }
        facts
    }

    /// The share of zeros among all parameters.
    pub fn sparsity(&self) -> f64 {
        zeros(self.parameters, self.nonzeros)
    }

    /// The share of zeros among the weights that pruning looks at.
    pub fn prunable_sparsity(&self) -> f64 {
        zeros(self.prunable, self.prunable_nonzeros)
    }
}

fn zeros(all: usize, nonzeros: usize) -> f64 {
    match all {
        0 => 0.0,
        _ => 1.0 - nonzeros as f64 / all as f64,
    }
}
