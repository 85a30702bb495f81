//! `prune convert`.

use super::{Source, dtype, file_bytes, json, text};
use anyhow::Result;
use clap::Args;
use lacuna::model::GROUPS;
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
    /// Store matrices in this dtype: f32, f16, bf16, or int8 for those of linear layers (not the
    /// embedding and the output layer of a language model) [default: that of the checkpoint]
    #[arg(long, value_parser = stored_dtype)]
    dtype: Option<DType>,
    /// With --dtype int8: columns of a row that share a scale, 32 or 64
    #[arg(long, value_name = "N", value_parser = group, default_value = "64")]
    group: usize,
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
        if let Some(dtype) = self.dtype.filter(|d| d.is_float()) {
            model = model.to_dtype(dtype)?;
        }
        let mut model = match self.keep_dense {
            true => model.decoded(),
            false => model.encoded(),
        };
        if self.dtype == Some(DType::I8) {
            model = model.to_scaled(self.group)?;
        }
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

/// A floating-point dtype, or signed bytes.
fn stored_dtype(name: &str) -> Result<DType, String> {
    match name {
        "int8" => Ok(DType::I8),
        _ => dtype(name).map_err(|known| format!("{known}, int8")),
    }
}

/// Columns that share a scale.
fn group(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|n| GROUPS.contains(n));
    found.ok_or_else(|| "32 or 64".to_owned())
}
