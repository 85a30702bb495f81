//! `prune export`.

use super::{Source, file_bytes, json, text};
use anyhow::Result;
use clap::Args;
use lacuna::model::file::write_dense;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    source: Source,
    /// Plain safetensors: every weight dense under its own name, without the graph
    #[arg(long, required = true)]
    dense: bool,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    input: PathBuf,
    output: PathBuf,
    tensors: usize,
    bytes_before: u64,
    bytes_after: u64,
}

impl Export {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        write_dense(&model, &self.output)?;
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            tensors: model.weights().len(),
            bytes_before: self.source.bytes()?,
            bytes_after: file_bytes(&self.output)?,
        };
        if self.json {
            return json(&report);
        }
        Ok(format!(
            "{}: {} dense tensors, {} -> {}\n",
            report.output.display(),
            report.tensors,
            text::bytes(report.bytes_before),
            text::bytes(report.bytes_after),
        ))
    }
}
