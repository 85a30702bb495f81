//! A recipe carried out block by block, on what a text brings to the layers.

use crate::allocator::OUTLIER;
use crate::calibration::{Block, Blocks, Gram, Moments, States, Taps, energy, windows};
use crate::matrix::Matrix;
use crate::solver::Statistics;
use crate::spent::Spent;
use crate::{AllocatorName, Error, Layer, Prefix, Pruned, Recipe, Result, Task, layer};
use lacuna::{Model, Weight};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// A pruned model and what its layers lost.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// The model and its plan, with the zeros that came about.
    pub pruned: Pruned,
    /// For each layer of the plan what its outputs lost; empty where the run kept no second moments for it.
    pub errors: Vec<LayerError>,
    /// Bytes of the hidden states of all windows.
    pub state_bytes: usize,
    /// Wall time by phase: `forward` of the windows through the model, `moments` of inputs, `solve`, and `advance` of the
    /// states through what was pruned.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// The error of a layer's outputs: `‖X (W - Ŵ)ᵀ‖² / ‖X Wᵀ‖²`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// The weight's name.
    pub weight: String,
    /// On the windows that it was fitted on.
    pub fitted: f64,
    /// On windows held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is done now.
    pub phase: &'static str,
    /// Blocks that are done.
    pub done: usize,
    /// Blocks in all.
    pub all: usize,
}

