//! `prune inspect`.

use super::text::{self, Align, Table};
use super::{Source, json};
use anyhow::Result;
use clap::Args;
use lacuna::model::Symbols;
use lacuna_prune::report::{MAC_CONVENTION, ModelReport, report};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    source: Source,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output {
    file: PathBuf,
    file_bytes: u64,
    /// Elements that training changes.
    parameters: usize,
    /// Multiply-accumulates at batch 1, were every weight dense.
    macs: u64,
    /// The same by the other convention: a multiplication and an addition count as two.
    flops: u64,
    mac_convention: &'static str,
    #[serde(flatten)]
    model: ModelReport,
}

impl Inspect {
    pub fn run(&self) -> Result<String> {
        let model = report(&self.source.open()?, &Symbols::new())?;
        let output = Output {
            parameters: model.totals.trained,
            macs: model.totals.dense_macs,
            flops: 2 * model.totals.dense_macs,
            file: self.source.name(),
            file_bytes: self.source.bytes()?,
            mac_convention: MAC_CONVENTION,
            model,
        };
        match self.json {
            true => json(&output),
            false => Ok(output.text()),
        }
    }
}

impl Output {
    fn text(&self) -> String {
        let m = &self.model;
        let mut out = format!(
            "{}: {}, {} nodes, {}\nsize     {} parameters, {} MACs ({} FLOPs) at batch 1\ninputs   {}\noutputs  {}\n",
            self.file.display(),
            m.name,
            m.nodes,
            text::bytes(self.file_bytes),
            text::count(self.parameters as u64),
            text::count(self.macs),
            text::count(self.flops),
            m.inputs.join(", "),
            m.outputs.join(", "),
        );
        for (what, hash) in [("recipe", &m.recipe), ("source", &m.source)] {
            if let Some(hash) = hash {
                out += &format!("{what:<8} sha256 {hash}\n");
            }
        }
        let mut table = Table::new([
            ("weight", Align::Left),
            ("op", Align::Left),
            ("shape", Align::Left),
            ("dtype", Align::Left),
            ("encoding", Align::Left),
            ("nonzeros", Align::Right),
            ("sparsity", Align::Right),
            ("MACs", Align::Right),
            ("dense MACs", Align::Right),
            ("bytes", Align::Right),
        ]);
        for l in &m.layers {
            table.row([
                l.weight.clone(),
                l.op.to_owned(),
                text::shape(&l.shape),
                l.dtype.to_owned(),
                l.encoding.to_owned(),
                text::count(l.nonzeros as u64),
                text::percent(l.sparsity()),
                text::count(l.sparse_macs),
                text::count(l.dense_macs),
                text::count(l.bytes as u64),
            ]);
        }
        let t = &m.totals;
        let sum: usize = m.layers.iter().map(|l| l.bytes).sum();
        table.row([
            "these layers".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            text::count((t.prunable - t.prunable_zeros) as u64),
            text::percent(t.sparsity()),
            text::count(t.sparse_macs),
            text::count(t.dense_macs),
            text::count(sum as u64),
        ]);
        table.row([
            "all weights".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            text::count((t.parameters - t.parameter_zeros) as u64),
            text::percent(t.sparsity_of_all()),
            String::new(),
            String::new(),
            text::count(t.weight_bytes as u64),
        ]);
        out += "\n";
        out += &table.render();
        out += &format!("\nMACs at batch 1: {MAC_CONVENTION}\n");
        out
    }
}
