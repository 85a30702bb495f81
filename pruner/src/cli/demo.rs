//! `prune demo`: the main job on the model and the data that come with the project.

use super::eval::bar;
use super::text::{self, Align, Table};
use super::{file_bytes, json};
use anyhow::{Context, Result};
use clap::Args;
use lacuna::model::Symbols;
use lacuna::{Model, Session, SessionOptions, TensorView, TensorViewMut};
use lacuna_prune::data::{Dataset, Idx, Preprocess, Preset};
use lacuna_prune::eval::{Accuracy, EvalOptions, evaluate};
use lacuna_prune::report::{bind, report};
use lacuna_prune::{AllocatorName, Recipe, save};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Runs of each session before the timed ones.
const WARMUP: usize = 30;
/// The timed runs of each session, at least, and how long they last in all, at least.
const RUNS: usize = 300;
const RUN_TIME: Duration = Duration::from_secs(2);

/// A small CNN for Fashion-MNIST is pruned by Global MP, saved, reopened and measured: accuracy on
/// all 10,000 test images, bytes, and latency on this device.
#[derive(Args)]
pub struct Demo {
    /// The share of the weights that is to be zero
    #[arg(long, value_name = "S", default_value_t = 0.9)]
    sparsity: f64,
    /// Threads of the latency runs; 0 takes every core
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// The folder of the model and the data
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist"), hide_default_value = true)]
    assets: PathBuf,
    /// Keep the sparse file here
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    trained: Option<String>,
    data: String,
    sparsity: f64,
    parameters: usize,
    samples: usize,
    accuracy_dense: f64,
    accuracy_sparse: f64,
    correct_dense: usize,
    correct_sparse: usize,
    bytes_dense: u64,
    bytes_sparse: u64,
    macs_dense: u64,
    macs_sparse: u64,
    median_ms_dense: f64,
    median_ms_sparse: f64,
    runs: usize,
    batch: usize,
    threads: usize,
    isa: String,
    seconds: f64,
}

impl Demo {
    pub fn run(&self) -> Result<String> {
        let started = Instant::now();
        let source = self.assets.join("fashion-cnn.safetensors");
        let options = lacuna_convert::Options {
            arch: Some("fashion-cnn".into()),
            ..Default::default()
        };
        let dense = lacuna_convert::open(&source, &options)?;
        let images = "t10k-images-idx3-ubyte.gz";
        let data = Idx::open(&self.assets.join(images))?;

        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let dense_path = folder.path().join("dense.safetensors");
        dense.save(&dense_path)?;
        let sparse_path = match &self.output {
            Some(path) => path.clone(),
            None => folder.path().join("sparse.safetensors"),
        };
        let recipe = Recipe::new(AllocatorName::GlobalMagnitude, self.sparsity);
        let sparse = save(&recipe.run(&dense)?, &sparse_path)?;

        let accuracy_dense = self.accuracy(&dense, &data, true)?;
        let accuracy_sparse = self.accuracy(&sparse, &data, false)?;
        let latency = self.latency(&dense, &sparse, &data)?;
        let totals = report(&sparse, &Symbols::new())?.totals;
        let report = Report {
            model: dense.graph().name.clone(),
            trained: trained(&source)?,
            data: format!(
                "Fashion-MNIST, {} test images of {images}",
                text::count(data.len() as u64)
            ),
            sparsity: totals.sparsity(),
            parameters: totals.parameters,
            samples: accuracy_dense.samples,
            accuracy_dense: accuracy_dense.top1,
            accuracy_sparse: accuracy_sparse.top1,
            correct_dense: accuracy_dense.top1_correct,
            correct_sparse: accuracy_sparse.top1_correct,
            bytes_dense: file_bytes(&dense_path)?,
            bytes_sparse: file_bytes(&sparse_path)?,
            macs_dense: totals.dense_macs,
            macs_sparse: totals.sparse_macs,
            median_ms_dense: latency.dense,
            median_ms_sparse: latency.sparse,
            runs: latency.runs,
            batch: 1,
            threads: latency.threads,
            isa: latency.isa,
            seconds: started.elapsed().as_secs_f64(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text(&sparse_path, self.output.is_some())),
        }
    }