impl Recipe {
    /// Prunes a model that [`Recipe::convert`] gave, block by block, on windows of `tokens`. Memory holds the hidden
    /// states of all windows, the model's pruned weights, and the weights and second moments of one block.
    ///
    /// # Errors
    /// When the recipe has no calibration, the text is too short, a token is none of the model's, the model is no
    /// decoder, a layer lies in no block, an activation is not finite, or second moments are singular.
    pub fn calibrate(
        &self,
        model: &Model,
        tokens: &[u32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Calibrated> {
        // Its factorisations stay on the thread that asks for them: other layers wait for the same factor, and a
        // task stolen meanwhile could be one of those.
        faer::set_global_parallelism(faer::Par::Seq);
        self.check()?;
        let none = || Error::Recipe("no table [calibration]".into());
        let settings = self.calibration.as_ref().ok_or_else(none)?;
        let windows = windows(settings, tokens)?;
        let mut layers = layer::select(model, &self.include, &self.exclude)?;
        let Blocks { before, blocks, .. } = Blocks::new(model, &layers, settings.window)?;
        let mut states = States::new(&before, model, &windows, settings.windows)?;
        let state_bytes = states.bytes();
        let all = blocks.len();
        if self.allocator == AllocatorName::Owl {
            let mut states = states.clone();
            for (done, block) in blocks.iter().enumerate() {
                progress(Progress {
                    phase: "outliers",
                    done,
                    all,
                });
                let taps = states.collect(block, model, false, true)?;
                let share = outliers(block, &layers, &taps);
                block
                    .layers
                    .iter()
                    .for_each(|&(l, _)| layers[l].outliers = Some(share));
            }
        }
        let mut plan = self.allot(&layers)?;
        let full = self.solver.get().statistics() == Statistics::Full
            || self.refiner.get().is_some()
            || settings.held_out > 0;
        let advance = settings.prefix == Prefix::Dense;
        let mut pruned = model.clone();
        let spent = Spent::default();
        let mut errors: Vec<Option<LayerError>> = vec![None; layers.len()];
        for (done, block) in blocks.iter().enumerate() {
            progress(Progress {
                phase: "blocks",
                done,
                all,
            });
            // The block itself is not pruned yet.
            let source = if advance { model } else { &pruned };
            let taps = states.collect(block, source, full, advance)?;
            let removes: Vec<usize> = plan.layers.iter().map(|l| l.remove).collect();
            spent.add("forward", taps.seconds[0]);
            spent.add("moments", taps.seconds[1]);
            let solved = spent.time("solve", || {
                let grams = grams(block, &taps, settings.damping)?;
                self.solve(block, &layers, &removes, &taps, &grams)
            })?;
            for (&(l, _), (weight, error)) in block.layers.iter().zip(solved) {
                plan.layers[l].zeros_after = weight.numel() - weight.count_nonzero();
                errors[l] = error;
                let weight = match self.keep_dense {
                    true => weight,
                    false => weight.stored_best(),
                };
                pruned.set_weight(layers[l].name, weight)?;
                layers[l].weight.release();
            }
            if !advance && done + 1 < all {
                spent.time("advance", || states.advance(block, &pruned))?;
            }
        }
        progress(Progress {
            phase: "blocks",
            done: all,
            all,
        });
        plan.zeros_after = plan.layers.iter().map(|l| l.zeros_after).sum();
        Ok(Calibrated {
            pruned: self.finish(pruned, plan)?,
            errors: errors.into_iter().flatten().collect(),
            state_bytes,
            seconds: spent.all(),
        })
    }

    /// The pruned weights of a block's layers, and their errors.
    pub(crate) fn solve(
        &self,
        block: &Block,
        layers: &[Layer<'_>],
        removes: &[usize],
        taps: &Taps,
        grams: &[Gram],
    ) -> Result<Vec<(Weight, Option<LayerError>)>> {
        let square = |m: &[Moments]| m.iter().map(Moments::square).collect::<Vec<_>>();
        let (fitted, held_out) = (square(&taps.fitted), square(&taps.held_out));
        let (solver, refiner) = (self.solver.get(), self.refiner.get());
        let one = |&(l, input): &(usize, usize)| {
            let layer = &layers[l];
            let task = Task {
                layer,
                remove: removes[l].max(layer.zeros.min(layer.numel())),
                pattern: self.pattern,
                gram: Some(&grams[input]),
            };
            let mut weight = solver.solve(&task)?;
            if let Some(refiner) = refiner {
                weight = refiner.refine(&task, weight)?;
            }
            let dense = Matrix::of(layer.weight);
            let mut gap = Matrix::of(&weight);
            gap.data
                .iter_mut()
                .zip(&dense.data)
                .for_each(|(p, d)| *p = d - *p);
            let error = |square: &Option<Matrix>| {
                let square = square.as_ref()?;
                Some(energy(&gap, square) / energy(&dense, square).max(f64::MIN_POSITIVE))
            };
            let used = taps.held_out[input].tokens() > 0;
            let error = error(&fitted[input]).map(|fitted| LayerError {
                weight: layer.name.to_owned(),
                fitted,
                held_out: used.then(|| error(&held_out[input])).flatten(),
            });
            Ok((weight, error))
        };
        block.layers.par_iter().map(one).collect()
    }
}

/// The second moments of the inputs of a block's layers, with what is made of them once.
pub(crate) fn grams(block: &Block, taps: &Taps, damping: f64) -> Result<Vec<Gram>> {
    let gram = |(m, name): (&Moments, &String)| {
        let refuse = |what| Error::Calibration(format!("value `{name}`: {what}"));
        Gram::new(m, damping).map_err(refuse)
    };
    let pairs = taps.fitted.par_iter().zip(&block.inputs);
    pairs.map(gram).collect()
}

/// The share of a block's weights whose magnitude times the norm of their input is above five times the mean.
fn outliers(block: &Block, layers: &[Layer<'_>], taps: &Taps) -> f64 {
    let scores: Vec<f64> = (block.layers.par_iter())
        .flat_map_iter(|&(l, input)| {
            let weight = Matrix::of(layers[l].weight);
            let norms: Vec<f64> = taps.fitted[input]
                .diagonal()
                .iter()
                .map(|d| d.sqrt())
                .collect();
            let cols = weight.cols;
            let scores = weight.data.into_iter().enumerate();
            scores.map(move |(i, w)| w.abs() * norms[i % cols])
        })
        .collect();
    let count = scores.len().max(1) as f64;
    let limit = OUTLIER * scores.iter().sum::<f64>() / count;
    scores.iter().filter(|s| **s > limit).count() as f64 / count
}
