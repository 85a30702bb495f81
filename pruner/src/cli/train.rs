//! `prune train`, and the training of the pruning verbs.

use super::preprocessing::Preprocessing;
use super::{Source, file_bytes, json, text};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use lacuna::Model;
use lacuna_prune::tasks::{Metric, TaskFigures, TaskSettings};
use lacuna_prune::train::{
    self, Augment, Border, DataSettings, Device, EpochRow, Gradual, Optimizer, Progress, RateCurve,
    Schedule, SparsityCurve, TrainSettings, Trained, forget,
};
use lacuna_prune::{Pruned, Recipe};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// With the weights that a sparse file lacks left out. Killed, the same command goes on from its last checkpoint.
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    source: Source,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Passes over the training images
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// The network that tasks without labels are held against
    #[arg(long, value_name = "MODEL", requires = "tasks")]
    teacher: Option<PathBuf>,
    #[command(flatten)]
    options: TrainOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a model is trained.
#[derive(Args)]
#[command(next_help_heading = "Training")]
pub struct TrainOptions {
    /// Labelled images or sequences to train on, of any kind that `prune eval` reads
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The part of the data set to train on
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    split: String,
    /// The part to measure accuracy on after every epoch
    #[arg(long, value_name = "SPLIT")]
    test_split: Option<String>,
    /// Of sequences: the subjects whose sequences are the part test; the others are train
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    held_out_subjects: Vec<usize>,
    /// Train on N images only, drawn by the seed
    #[arg(long, value_name = "N")]
    train_limit: Option<usize>,
    /// Images of a step
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
    /// How weights follow their gradients
    #[arg(long, value_enum, default_value_t = OptimizerName::Sgd)]
    optimizer: OptimizerName,
    /// The learning rate that the schedule starts from
    #[arg(long, value_name = "RATE", default_value_t = 0.01)]
    lr: f64,
    /// Momentum of sgd
    #[arg(long, value_name = "M", default_value_t = 0.9)]
    momentum: f64,
    /// Nesterov's momentum
    #[arg(long)]
    nesterov: bool,
    /// L2 decay of all weights, added to their gradients
    #[arg(long, value_name = "D", default_value_t = 1e-4)]
    weight_decay: f64,
    /// Leave biases and normalisations out of the decay
    #[arg(long)]
    no_vector_decay: bool,
    /// Spread this part of the target over all classes
    #[arg(long, value_name = "E", default_value_t = 0.0)]
    label_smoothing: f64,
    /// The learning rate over time
    #[arg(long, value_enum, default_value_t = Curve::Cosine)]
    schedule: Curve,
    /// Epochs over which the learning rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: usize,
    /// With --schedule step: epochs between two steps
    #[arg(long, value_name = "N", default_value_t = 25)]
    step_every: usize,
    /// With --schedule step: what each multiplies the rate by
    #[arg(long, value_name = "F", default_value_t = 0.1)]
    step_factor: f64,
    /// Shift images at random by up to N pixels
    #[arg(long, value_name = "N", default_value_t = 0)]
    crop: usize,
    /// What comes in at the edge of a shifted image
    #[arg(long, value_enum, default_value_t = BorderName::Zero)]
    border: BorderName,
    /// Mirror half of the images
    #[arg(long)]
    flip: bool,
    /// Leave N images, spread evenly, out of the training: a set to decide by
    #[arg(long, value_name = "N")]
    hold_out: Option<usize>,
    /// Learn a task of a network with several outputs, such as `name=upper,output=logits,loss=cross-entropy,labels=upper`;
    /// may be repeated. Losses: cross-entropy, mse, smooth-l1, kl; further keys: weight, ignore (a label), metric
    #[arg(long = "task", value_name = "KEY=VALUE,...")]
    tasks: Vec<TaskSettings>,
    /// The seed of order and augmentation
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    preprocessing: Preprocessing,
    #[command(flatten)]
    effort: Effort,
}

