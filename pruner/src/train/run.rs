//! The training loop: epochs of steps, pruning before them, a checkpoint after each.

use super::checkpoint::{self, State};
use super::compile::Sample;
use super::engine::{self, Device, Engine};
use super::loader::Batch;
use super::loader::Loader;
use super::network::Network;
use super::normalise::normalise;
use super::optimiser::Memory;
use super::settings::TrainSettings;
use crate::data::Samples;
use crate::eval::{EvalOptions, evaluate_samples, preprocess};
use crate::tasks::{Found, Labels, TaskData, TaskFigures, Teacher, figures, heads};
use crate::{Error, Plan, Pruned, Recipe, Result};
use lacuna::Model;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a run is carried out: where it computes, and where it keeps its state and its figures.
#[derive(Clone, Debug, Default)]
pub struct Effort {
    /// Where gradients are computed.
    pub device: Device,
    /// The checkpoint: written after every epoch, gone on from where it is there. None without a path.
    pub checkpoint: Option<PathBuf>,
    /// Figures by epoch, as JSON lines.
    pub metrics: Option<PathBuf>,
}

/// What an epoch came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRow {
    /// The version of the format: 1.
    pub schema: u32,
    /// The epoch, from 1.
    pub epoch: usize,
    /// Of how many.
    pub epochs: usize,
    /// The learning rate of its last step.
    pub lr: f64,
    /// The mean loss of the training images, as they were met; of several tasks their weighted sum.
    pub loss: f64,
    /// The share of them whose label had the largest output; of several tasks that of the first.
    pub train_accuracy: f64,
    /// Of several tasks: the mean loss of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_losses: Vec<f64>,
    /// Of several tasks: figures of the test images, after the epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskFigures>,
    /// The share of the test images, after the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_accuracy: Option<f64>,
    /// Test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_samples: Option<usize>,
    /// The share of the recipe's weights that is zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// Time of the epoch's steps.
    pub seconds: f64,
    /// Where its gradients were computed.
    #[serde(default)]
    pub device: Device,
}

/// What the last pruning decided, so that a run that goes on can report it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pruning {
    threshold: Option<f32>,
    remove: Vec<usize>,
    floored: Vec<bool>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The epoch, from 1, and of how many.
    pub epoch: [usize; 2],
    /// Steps of it that are done, and of how many.
    pub step: [usize; 2],
    /// The mean loss of the epoch so far.
    pub loss: f64,
    /// The epoch's figures, once it is done.
    pub row: Option<&'a EpochRow>,
    /// Epochs that a checkpoint brought.
    pub resumed: usize,
}

/// A trained model.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model; encoded where a recipe asks for it.
    pub model: Model,
    /// What was pruned, where a recipe was given.
    pub plan: Option<Plan>,
    /// Figures by epoch.
    pub rows: Vec<EpochRow>,
}

/// Trains `model`. With a recipe its weights go before the first epoch, or over the epochs where the settings have a
/// gradual schedule, and the mask holds after every step. Weights that the model's file stores sparse keep their zeros.
///
/// On [`Device::Cpu`] the result depends on the model, the recipe, the settings and the machine's instruction set, and
/// neither on the number of threads nor on how often the run was interrupted.
pub fn train(
    model: &Model,
    recipe: Option<&Recipe>,
    settings: &TrainSettings,
    effort: &Effort,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    start(model, None, recipe, settings, effort, progress)
}

/// As [`train`], tasks without labels held against what `teacher` says of the same images.
pub fn distill(
    model: &Model,
    teacher: &Model,
    settings: &TrainSettings,
    effort: &Effort,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    start(model, Some(teacher), None, settings, effort, progress)
}

