//! What a training run is told, as tables of a recipe.

use crate::data::Preset;
use crate::tasks::{self, TaskSettings};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that decides how a model is trained. As a table of a recipe: `[train]`, with the tables
/// `[train.data]`, `[train.schedule]`, `[train.augment]` and `[train.gradual]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images of a step; the last step of an epoch takes what is left.
    pub batch: usize,
    /// How weights follow their gradients.
    pub optimizer: Optimizer,
    /// The learning rate that the schedule starts from.
    pub lr: f64,
    /// Momentum of `sgd`.
    pub momentum: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// L2 decay, added to the gradients.
    pub weight_decay: f64,
    /// Whether biases and normalisations decay too, as they do in PyTorch unless told otherwise.
    pub decay_vectors: bool,
    /// Label smoothing: this part of the target is spread over all classes.
    pub label_smoothing: f64,
    /// Seeds the order of the images and their augmentation.
    pub seed: u64,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// What happens to images at random.
    pub augment: Augment,
    /// The images.
    pub data: DataSettings,
    /// What is learned; without any the classes of the first output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskSettings>,
    /// Sparsity over the epochs; without it a recipe's weights go at once, before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradual: Option<Gradual>,
}

impl Default for TrainSettings {
    fn default() -> TrainSettings {
        TrainSettings {
            epochs: 1,
            batch: 128,
            optimizer: Optimizer::Sgd,
            lr: 0.01,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 1e-4,
            decay_vectors: true,
            label_smoothing: 0.0,
            seed: 0,
            schedule: Schedule::default(),
            augment: Augment::default(),
            data: DataSettings::default(),
            tasks: Vec::new(),
            gradual: None,
        }
    }
}

/// How weights follow their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum.
    #[default]
    Sgd,
    /// Adam, with PyTorch's constants (0.9, 0.999, 1e-8).
    Adam,
}

/// The learning rate over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Its shape.
    pub curve: RateCurve,
    /// Epochs over which it rises in a line from 0.
    pub warmup: usize,
    /// With `step`: epochs between two steps.
    pub every: usize,
    /// With `step`: what each multiplies by.
    pub factor: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            curve: RateCurve::Cosine,
            warmup: 0,
            every: 25,
            factor: 0.1,
        }
    }
}

/// The shape of the learning rate over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateCurve {
    /// Half a cosine from the learning rate to 0, over the steps behind the warm-up.
    #[default]
    Cosine,
    /// Multiplied by a factor every few epochs.
    Step,
    /// The same all along.
    Constant,
}

/// What happens to images at random, other in every epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Shift by up to so many pixels: a border of that size, and a random crop.
    pub crop: usize,
    /// What the border holds.
    pub border: Border,
    /// Mirror half of the images left to right.
    pub flip: bool,
}

/// What the border of a random crop holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Border {
    /// Black pixels.
    #[default]
    Zero,
    /// The image, mirrored at its edge.
    Reflect,
}

/// The images or sequences, of any kind that `prune eval` reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// Where they are, from the working folder.
    pub path: PathBuf,
    /// The part to train on.
    pub split: String,
    /// The part to measure accuracy on after every epoch; none where it is empty.
    pub test: String,
    /// Train on the first so many images only, in a fixed random order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// So many samples, spread evenly over the part, are not trained on: a set to decide by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<usize>,
    /// Subjects whose sequences are not trained on: the others are the split `train`, they the split `test`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_out_subjects: Vec<usize>,
    /// Preprocessing; chosen by the input's shape where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Means of pixels in 0..1 instead of the preset's; of a sequence's channels instead of those of the training part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Standard deviations instead of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Resize every image's shorter side to this, then crop the centre.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
}

impl Default for DataSettings {
    fn default() -> DataSettings {
        DataSettings {
            path: PathBuf::new(),
            split: "train".into(),
            test: String::new(),
            limit: None,
            hold_out: None,
            held_out_subjects: Vec::new(),
            preset: None,
            mean: None,
            std: None,
            size: None,
        }
    }
}

impl DataSettings {
    /// The samples of `len` that are held out, ascending.
    pub fn held_out(&self, len: usize) -> Vec<usize> {
        let count = self.hold_out.unwrap_or(0).min(len);
        (0..count).map(|i| i * len / count).collect()
    }
}

/// Sparsity over the epochs. Before epoch `start` (from 0) nothing goes; before each epoch from there to `end` weights
/// go up to the curve's sparsity; from `end` on the recipe's sparsity holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gradual {
    /// The shape of the rise.
    #[serde(default)]
    pub curve: SparsityCurve,
    /// Where the curve starts, at sparsity 0.
    #[serde(default)]
    pub start: usize,
    /// The first epoch of the full sparsity.
    pub end: usize,
}

/// The shape of sparsity over the epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SparsityCurve {
    /// `1 - (1 - t)^3` (Zhu and Gupta): most goes early.
    #[default]
    Cubic,
    /// `t`.
    Linear,
}

impl Gradual {
    /// The part of what goes in all that is gone in an epoch, from 0.
    pub fn progress(&self, epoch: usize) -> f64 {
        if epoch < self.start {
            return 0.0;
        }
        if epoch >= self.end {
            return 1.0;
        }
        let t = (epoch - self.start) as f64 / (self.end - self.start) as f64;
        match self.curve {
            SparsityCurve::Cubic => 1.0 - (1.0 - t).powi(3),
            SparsityCurve::Linear => t,
        }
    }
}

impl TrainSettings {
    /// The same without the folder of the images.
    pub(crate) fn anywhere(&self) -> TrainSettings {
        let mut settings = self.clone();
        if let Some(name) = self.data.path.file_name() {
            settings.data.path = name.into();
        }
        settings
    }

