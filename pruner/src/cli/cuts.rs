//! A recipe that cuts channels, carried out: what both of its methods share.

use super::outcome::{State, sidecar};
use super::train::Effort;
use super::{Source, file_bytes, json, text, write_text};
use anyhow::{Context, Result};
use clap::ValueEnum;
use lacuna::Model;
use lacuna::model::Symbols;
use lacuna_prune::ChannelRecipe;
use lacuna_prune::groups::Criterion;
use lacuna_prune::report::{LayerReport, MAC_CONVENTION, report};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A recipe and what it is applied to.
pub struct CutJob<'a> {
    pub recipe: ChannelRecipe,
    pub source: &'a Source,
    /// The model to write; nothing is written without.
    pub output: Option<&'a Path>,
    pub emit_recipe: Option<&'a Path>,
    /// How a recipe's training is carried out.
    pub effort: &'a Effort,
    pub json: bool,
}

/// What units are ranked by.
#[derive(Clone, Copy, ValueEnum)]
pub enum By {
    /// Mean magnitude of the weights that make a unit
    L1,
    /// Root of their mean square
    L2,
    /// Squares of the weights that make and that read it, relative to the group (DepGraph)
    GroupNorm,
}

impl From<By> for Criterion {
    fn from(by: By) -> Criterion {
        match by {
            By::L1 => Criterion::L1,
            By::L2 => Criterion::L2,
            By::GroupNorm => Criterion::GroupNorm,
        }
    }
}

/// What a cut came to, with what is its method's own.
#[derive(Serialize)]
struct Report<'a, R> {
    kind: &'static str,
    tool: &'static str,
    input: PathBuf,
    input_sha256: Option<String>,
    output: Option<&'a Path>,
    dry_run: bool,
    recipe_sha256: String,
    recipe: &'a ChannelRecipe,
    groups: Vec<Line>,
    mac_convention: &'static str,
    before: State,
    after: State,
    /// The prunable layers afterwards.
    layers: Vec<LayerReport>,
    #[serde(flatten)]
    own: R,
}

/// What is left of a group.
#[derive(Serialize)]
pub struct Line {
    /// The first weight that makes its channels.
    pub name: String,
    pub units: usize,
    pub removed: usize,
}

/// A network and what its method has to say of it.
pub struct Cut<R> {
    pub kind: &'static str,
    pub model: Model,
    pub groups: Vec<Line>,
    pub own: R,
}

impl CutJob<'_> {
    /// Opens the source, has it cut, and writes model, report and recipe. `say` puts the method's own part in words.
    pub fn run<R: Serialize>(
        mut self,
        cut: impl FnOnce(&Self, &Model) -> Result<Cut<R>>,
        say: impl FnOnce(&[Line], &R) -> String,
    ) -> Result<String> {
        let model = self.source.open()?;
        let digest = self.source.digest(&model)?;
        self.recipe.model = self.source.checked(self.recipe.model.as_ref(), &digest)?;
        if let Some(path) = self.output {
            self.source.keep(path)?;
        }
        let done = cut(&self, &model).with_context(|| self.source.name().display().to_string())?;
        let mut after = done.model;
        after.metadata.recipe = Some(self.recipe.hash());
        if let Some(path) = self.output {
            after.save(path)?;
            after = Model::open(path)?;
        }
        let figures = |m: &Model| report(m, &Symbols::new());
        let (before, after) = (figures(&model)?, figures(&after)?);
        let result = Report {
            kind: done.kind,
            tool: concat!("prune ", env!("CARGO_PKG_VERSION")),
            input: self.source.name(),
            input_sha256: digest.clone(),
            output: self.output,
            dry_run: self.output.is_none(),
            recipe_sha256: self.recipe.hash(),
            recipe: &self.recipe,
            groups: done.groups,
            mac_convention: MAC_CONVENTION,
            before: State::of(&before, Some(self.source.bytes()?)),
            after: State::of(&after, self.output.map(file_bytes).transpose()?),
            layers: after.layers,
            own: done.own,
        };
        if let Some(path) = self.emit_recipe {
            let recipe = ChannelRecipe {
                model: Some(self.source.placed(path, digest)),
                ..self.recipe.clone()
            };
            write_text(path, &recipe.to_toml())?;
        }
        let document = json(&result)?;
        if let Some(path) = self.output {
            write_text(&sidecar(path), &document)?;
        }
        if self.json {
            return Ok(document);
        }
        let mut out = format!("recipe sha256 {}\n\n", result.recipe_sha256);
        out += &say(&result.groups, &result.own);
        out += &result.totals();
        Ok(out)
    }
}

impl<R> Report<'_, R> {
    fn totals(&self) -> String {
        let (b, a) = (&self.before, &self.after);
        let mut out = text::left([
            (
                "parameters",
                b.totals.trained as u64,
                Some(a.totals.trained as u64),
            ),
            ("MACs", b.totals.dense_macs, Some(a.totals.dense_macs)),
            ("bytes of the file", b.file_bytes.unwrap_or(0), a.file_bytes),
        ]);
        out += &format!("MACs at batch 1: {}\n", self.mac_convention);
        out += &match self.output {
            Some(path) => format!(
                "wrote {}\nreport in {}\n",
                path.display(),
                sidecar(path).display()
            ),
            None => "dry run: nothing was written\n".to_owned(),
        };
        out
    }
}
