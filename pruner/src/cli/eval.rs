//! `prune eval`.

use super::{Source, json, text};
use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lacuna_prune::data::{self, Preset};
use lacuna_prune::eval::{Accuracy, EvalOptions, evaluate};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

/// Data: a folder of images (the label is the last number of a file's name, or the subfolder), a
/// quoted glob over images, an idx3-ubyte file or a folder of such, or a safetensors file of
/// images (or JPEG bytes) and labels.
#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    source: Source,
    /// Labelled images
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// The part of the data set, where it has several: test or train
    #[arg(long, default_value = "test")]
    split: String,
    /// Use N images, spread evenly over the data
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Images per run, where the model's batch is open
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch: u64,
    /// Threads of a run; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Instruction set: scalar, avx2, avx512, neon [default: the best one here]
    #[arg(long)]
    isa: Option<String>,
    /// Run every weight dense
    #[arg(long)]
    dense: bool,
    /// Preprocessing: imagenet, cifar10 or fashion-mnist [default: by the input's shape]
    #[arg(long, value_parser = preset)]
    preset: Option<Preset>,
    /// Means by channel of pixels in 0..1, instead of the preset's
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    mean: Option<Vec<f32>>,
    /// Standard deviations by channel, instead of the preset's
    #[arg(long, value_name = "R,G,B", value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Resize every image's shorter side to N pixels, then crop the centre
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: PathBuf,
    #[serde(flatten)]
    accuracy: Accuracy,
    seconds: f64,
}

impl Eval {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        let data = data::open(&self.data, &self.split)?;
        let options = EvalOptions {
            batch: self.batch as usize,
            limit: self.limit.map(|n| n as usize),
            threads: self.threads,
            isa: self.isa.clone(),
            dense: self.dense,
            preset: self.preset,
            mean: self.mean.clone(),
            std: self.std.clone(),
            size: self.size,
        };
        let started = Instant::now();
        let bar = bar();
        let accuracy = evaluate(&model, &*data, &options, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let report = Report {
            model: self.source.model.clone(),
            accuracy,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let a = &self.accuracy;
        let line = |what: &str, correct: usize| {
            let share = text::percent(text::ratio(correct as u64, a.samples as u64));
            format!("{what}  {share}  ({correct} of {})\n", a.samples)
        };
        format!(
            "{}\ndata   {}\ninput  {}\n{}{}{:.1} s, {}, batch {}\n",
            self.model.display(),
            a.data,
            a.preprocess,
            line("top-1", a.top1_correct),
            line("top-5", a.top5_correct),
            self.seconds,
            a.isa,
            a.batch
        )
    }
}

/// A bar with the time left, on stderr, where that is a terminal.
pub fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} images, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn preset(name: &str) -> Result<Preset, String> {
    let found = Preset::ALL.into_iter().find(|p| p.name() == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = Preset::ALL.iter().map(|p| p.name()).collect();
        format!("one of {}", names.join(", "))
    })
}
