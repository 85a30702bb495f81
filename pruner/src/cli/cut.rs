//! `prune cut`.

use super::text::{self, Align, Table};
use super::{Source, file_bytes, json};
use anyhow::{Context, Result};
use clap::Args;
use lacuna_prune::{CutPair, cut};
use serde::Serialize;
use std::path::PathBuf;

/// Between two products in a row, channels for which a factor has only zeros add nothing: the rows and columns of these
/// leave both factors, and the model computes the same.
#[derive(Args)]
pub struct Cut {
    #[command(flatten)]
    source: Source,
    /// The Lacuna file to write
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
    cuts: Vec<CutPair>,
    bytes_before: u64,
    bytes_after: u64,
}

impl Cut {
    pub fn run(&self) -> Result<String> {
        let model = self.source.open()?;
        self.source.keep(&self.output)?;
        let (smaller, cuts) =
            cut(&model).with_context(|| self.source.name().display().to_string())?;
        smaller.save(&self.output)?;
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            cuts,
            bytes_before: self.source.bytes()?,
            bytes_after: file_bytes(&self.output)?,
        };
        if self.json {
            return json(&report);
        }
        let mut table = Table::new([
            ("first factor", Align::Left),
            ("second", Align::Left),
            ("channels", Align::Right),
            ("left", Align::Right),
        ]);
        for c in &report.cuts {
            table.row([
                c.first.clone(),
                c.second.clone(),
                text::count(c.before as u64),
                text::count(c.after as u64),
            ]);
        }
        let pairs = match report.cuts.is_empty() {
            true => "nothing can go\n".to_owned(),
            false => table.render(),
        };
        Ok(format!(
            "{pairs}{}: {} -> {}\n",
            report.output.display(),
            text::bytes(report.bytes_before),
            text::bytes(report.bytes_after),
        ))
    }
}