fn start(
    model: &Model,
    teacher: Option<&Model>,
    recipe: Option<&Recipe>,
    settings: &TrainSettings,
    effort: &Effort,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    settings.check()?;
    if recipe.is_none() && settings.gradual.is_some() {
        return Err(Error::Training("gradual pruning without a sparsity".into()));
    }
    // Trained in f32; the recipe's dtype is that of the result.
    let recipe = recipe.map(|recipe| Recipe {
        dtype: None,
        ..recipe.clone()
    });
    let from = &settings.data;
    if !settings.tasks.is_empty() {
        let (_, own) = heads(model, &settings.tasks)?;
        let moved = settings.augment.crop > 0 || settings.augment.flip;
        if let Some(head) = own
            .iter()
            .find(|h| h.rows > 1 && h.labels.is_some() && moved)
        {
            return Err(Error::Training(format!(
                "crop and flip move images, and not the labels of the pixels of task `{}`",
                head.name
            )));
        }
        let data = TaskData::open(&from.path, &from.split, &own)?;
        let run = Run::new(model, teacher, recipe, settings, effort)?;
        data.check_teacher(&own, run.teacher.as_ref())?;
        return run.go(&data, progress);
    }
    let images = Samples::open(model, &from.path, &from.split, &from.held_out_subjects)?;
    let normalised;
    let model = match &images {
        Samples::Sequences(sequences) => {
            normalised = normalise(model, sequences, from)?;
            &normalised
        }
        Samples::Images(_) => model,
    };
    let run = Run::new(model, None, recipe, settings, effort)?;
    let labels = Labels::of(&images, run.network.heads[0].width)?;
    let data = TaskData {
        images,
        labels: vec![labels],
    };
    run.go(&data, progress)
}

struct Run<'a> {
    model: &'a Model,
    recipe: Option<Recipe>,
    settings: &'a TrainSettings,
    effort: &'a Effort,
    network: Network,
    engine: Box<dyn Engine>,
    state: State,
    resumed: usize,
    id: String,
    plan: Option<Plan>,
    teacher: Option<Teacher>,
    /// The model that the teacher is.
    taught_by: Option<Model>,
}

