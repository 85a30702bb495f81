//! `prune export`.

use super::{Source, file_bytes, json, text, write_bytes};
use anyhow::Result;
use clap::Args;
use lacuna::model::file::{write_dense, write_weights};
use lacuna_convert::{export_hf, export_onnx, in_place_of, micro};
use serde::Serialize;
use std::path::PathBuf;

/// Zeros are filled in, so that every other runtime takes the result.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    format: Format,
    /// With --dense: the checkpoint that the model was converted from; its tensors keep their names, and those that
    /// the model does not have their values
    #[arg(long, value_name = "FILE", conflicts_with_all = ["onnx", "micro", "hf"])]
    like: Option<PathBuf>,
    /// The file to write; with --hf the folder
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Format {
    /// Plain safetensors: every weight dense, without the graph
    #[arg(long)]
    dense: bool,
    /// ONNX: the graph, and every weight dense in f32
    #[arg(long)]
    onnx: bool,
    /// A folder that stock loaders of Hugging Face take: config.json, model.safetensors, tokenizer. Llama only
    #[arg(long)]
    hf: bool,
    /// FastGRNN for microcontrollers, as the crate `lacuna-micro` runs it; weights stay sparse
    #[arg(long)]
    micro: bool,
}

impl Format {
    fn name(&self) -> &'static str {
        match (self.onnx, self.micro, self.hf) {
            (true, ..) => "onnx",
            (_, true, _) => "micro",
            (.., true) => "hf",
            _ => "safetensors",
        }
    }
}

#[derive(Serialize)]
struct Report {
    input: PathBuf,
    output: PathBuf,
    format: &'static str,
    tensors: usize,
    bytes_before: u64,
    bytes_after: u64,
}

impl Export {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        self.source.keep(&self.output)?;
        let mut tensors = model.weights().len();
        match (self.format.name(), &self.like) {
            ("onnx", _) => export_onnx(&model, &self.output)?,
            ("hf", _) => export_hf(&model, &self.output)?,
            ("micro", _) => write_bytes(&self.output, &micro(&model)?)?,
            (_, None) => write_dense(&model, &self.output)?,
            (_, Some(checkpoint)) => {
                super::refuse_same(checkpoint, &self.output)?;
                let weights = in_place_of(&model, checkpoint)?;
                tensors = weights.len();
                write_weights(&weights, &self.output)?;
            }
        }
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            format: self.format.name(),
            tensors,
            bytes_before: self.source.bytes()?,
            bytes_after: match self.format.hf {
                true => file_bytes(&self.output.join("model.safetensors"))?,
                false => file_bytes(&self.output)?,
            },
        };
        if self.json {
            return json(&report);
        }
        Ok(format!(
            "{}: {} tensors, {} -> {}\n",
            report.output.display(),
            report.tensors,
            text::bytes(report.bytes_before),
            text::bytes(report.bytes_after),
        ))
    }
}
