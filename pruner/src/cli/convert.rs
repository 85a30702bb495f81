//! `prune convert`.

use super::{Source, dtype, file_bytes, json, text};
use anyhow::Result;
use clap::Args;
use lacuna::{DType, Model};
use serde::Serialize;
use std::path::PathBuf;

/// Zeros that are in the checkpoint are stored sparse where that is smaller.
#[derive(Args)]
pub struct Convert {
    #[command(flatten)]
    source: Source,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Store every weight dense
    #[arg(long)]
    keep_dense: bool,
    /// Store matrices in this dtype: f32, f16 or bf16 [default: that of the checkpoint]
    #[arg(long, value_parser = dtype)]
    dtype: Option<DType>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    input: PathBuf,
    output: PathBuf,
    name: String,
    nodes: usize,
    weights: usize,
    sparse_weights: usize,
    parameters: usize,
    bytes_before: u64,
    bytes_after: u64,
}

impl Convert {
    pub fn run(&self) -> Result<String> {
        let mut model = self.source.open()?;
        if let Some(dtype) = self.dtype {
            model = model.to_dtype(dtype)?;
        }
        let model = match self.keep_dense {
            true => model.decoded(),
            false => model.encoded(),
        };
        model.save(&self.output)?;
        let written = Model::open(&self.output)?;
        let weights = written.weights();
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            name: written.graph().name.clone(),
            nodes: written.graph().nodes.len(),
            weights: weights.len(),
            sparse_weights: weights.values().filter(|w| w.is_sparse()).count(),
            parameters: weights.values().map(|w| w.numel()).sum(),
            bytes_before: self.source.bytes()?,
            bytes_after: file_bytes(&self.output)?,
        };
        if self.json {
            return json(&report);
        }
        Ok(format!(
            "{}: {} nodes, {} weights ({} sparse), {} parameters; {} -> {}\n",
            report.output.display(),
            report.nodes,
            report.weights,
            report.sparse_weights,
            text::count(report.parameters as u64),
            text::bytes(report.bytes_before),
            text::bytes(report.bytes_after),
        ))
    }
}
