//! A model in training: its weights, their gradients, and what training does with each.

use super::compile::{Sample, compile};
use super::prepare::{prepare, refuse, strip};
use crate::tasks::{Head, TaskSettings, heads};
use crate::{Error, Result};
use lacuna::{Model, Weight};

/// What training does with a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Descends; a matrix or kernel.
    Weight,
    /// Descends; a bias, or scale and offset of a normalisation.
    Vector,
    /// A running mean or variance.
    Statistic,
    /// Stays as it is.
    Constant,
}

/// A weight of the model in training.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
    pub data: Vec<f32>,
}

impl Role {
    /// Whether an optimiser changes such a weight.
    pub fn descends(self) -> bool {
        matches!(self, Role::Weight | Role::Vector)
    }
}

/// How fast running statistics follow the batches.
const FOLLOW: f64 = 0.1;

/// A model in training, whatever engine computes its gradients.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// The graph with an open batch and without a softmax at its end.
    pub model: Model,
    /// What it learns.
    pub heads: Vec<Head>,
    /// What it takes.
    pub sample: Sample,
    pub parameters: Vec<Parameter>,
    /// For each parameter, as long as its data where its role descends, else empty.
    pub gradients: Vec<Vec<f32>>,
}

impl Network {
    /// A classifier: its first output is one row of classes for each sample.
    #[cfg(test)]
    pub fn new(model: &Model) -> Result<Network> {
        Network::with_tasks(model, &[])
    }

    /// A network of these tasks; a classifier without any.
    pub fn with_tasks(model: &Model, tasks: &[TaskSettings]) -> Result<Network> {
        let (narrow, mut heads) = match tasks {
            [] => (strip(model)?, Vec::new()),
            _ => heads(model, tasks)?,
        };
        let (model, parameters) = prepare(&narrow)?;
        let compiled = compile(&model, &parameters, 2, 1)?;
        if tasks.is_empty() {
            let logits = &compiled.outputs[0].1;
            let flat = logits.len() == 2 || logits.len() == 4 && logits[2..] == [1, 1];
            if !flat {
                return Err(refuse(format!(
                    "the output has shape {logits:?} for 2 images, not one row of classes for each"
                )));
            }
            heads = vec![Head::classifier(logits[1])];
        }
        let gradient = |p: &Parameter| vec![0.0; if p.role.descends() { p.data.len() } else { 0 }];
        Ok(Network {
            gradients: parameters.iter().map(gradient).collect(),
            parameters,
            heads,
            sample: compiled.sample,
            model,
        })
    }

    /// The model with the weights as they are now, of the dtypes that they had.
    pub fn model(&self, like: &Model) -> Result<Model> {
        let mut model = like.clone();
        for p in &self.parameters {
            if p.role == Role::Constant {
                continue;
            }
            let dtype = like.weights().get(&p.name).map(Weight::dtype);
            let weight = Weight::from_f32(&p.shape, &p.data);
            let weight = match dtype {
                Some(dtype) if dtype != weight.dtype() => weight
                    .to_dtype(dtype)
                    .map_err(|what| Error::Training(format!("weight `{}`: {what}", p.name)))?,
                _ => weight,
            };
            model.set_weight(&p.name, weight)?;
        }
        Ok(model)
    }

    /// Moves the running mean and the running variance of a normalisation towards the batch's, of `rows` values each.
    /// The variance is the biased one; the running one is not.
    pub fn follow(&mut self, running: [Option<usize>; 2], batch: [&[f64]; 2], rows: usize) {
        let rows = rows as f64;
        let unbiased = rows / (rows - 1.0).max(1.0);
        for ((at, new), factor) in running.into_iter().zip(batch).zip([1.0, unbiased]) {
            let Some(at) = at else { continue };
            for (old, new) in self.parameters[at].data.iter_mut().zip(new) {
                *old = ((1.0 - FOLLOW) * f64::from(*old) + FOLLOW * new * factor) as f32;
            }
        }
    }
}