/// What a training takes and leaves, without a part in its result.
#[derive(Args, Default)]
#[command(next_help_heading = "Training")]
pub struct Effort {
    /// Write figures by epoch as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Where gradients are computed: cpu, cuda:N, or candle for candle's on the CPU. The last two need a build
    /// with that feature, and do not give the same bytes again
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Threads of the training; 0 takes every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// When weights go.
#[derive(Args)]
#[command(next_help_heading = "Training")]
pub struct FineTune {
    /// Train for N epochs with the pruned weights held at zero
    #[arg(long, value_name = "N", requires = "data")]
    fine_tune: Option<usize>,
    /// Prune over the epochs instead of before them
    #[arg(long, value_enum, value_name = "CURVE", requires = "fine_tune")]
    gradual: Option<Ramp>,
    /// With --gradual: the epoch, from 0, where the sparsity starts to rise
    #[arg(long, value_name = "EPOCH", requires = "gradual", default_value_t = 0)]
    gradual_start: usize,
    /// With --gradual: the first epoch of the full sparsity [default: three quarters of the epochs]
    #[arg(long, value_name = "EPOCH", requires = "gradual")]
    gradual_end: Option<usize>,
    #[command(flatten)]
    options: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Sgd,
    Adam,
}

#[derive(Clone, Copy, ValueEnum)]
enum Curve {
    /// Half a cosine down to 0
    Cosine,
    /// Multiplied by a factor every few epochs
    Step,
    /// The same all along
    Constant,
}

#[derive(Clone, Copy, ValueEnum)]
enum BorderName {
    /// Black
    Zero,
    /// The image, mirrored
    Reflect,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ramp {
    /// Most goes early
    Cubic,
    /// The same every epoch
    Linear,
}

impl TrainOptions {
    pub fn settings(&self, epochs: usize) -> Result<TrainSettings> {
        let Some(path) = &self.data else {
            bail!("--data is missing: the images to train on");
        };
        Ok(TrainSettings {
            epochs,
            batch: self.batch,
            optimizer: match self.optimizer {
                OptimizerName::Sgd => Optimizer::Sgd,
                OptimizerName::Adam => Optimizer::Adam,
            },
            lr: self.lr,
            momentum: self.momentum,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay,
            decay_vectors: !self.no_vector_decay,
            label_smoothing: self.label_smoothing,
            seed: self.seed,
            schedule: Schedule {
                curve: match self.schedule {
                    Curve::Cosine => RateCurve::Cosine,
                    Curve::Step => RateCurve::Step,
                    Curve::Constant => RateCurve::Constant,
                },
                warmup: self.warmup,
                every: self.step_every,
                factor: self.step_factor,
            },
            augment: Augment {
                crop: self.crop,
                border: match self.border {
                    BorderName::Zero => Border::Zero,
                    BorderName::Reflect => Border::Reflect,
                },
                flip: self.flip,
            },
            data: DataSettings {
                path: path.clone(),
                split: self.split.clone(),
                test: self.test_split.clone().unwrap_or_default(),
                limit: self.train_limit,
                hold_out: self.hold_out,
                held_out_subjects: self.held_out_subjects.clone(),
                preset: self.preprocessing.preset,
                mean: self.preprocessing.mean.clone(),
                std: self.preprocessing.std.clone(),
                size: self.preprocessing.size,
            },
            tasks: self.tasks.clone(),
            gradual: None,
        })
    }
}

impl TrainOptions {
    /// How the training is carried out.
    pub fn effort(&self) -> &Effort {
        &self.effort
    }
}

impl Effort {
    /// Where gradients are computed, and by how many threads.
    pub fn place(&self) -> (Device, usize) {
        (self.device, self.threads)
    }
}

impl FineTune {
    /// The training that the flags ask for.
    pub fn settings(&self) -> Result<Option<TrainSettings>> {
        let Some(epochs) = self.fine_tune else {
            return Ok(None);
        };
        let mut settings = self.options.settings(epochs)?;
        settings.gradual = self.gradual.map(|curve| Gradual {
            curve: match curve {
                Ramp::Cubic => SparsityCurve::Cubic,
                Ramp::Linear => SparsityCurve::Linear,
            },
            start: self.gradual_start,
            end: self.gradual_end.unwrap_or(epochs * 3 / 4),
        });
        Ok(Some(settings))
    }

    /// The seed that was given.
    pub fn seed(&self) -> u64 {
        self.options.seed
    }

