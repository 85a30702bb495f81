//! `prune eval`.

use super::preprocessing::Preprocessing;
use super::{Source, json, text};
use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lacuna::{Model, Tokenizer};
use lacuna_prune::data::Samples;
use lacuna_prune::eval::{Accuracy, EvalOptions, evaluate_samples};
use lacuna_prune::perplexity::{Perplexity, PerplexityOptions, perplexity};
use lacuna_prune::questions::{self, MultipleChoice};
use lacuna_prune::tasks::{TaskFigures, TaskOptions, TaskSettings, evaluate_tasks};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// On images (--data), on a text (--text), or on questions with several answers (--questions).
///
/// Images: a folder of images (the label is the last number of a file's name, or the subfolder), a
/// quoted glob over images, an idx3-ubyte file or a folder of such, or a safetensors file of
/// images (or JPEG bytes) and labels. Sequences, for recurrent models: a safetensors file of windows, labels and
/// subjects.
#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    source: Source,
    /// Labelled images
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present_any = ["text", "questions"],
        conflicts_with_all = ["text", "questions"]
    )]
    data: Option<PathBuf>,
    /// A UTF-8 text for a language model: its perplexity is measured
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Questions for a language model, a line of JSON each: {"prompt": "...", "choices": ["...", "..."], "answer": 0};
    /// how often the right choice is the likeliest is measured, of the whole and by the byte
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    questions: Option<PathBuf>,
    /// With --text: tokens that the model sees at a time
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// With --text: tokens from one window to the next [default: the window]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// With --text: use the first N windows
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// The part of the data set, where it has several: test or train
    #[arg(long, default_value = "test")]
    split: String,
    /// Of sequences: the subjects whose sequences are the part test; the others are train
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    held_out_subjects: Vec<usize>,
    /// Use N images, spread evenly over the data, or the first N questions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Images per run, where the model's batch is open
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch: u64,
    /// Threads of a run; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Instruction set: scalar, neon, neondot, neonfhm, neonbf16, avx2, avx512, avx512vbmi2, avx512bf16 [default: the best one here]
    #[arg(long)]
    isa: Option<String>,
    /// Run every weight dense
    #[arg(long)]
    dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are (with
    /// --text) [default: with avx512bf16]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    round_inputs: Option<bool>,
    /// With --text: run tokens one at a time, as generation does, and not in chunks
    #[arg(long, requires = "text")]
    by_token: bool,
    /// Measure a task of a network with several outputs, as `prune train` takes them; may be repeated
    #[arg(long = "task", value_name = "KEY=VALUE,...", conflicts_with = "text")]
    tasks: Vec<TaskSettings>,
    /// What tasks without labels are held against
    #[arg(long, value_name = "MODEL", requires = "tasks")]
    teacher: Option<PathBuf>,
    #[command(flatten)]
    preprocessing: Preprocessing,
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
        if let Some(path) = &self.text {
            return self.perplexity(&model, path);
        }
        if let Some(path) = &self.questions {
            return self.ask(&model, path);
        }
        let path = self.data.as_deref().context("--data is missing")?;
        let options = EvalOptions {
            batch: self.batch as usize,
            limit: self.limit.map(|n| n as usize),
            threads: self.threads,
            isa: self.isa.clone(),
            dense: self.dense,
            preset: self.preprocessing.preset,
            mean: self.preprocessing.mean.clone(),
            std: self.preprocessing.std.clone(),
            size: self.preprocessing.size,
        };
        let started = Instant::now();
        if !self.tasks.is_empty() {
            return self.tasks(&model, path, options, started);
        }
        let data = Samples::open(&model, path, &self.split, &self.held_out_subjects)?;
        let bar = bar();
        let accuracy = evaluate_samples(&model, &data, &options, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let report = Report {
            model: self.source.name(),
            accuracy,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
    }

    fn tasks(
        &self,
        model: &Model,
        path: &Path,
        eval: EvalOptions,
        started: Instant,
    ) -> Result<String> {
        let teacher = self.teacher.as_deref();
        let teacher = teacher.map(|t| lacuna_convert::open(t, &Default::default()));
        let teacher = teacher.transpose()?;
        let options = TaskOptions {
            path,
            split: &self.split,
            eval,
            teacher: teacher.as_ref(),
        };
        let report = TaskReport {
            model: self.source.name(),
            data: path.to_owned(),
            split: &self.split,
            tasks: evaluate_tasks(model, &self.tasks, &options)?,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
    }

    fn ask(&self, model: &Model, path: &Path) -> Result<String> {
        let mut asked = questions::read(path)?;
        asked.truncate(self.limit.map_or(usize::MAX, |n| n as usize));
        let named = || path.display().to_string();
        let encoded = questions::encode(model, &asked).with_context(named)?;
        let started = Instant::now();
        let bar = bar_of("questions");
        let measured = questions::ask(model, &encoded, &self.decoding(), &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let report = QuestionReport {
            model: self.source.name(),
            data: path.to_owned(),
            measured: measured.with_context(named)?,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
    }

    fn decoding(&self) -> PerplexityOptions {
        PerplexityOptions {
            window: self.window,
            stride: self.stride.unwrap_or(self.window),
            windows: self.windows,
            threads: self.threads,
            isa: self.isa.clone(),
            dense: self.dense,
            round_inputs: self.round_inputs,
            by_token: self.by_token,
        }
    }

    fn perplexity(&self, model: &Model, path: &Path) -> Result<String> {
        let named = || format!("{}: cannot read the text", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        // As one string, with nothing before it: windows start anywhere in it.
        let tokens = Tokenizer::new(model)?.encode(&text, false)?;
        let started = Instant::now();
        let bar = bar_of("windows");
        let measured = perplexity(model, &tokens, &self.decoding(), &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let report = TextReport {
            model: self.source.name(),
            text: path.to_owned(),
            measured,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
    }
}

#[derive(Serialize)]
struct TaskReport<'a> {
    model: PathBuf,
    data: PathBuf,
    split: &'a str,
    tasks: Vec<TaskFigures>,
    seconds: f64,
}

impl TaskReport<'_> {
    fn text(&self) -> String {
        let mut table = text::Table::new([
            ("task", text::Align::Left),
            ("metric", text::Align::Left),
            ("value", text::Align::Right),
            ("loss", text::Align::Right),
            ("samples", text::Align::Right),
        ]);
        for t in &self.tasks {
            table.row([
                t.name.clone(),
                t.metric.to_string(),
                match t.metric.is_share() {
                    true => text::percent(t.value),
                    false => format!("{:.4}", t.value),
                },
                format!("{:.4}", t.loss),
                text::count(t.samples as u64),
            ]);
        }
        format!(
            "{}\ndata   {}, split {}\n{}{:.1} s\n",
            self.model.display(),
            self.data.display(),
            self.split,
            table.render(),
            self.seconds
        )
    }
}

#[derive(Serialize)]
struct TextReport {
    model: PathBuf,
    text: PathBuf,
    #[serde(flatten)]
    measured: Perplexity,
    seconds: f64,
}

impl TextReport {
    fn text(&self) -> String {
        let m = &self.measured;
        format!(
            "{}\ntext        {} ({} tokens)\nwindows     {} of {} tokens, stride {}, {} tokens predicted\n\
             perplexity  {:.3}  (nll {:.4} ± {:.4} a token)\n{:.1} s, {}\n",
            self.model.display(),
            self.text.display(),
            text::count(m.tokens as u64),
            m.windows,
            m.window,
            m.stride,
            text::count(m.predicted as u64),
            m.perplexity,
            m.nll,
            m.nll_se,
            self.seconds,
            m.isa,
        )
    }
}

#[derive(Serialize)]
struct QuestionReport {
    model: PathBuf,
    data: PathBuf,
    #[serde(flatten)]
    measured: MultipleChoice,
    seconds: f64,
}

impl QuestionReport {
    fn text(&self) -> String {
        let m = &self.measured;
        let line = |what: &str, right: usize, interval: [f64; 2]| {
            let share = text::percent(text::ratio(right as u64, m.questions as u64));
            let [low, high] = interval.map(text::percent);
            format!(
                "{what}  {share}  ({right} of {}; 95 % interval {low} to {high})\n",
                m.questions
            )
        };
        format!(
            "{}\ndata     {}\n{}{}chance   {}\n{:.1} s, {}\n",
            self.model.display(),
            self.data.display(),
            line("right  ", m.correct, m.interval),
            line("by byte", m.correct_by_byte, m.interval_by_byte),
            text::percent(m.chance),
            self.seconds,
            m.isa,
        )
    }
}

impl Report {
    fn text(&self) -> String {
        let a = &self.accuracy;
        let line = |what: &str, correct: usize| {
            let share = text::percent(text::ratio(correct as u64, a.samples as u64));
            format!("{what}  {share}  ({correct} of {})\n", a.samples)
        };
        let input = a.preprocess.as_ref();
        let input = input.map_or(String::new(), |p| format!("input  {p}\n"));
        format!(
            "{}\ndata   {}\n{input}{}{}{:.1} s, {}, batch {}\n",
            self.model.display(),
            a.data,
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
    bar_of("images")
}

fn bar_of(what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left");
    let style = ProgressStyle::with_template(&template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