    /// Refuses what cannot be trained with.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Training(what));
        if self.epochs == 0 || self.epochs > 1 << 20 {
            return refuse(format!(
                "{} epochs; give from 1 to {}",
                self.epochs,
                1 << 20
            ));
        }
        if self.batch == 0 || self.batch > 1 << 16 {
            return refuse(format!(
                "a batch of {}; give from 1 to {}",
                self.batch,
                1 << 16
            ));
        }
        for (what, value, fits) in [
            ("lr", self.lr, self.lr > 0.0),
            (
                "momentum",
                self.momentum,
                (0.0..1.0).contains(&self.momentum),
            ),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0),
            (
                "label_smoothing",
                self.label_smoothing,
                (0.0..1.0).contains(&self.label_smoothing),
            ),
            (
                "schedule.factor",
                self.schedule.factor,
                self.schedule.factor > 0.0,
            ),
        ] {
            if !fits || !value.is_finite() {
                return refuse(format!("{what} {value} is out of range"));
            }
        }
        if self.nesterov && (self.momentum == 0.0 || self.optimizer != Optimizer::Sgd) {
            return refuse("nesterov needs the optimizer sgd with a momentum".into());
        }
        tasks::check(&self.tasks)?;
        if self.schedule.every == 0 {
            return refuse("schedule.every 0; give at least 1".into());
        }
        if self.schedule.warmup > self.epochs {
            return refuse(format!(
                "a warm-up of {} epochs in {}",
                self.schedule.warmup, self.epochs
            ));
        }
        match self.gradual {
            Some(g) if g.start >= g.end || g.end >= self.epochs => refuse(format!(
                "gradual pruning from epoch {} to {} (from 0); both lie within the {} epochs, the start before the end",
                g.start, g.end, self.epochs
            )),
            _ => Ok(()),
        }
    }

    /// The learning rate of a step: epoch and step of the epoch from 0.
    pub fn rate(&self, epoch: usize, step: usize, steps: usize) -> f64 {
        let warmup = self.schedule.warmup as f64;
        let at = epoch as f64 + step as f64 / steps.max(1) as f64;
        if at < warmup {
            // The first step is not 0.
            return self.lr * (at + 1.0 / steps.max(1) as f64) / warmup;
        }
        match self.schedule.curve {
            RateCurve::Constant => self.lr,
            RateCurve::Step => {
                let passed = (epoch / self.schedule.every).min(1 << 20);
                self.lr * self.schedule.factor.powi(passed as i32)
            }
            RateCurve::Cosine => {
                let t = (at - warmup) / (self.epochs as f64 - warmup).max(1.0);
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_their_curves() {
        let mut s = TrainSettings {
            epochs: 10,
            lr: 1.0,
            ..TrainSettings::default()
        };
        assert_eq!(s.rate(0, 0, 4), 1.0);
        assert!((s.rate(5, 0, 4) - 0.5).abs() < 1e-12);
        s.schedule.warmup = 2;
        assert_eq!(s.rate(0, 0, 4), 0.125);
        assert_eq!(s.rate(1, 3, 4), 1.0);
        assert!((s.rate(6, 0, 4) - 0.5).abs() < 1e-12);
        s.schedule = Schedule {
            curve: RateCurve::Step,
            warmup: 0,
            every: 4,
            factor: 0.1,
        };
        assert_eq!(s.rate(3, 3, 4), 1.0);
        assert!((s.rate(8, 0, 4) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn sparsity_rises_from_the_start_to_the_end() {
        let mut g = Gradual {
            curve: SparsityCurve::Cubic,
            start: 2,
            end: 6,
        };
        let at: Vec<f64> = (0..8).map(|e| g.progress(e)).collect();
        assert_eq!(at[..3], [0.0; 3]);
        assert!((at[4] - 0.875).abs() < 1e-12);
        assert_eq!(at[6..], [1.0; 2]);
        g.curve = SparsityCurve::Linear;
        assert!((g.progress(5) - 0.75).abs() < 1e-12);
    }

    #[test]
    fn tasks_are_tables_of_a_recipe() {
        let tasks = [
            "name=a,output=x,loss=kl,weight=0.5",
            "name=b,loss=cross-entropy,labels=m,ignore=255,metric=pixel-accuracy",
        ];
        let settings = TrainSettings {
            tasks: tasks.map(|t| t.parse().unwrap()).into(),
            gradual: Some(Gradual {
                curve: SparsityCurve::Linear,
                start: 0,
                end: 1,
            }),
            ..TrainSettings::default()
        };
        let text = toml::to_string(&settings).unwrap();
        assert!(text.contains("[[tasks]]"), "{text}");
        assert_eq!(toml::from_str::<TrainSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn what_cannot_be_trained_with_is_named() {
        let refused = |s: TrainSettings, what: &str| {
            let e = s.check().unwrap_err().to_string();
            assert!(e.contains(what), "{e}");
        };
        let ok = TrainSettings::default;
        ok().check().unwrap();
        refused(
            TrainSettings {
                lr: f64::NAN,
                ..ok()
            },
            "lr NaN",
        );
        refused(TrainSettings { epochs: 0, ..ok() }, "0 epochs");
        refused(
            TrainSettings {
                label_smoothing: 1.0,
                ..ok()
            },
            "label_smoothing",
        );
        let gradual = Some(Gradual {
            curve: SparsityCurve::Cubic,
            start: 0,
            end: 3,
        });
        refused(
            TrainSettings {
                epochs: 3,
                gradual,
                ..ok()
            },
            "epoch 0 to 3",
        );
    }
}