    fn accuracy(&self, model: &Model, data: &dyn Dataset, dense: bool) -> Result<Accuracy> {
        let options = EvalOptions {
            batch: 16,
            dense,
            ..EvalOptions::default()
        };
        let bar = bar();
        let accuracy = evaluate(model, data, &options, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        Ok(accuracy)
    }

    /// Medians of runs that alternate between the two, on one image.
    fn latency(&self, dense: &Model, sparse: &Model, data: &dyn Dataset) -> Result<Latency> {
        let session = |model: &Model, dense: bool| {
            let symbols = bind(model, &Symbols::new());
            Session::new(
                model,
                SessionOptions {
                    threads: self.threads,
                    dense,
                    symbols,
                    ..SessionOptions::default()
                },
            )
        };
        let mut sessions = [session(dense, true)?, session(sparse, false)?];
        let shape = sessions[0].inputs()[0].1.clone();
        let mut image = vec![0.0; shape.iter().product()];
        let input = Preprocess::new(Preset::FashionMnist, [1, 28, 28]);
        input
            .apply(&data.image(0)?, &mut image)
            .map_err(anyhow::Error::msg)?;
        let output_shape = sessions[0].outputs()[0].1.clone();
        let mut output = vec![0.0; output_shape.iter().product()];
        let mut times = [Vec::new(), Vec::new()];
        let mut started = Instant::now();
        let mut round = 0;
        while round < WARMUP + RUNS || started.elapsed() < RUN_TIME {
            if round == WARMUP {
                times.iter_mut().for_each(Vec::clear);
                started = Instant::now();
            }
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                let before = Instant::now();
                session.run_into(
                    &[TensorView::f32(&shape, &image)],
                    &mut [TensorViewMut::f32(&output_shape, &mut output)],
                )?;
                times.push(before.elapsed());
            }
            round += 1;
        }
        let runs = times[0].len();
        let [dense, sparse] = times.map(median_ms);
        Ok(Latency {
            dense,
            sparse,
            runs,
            isa: sessions[1].isa().to_owned(),
            threads: sessions[1].threads(),
        })
    }
}

/// What the weights say of their training: `trained` in the metadata of their file.
fn trained(path: &Path) -> Result<Option<String>> {
    let file = std::fs::read(path).with_context(|| path.display().to_string())?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&file)
        .with_context(|| path.display().to_string())?;
    let metadata = header.metadata().as_ref();
    Ok(metadata.and_then(|m| m.get("trained").cloned()))
}

struct Latency {
    dense: f64,
    sparse: f64,
    runs: usize,
    isa: String,
    threads: usize,
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.len() / 2;
    let median = match (times.len() % 2, times.get(middle)) {
        (0, Some(&upper)) => (times[middle - 1] + upper) / 2,
        (_, Some(&middle)) => middle,
        (_, None) => Duration::ZERO,
    };
    median.as_secs_f64() * 1e3
}

impl Report {
    fn text(&self, path: &Path, kept: bool) -> String {
        let mut table = Table::new([
            ("", Align::Left),
            ("dense", Align::Right),
            ("sparse", Align::Right),
            ("", Align::Right),
        ]);
        table.row([
            format!("top-1 on {} images", text::count(self.samples as u64)),
            text::percent(self.accuracy_dense),
            text::percent(self.accuracy_sparse),
            format!(
                "{:+.2} points",
                (self.accuracy_sparse - self.accuracy_dense) * 100.0
            ),
        ]);
        table.row([
            "file".to_owned(),
            text::bytes(self.bytes_dense),
            text::bytes(self.bytes_sparse),
            format!(
                "{:.2}x smaller",
                self.bytes_dense as f64 / self.bytes_sparse as f64
            ),
        ]);
        table.row([
            "MACs".to_owned(),
            text::count(self.macs_dense),
            text::count(self.macs_sparse),
            format!(
                "{:.2}x fewer",
                self.macs_dense as f64 / self.macs_sparse.max(1) as f64
            ),
        ]);
        let speed = self.median_ms_dense / self.median_ms_sparse;
        table.row([
            "latency, median".to_owned(),
            format!("{:.3} ms", self.median_ms_dense),
            format!("{:.3} ms", self.median_ms_sparse),
            match speed >= 1.0 {
                true => format!("{speed:.2}x faster"),
                false => format!("{:.2}x slower", 1.0 / speed),
            },
        ]);
        let mut out = format!(
            "{} ({} parameters), Global MP at {} in one shot, no training after it\n\
             tested on   {}\n\
             trained on  {}\n\n{}\n\
             latency: {} alternating runs each, batch {}, {} thread{}, {}; dense is the same network in this runtime's dense kernels\n\
             {:.1} s in all\n",
            self.model,
            text::count(self.parameters as u64),
            text::percent(self.sparsity),
            self.data,
            self.trained
                .as_deref()
                .unwrap_or("its file does not say what"),
            table.render(),
            self.runs,
            self.batch,
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.isa,
            self.seconds,
        );
        if kept {
            out += &format!("the sparse model is in {}\n", path.display());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let ms = |v: &[u64]| median_ms(v.iter().map(|&n| Duration::from_millis(n)).collect());
        assert_eq!(ms(&[3, 1, 2]), 2.0);
        assert_eq!(ms(&[4, 1, 2, 3]), 2.5);
        assert_eq!(ms(&[]), 0.0);
    }
}