impl<'a> Run<'a> {
    fn new(
        model: &'a Model,
        teacher: Option<&Model>,
        recipe: Option<Recipe>,
        settings: &'a TrainSettings,
        effort: &'a Effort,
    ) -> Result<Run<'a>> {
        let mut network = Network::with_tasks(model, &settings.tasks)?;
        let engine = engine::open(effort.device, &network)?;
        let mut digest = Sha256::new();
        let mut taught_by = None;
        if let Some(teacher) = teacher.filter(|_| network.heads.iter().any(|h| h.labels.is_none()))
        {
            let (narrow, theirs) = heads(teacher, &settings.tasks)?;
            for (own, head) in network.heads.iter().zip(&theirs) {
                if own.labels.is_none() && own.shape != head.shape {
                    return Err(Error::Training(format!(
                        "task `{}`: an output of shape {:?}, that of the model to learn from {:?}",
                        own.name, own.shape, head.shape
                    )));
                }
            }
            for (name, weight) in narrow.weights() {
                digest.update(name.as_bytes());
                for x in weight.to_f32().unwrap_or_default() {
                    digest.update(x.to_le_bytes());
                }
            }
            taught_by = Some(narrow);
        }
        for p in &network.parameters {
            digest.update(p.name.as_bytes());
            p.data.iter().for_each(|x| digest.update(x.to_le_bytes()));
        }
        let text = toml::to_string(settings).map_err(|e| Error::Training(e.to_string()))?;
        digest.update(text.as_bytes());
        digest.update(
            recipe
                .as_ref()
                .map(Recipe::to_toml)
                .unwrap_or_default()
                .as_bytes(),
        );
        let id: String = digest
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let found = match &effort.checkpoint {
            Some(path) => checkpoint::read(path, &id, &mut network.parameters)?,
            None => None,
        };
        let resumed = found.as_ref().map_or(0, |s| s.epochs);
        let state = found.unwrap_or_else(|| State {
            epochs: 0,
            memory: Memory::new(&network.parameters, settings.optimizer),
            masks: stored_zeros(model, &network),
            rows: Vec::new(),
            pruning: None,
        });
        Ok(Run {
            model,
            recipe,
            settings,
            effort,
            network,
            engine,
            state,
            resumed,
            id,
            plan: None,
            teacher: match &taught_by {
                Some(narrow) => Some(Teacher::new(narrow, 32, rayon::current_num_threads())?),
                None => None,
            },
            taught_by,
        })
    }

    fn go(mut self, data: &TaskData, progress: &mut dyn FnMut(&Progress<'_>)) -> Result<Trained> {
        let settings = self.settings;
        let options = EvalOptions {
            batch: 32,
            threads: rayon::current_num_threads(),
            ..EvalOptions::default()
        };
        let from = &settings.data;
        let (options, preprocess) = match self.network.sample {
            // The normalisation of sequences is a part of the model.
            Sample::Sequence(_) => (options, None),
            Sample::Image(input) => {
                let options = EvalOptions {
                    preset: from.preset,
                    mean: from.mean.clone(),
                    std: from.std.clone(),
                    size: from.size,
                    ..options
                };
                let preprocess = preprocess(&options, input)?;
                (options, Some(preprocess))
            }
        };
        let tasks = !settings.tasks.is_empty();
        let test = match (from.test.is_empty(), tasks) {
            (true, _) => None,
            (false, true) => Some(TaskData::open(&from.path, &from.test, &self.network.heads)?),
            (false, false) => Some(TaskData {
                images: Samples::open(self.model, &from.path, &from.test, &from.held_out_subjects)?,
                labels: Vec::new(),
            }),
        };
        let loader = Loader::new(&data.images, preprocess, settings, &data.labels)?;
        if let (Some(pruning), Some(recipe)) = (&self.state.pruning, &self.recipe) {
            // The layers and their sizes; what was decided about them comes from the checkpoint.
            let mut plan = recipe.plan(self.model)?;
            plan.threshold = pruning.threshold;
            for (layer, (&remove, &floored)) in plan
                .layers
                .iter_mut()
                .zip(pruning.remove.iter().zip(&pruning.floored))
            {
                (layer.remove, layer.floored) = (remove, floored);
            }
            self.plan = Some(plan);
        }
        for epoch in self.state.epochs..settings.epochs {
            self.prune(epoch)?;
            let mut row = self.epoch(epoch, &loader, progress)?;
            if let Some(test) = &test {
                let model = self.network.model(self.model)?;
                if tasks {
                    let (narrow, own) = heads(&model, &settings.tasks)?;
                    let all: Vec<usize> = (0..test.images.len()).collect();
                    let teacher = self.taught_by.as_ref();
                    row.tasks = figures(&narrow, &own, test, &all, &options, teacher)?;
                    row.test_samples = Some(all.len());
                } else {
                    let accuracy =
                        evaluate_samples(&model, &test.images, &options, &mut |_, _| {})?;
                    (row.test_accuracy, row.test_samples) =
                        (Some(accuracy.top1), Some(accuracy.samples));
                }
            }
            self.state.epochs = epoch + 1;
            self.state.rows.push(row);
            if let Some(path) = &self.effort.checkpoint {
                checkpoint::write(path, &self.id, &self.network.parameters, &self.state)?;
            }
            self.write_metrics()?;
            let steps = loader.steps();
            progress(&Progress {
                epoch: [epoch + 1, settings.epochs],
                step: [steps, steps],
                loss: self.state.rows[epoch].loss,
                row: self.state.rows.last(),
                resumed: self.resumed,
            });
        }
        self.write_metrics()?;
        self.finish()
    }

    /// Takes the weights of an epoch.
    fn prune(&mut self, epoch: usize) -> Result<()> {
        let Some(recipe) = &self.recipe else {
            return Ok(());
        };
        let progress = match self.settings.gradual {
            Some(g) if epoch > g.end => return Ok(()),
            Some(g) => g.progress(epoch),
            None if epoch > 0 => return Ok(()),
            None => 1.0,
        };
        if progress == 0.0 {
            return Ok(());
        }
        let trained = self.network.model(self.model)?.decoded();
        let Pruned { model, plan } = recipe.prepare_at(&trained, progress)?.run()?;
        let parameters = &mut self.network.parameters;
        for (p, mask) in parameters.iter_mut().zip(&mut self.state.masks) {
            if !plan.layers.iter().any(|l| l.weight == p.name) {
                continue;
            }
            let weight = model.weights().get(&p.name).and_then(|w| w.to_f32());
            p.data =
                weight.ok_or_else(|| Error::Training(format!("weight `{}` is lost", p.name)))?;
            *mask = p.data.iter().map(|&w| u8::from(w != 0.0)).collect();
        }
        self.state.pruning = Some(Pruning {
            threshold: plan.threshold,
            remove: plan.layers.iter().map(|l| l.remove).collect(),
            floored: plan.layers.iter().map(|l| l.floored).collect(),
        });
        self.plan = Some(plan);
        Ok(())
    }

    fn epoch(
        &mut self,
        epoch: usize,
        loader: &Loader<'_>,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<EpochRow> {
        let (settings, steps) = (self.settings, loader.steps());
        let started = Instant::now();
        let (mut sum, mut seen, mut rate) = (0.0, 0, 0.0);
        let mut totals = vec![Found::default(); self.network.heads.len()];
        let (network, state) = (&mut self.network, &mut self.state);
        let (engine, teacher) = (&mut self.engine, &mut self.teacher);
        loader.epoch(epoch, |step, mut batch: Batch| {
            rate = settings.rate(epoch, step, steps);
            if let Some(teacher) = teacher {
                teacher.fill(&network.heads, &batch.samples, &mut batch.targets)?;
            }
            let found = engine.step(network, &batch, settings.label_smoothing as f32)?;
            let weighted = network.heads.iter().zip(&found);
            let own: f64 = weighted.map(|(h, f)| h.weight * f.sum).sum();
            let mean = own / batch.count as f64;
            if !mean.is_finite() {
                return Err(Error::Diverged {
                    loss: mean,
                    epoch: epoch + 1,
                    step: step + 1,
                    rate,
                });
            }
            state.memory.step(
                settings,
                rate,
                &mut network.parameters,
                &network.gradients,
                &state.masks,
            );
            sum += own;
            for (total, found) in totals.iter_mut().zip(&found) {
                total.sum += found.sum;
                total.correct += found.correct;
            }
            seen += batch.count;
            progress(&Progress {
                epoch: [epoch + 1, settings.epochs],
                step: [step + 1, steps],
                loss: sum / seen as f64,
                row: None,
                resumed: self.resumed,
            });
            Ok(())
        })?;
        if let Some(p) = network
            .parameters
            .iter()
            .find(|p| p.data.iter().any(|x| !x.is_finite()))
        {
            return Err(Error::Training(format!(
                "weight `{}` is no number after epoch {}; lower the learning rate",
                p.name,
                epoch + 1
            )));
        }
        Ok(EpochRow {
            schema: 1,
            epoch: epoch + 1,
            epochs: settings.epochs,
            lr: rate,
            loss: sum / seen as f64,
            train_accuracy: totals[0].correct as f64 / loader.samples() as f64,
            task_losses: match settings.tasks.is_empty() {
                true => Vec::new(),
                false => totals.iter().map(|t| t.sum / seen as f64).collect(),
            },
            tasks: Vec::new(),
            test_accuracy: None,
            test_samples: None,
            sparsity: self.plan.as_ref().map(Plan::sparsity),
            seconds: started.elapsed().as_secs_f64(),
            device: self.effort.device,
        })
    }

    fn write_metrics(&self) -> Result<()> {
        let Some(path) = &self.effort.metrics else {
            return Ok(());
        };
        let mut text = String::new();
        for row in &self.state.rows {
            text += &serde_json::to_string(row).map_err(|e| Error::Training(e.to_string()))?;
            text += "\n";
        }
        checkpoint::replace(path, text.as_bytes())
    }

    fn finish(self) -> Result<Trained> {
        let mut model = self.network.model(self.model)?;
        let mut plan = self.plan;
        if let Some(plan) = &mut plan {
            // From the model that was given, not from the step before the last.
            let zeros = |model: &Model, name: &str| {
                let weight = model.weights().get(name);
                weight.map(|w| w.numel() - w.count_nonzero())
            };
            for layer in &mut plan.layers {
                layer.zeros_before = zeros(self.model, &layer.weight).unwrap_or(layer.zeros_before);
                layer.zeros_after = zeros(&model, &layer.weight).unwrap_or(layer.zeros_after);
            }
            plan.zeros_before = plan.layers.iter().map(|l| l.zeros_before).sum();
            plan.zeros_after = plan.layers.iter().map(|l| l.zeros_after).sum();
            model = model.encoded();
        } else if self.state.masks.iter().any(|m| !m.is_empty()) {
            model = model.encoded();
        }
        Ok(Trained {
            model,
            plan,
            rows: self.state.rows,
        })
    }
}

/// Masks of the weights that are stored sparse.
fn stored_zeros(model: &Model, network: &Network) -> Vec<Vec<u8>> {
    let masks = network
        .parameters
        .iter()
        .map(|p| match model.weights().get(&p.name) {
            Some(weight) if weight.is_sparse() => {
                p.data.iter().map(|&w| u8::from(w != 0.0)).collect()
            }
            _ => Vec::new(),
        });
    masks.collect()
}

/// Removes the checkpoint of a run whose result is written.
pub fn forget(checkpoint: &Path) -> Result<()> {
    match std::fs::remove_file(checkpoint) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: checkpoint.to_owned(),
            action: "remove",
            source: e,
        }),
        _ => Ok(()),
    }
}