    /// How the training is carried out.
    pub fn effort(&self) -> &Effort {
        &self.options.effort
    }
}

/// Prunes and trains a model as a recipe with training says.
pub fn fine_tune(
    model: &Model,
    recipe: &Recipe,
    output: &Path,
    effort: &Effort,
) -> Result<(Pruned, Vec<EpochRow>)> {
    let settings = recipe.train.as_ref().context("the recipe trains nothing")?;
    let trained = carry_out(model, None, Some(recipe), settings, output, effort)?;
    let plan = trained.plan.context("the recipe prunes nothing")?;
    let mut model = match recipe.keep_dense {
        true => trained.model.decoded(),
        false => trained.model,
    };
    model.metadata.recipe = Some(recipe.hash());
    Ok((Pruned { model, plan }, trained.rows))
}

/// The checkpoint of a run that writes `output`.
pub fn checkpoint(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".checkpoint");
    name.into()
}

fn carry_out(
    model: &Model,
    teacher: Option<&Model>,
    recipe: Option<&Recipe>,
    settings: &TrainSettings,
    output: &Path,
    effort: &Effort,
) -> Result<Trained> {
    let conduct = train::Effort {
        device: effort.device,
        checkpoint: Some(checkpoint(output)),
        metrics: effort.metrics.clone(),
    };
    let bar = bar();
    let mut said = false;
    let mut show = |p: &Progress<'_>| {
        if !said && p.resumed > 0 {
            bar.suspend(|| eprintln!("going on after epoch {} of {}", p.resumed, p.epoch[1]));
        }
        said = true;
        let [epoch, epochs] = p.epoch;
        bar.set_length(((epochs - p.resumed) * p.step[1]) as u64);
        bar.set_position(((epoch - 1 - p.resumed) * p.step[1] + p.step[0]) as u64);
        bar.set_message(format!("epoch {epoch}/{epochs}, loss {:.4}", p.loss));
        if let Some(row) = p.row {
            bar.suspend(|| eprintln!("{}", line(row)));
        }
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(effort.threads)
        .build()?;
    let trained = pool.install(|| match teacher {
        Some(teacher) => train::distill(model, teacher, settings, &conduct, &mut show),
        None => train::train(model, recipe, settings, &conduct, &mut show),
    });
    bar.finish_and_clear();
    Ok(trained?)
}

/// An epoch's figures in words.
pub fn line(row: &EpochRow) -> String {
    let test = row
        .test_accuracy
        .map_or(String::new(), |a| format!(", test {}", text::percent(a)));
    let sparsity = row.sparsity.map_or(String::new(), |s| {
        format!(", sparsity {}", text::percent(s))
    });
    let train = match row.task_losses.is_empty() {
        true => format!(", train {}", text::percent(row.train_accuracy)),
        false => String::new(),
    };
    let tasks: String = row
        .tasks
        .iter()
        .map(|t| format!(", {}", figure(t)))
        .collect();
    format!(
        "epoch {}/{}: loss {:.4}{train}{test}{tasks}{sparsity}, {:.1} s",
        row.epoch, row.epochs, row.loss, row.seconds
    )
}

/// A task's figures in words.
pub fn figure(task: &TaskFigures) -> String {
    format!(
        "{} {} {}",
        task.name,
        task.metric,
        shown(task.metric, task.value)
    )
}

/// A metric's value in words.
pub fn shown(metric: Metric, value: f64) -> String {
    match metric.is_share() {
        true => text::percent(value),
        false => format!("{value:.4}"),
    }
}

/// A bar with the time left, on stderr, where that is a terminal.
pub fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {msg}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[derive(Serialize)]
struct Report {
    input: PathBuf,
    output: PathBuf,
    settings: TrainSettings,
    epochs: Vec<EpochRow>,
    bytes: u64,
}

impl Train {
    pub fn run(&self) -> Result<String> {
        let settings = self.options.settings(self.epochs)?;
        let model = self.source.open()?;
        let teacher = self.teacher.as_deref();
        let teacher = teacher.map(|t| lacuna_convert::open(t, &Default::default()));
        let (teacher, effort) = (teacher.transpose()?, &self.options.effort);
        let trained = carry_out(
            &model,
            teacher.as_ref(),
            None,
            &settings,
            &self.output,
            effort,
        )?;
        trained.model.save(&self.output)?;
        forget(&checkpoint(&self.output))?;
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            settings,
            epochs: trained.rows,
            bytes: file_bytes(&self.output)?,
        };
        if self.json {
            return json(&report);
        }
        let mut out: String = report.epochs.iter().map(|r| line(r) + "\n").collect();
        out += &format!(
            "wrote {}, {} bytes\n",
            self.output.display(),
            text::count(report.bytes)
        );
        Ok(out)
    }
}
