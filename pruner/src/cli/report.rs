//! `prune report`.

use super::outcome::sidecar;
use super::write_text;
use anyhow::{Context, Result, bail};
use clap::Args;
use lacuna_prune::page::{Sources, html};
use std::path::{Path, PathBuf};

/// One HTML file that needs nothing else: density by layer, size, work, the recipe, and, where there are files of
/// them, accuracy over epochs and latency by layer.
#[derive(Args)]
pub struct Report {
    /// The pruned model, beside which its NAME.report.json lies, or that file itself
    model: PathBuf,
    /// The page to write [default: NAME.report.html beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Metrics of a training run, JSON lines [default: NAME.metrics.jsonl beside the model, where it is there, or those of the
    /// training that the report is of]
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Latency by layer: what `lacuna-bench MODEL --layers --json` printed
    #[arg(long, value_name = "FILE")]
    latency: Option<PathBuf>,
    /// The same of the model before pruning, where its layers became smaller
    #[arg(long, value_name = "FILE", requires = "latency")]
    latency_before: Option<PathBuf>,
    /// Accuracy before pruning: what `prune eval --json` printed
    #[arg(long, value_name = "FILE")]
    eval_before: Option<PathBuf>,
    /// Accuracy after pruning: what `prune eval --json` printed
    #[arg(long, value_name = "FILE")]
    eval_after: Option<PathBuf>,
}

impl Report {
    pub fn run(&self) -> Result<String> {
        let name = self.model.as_os_str().to_string_lossy();
        let source = match name.ends_with(".report.json") {
            true => self.model.clone(),
            false => sidecar(&self.model),
        };
        if !source.exists() {
            bail!(
                "{}: not there; the methods of `prune` write it beside their output",
                source.display()
            );
        }
        let page = source.with_extension("html");
        let beside = source.with_extension("").with_extension("metrics.jsonl");
        let metrics = match &self.metrics {
            Some(path) => Some(path.clone()),
            None => beside.exists().then_some(beside),
        };
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let sources = Sources {
            sidecar: read(&source)?,
            metrics: optional(&metrics)?,
            latency: optional(&self.latency)?,
            latency_before: optional(&self.latency_before)?,
            eval_before: optional(&self.eval_before)?,
            eval_after: optional(&self.eval_after)?,
        };
        let page = self.output.clone().unwrap_or(page);
        let text = html(&sources).map_err(|e| {
            let path = match e.source {
                "metrics" => metrics.as_ref(),
                "latency" => self.latency.as_ref(),
                "latency before" => self.latency_before.as_ref(),
                "eval before" => self.eval_before.as_ref(),
                "eval after" => self.eval_after.as_ref(),
                _ => Some(&source),
            };
            let path = path.unwrap_or(&source);
            anyhow::anyhow!("{}: {}", path.display(), e.what)
        })?;
        write_text(&page, &text)?;
        Ok(format!("wrote {}\n", page.display()))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}
