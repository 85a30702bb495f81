//! `prune run`.

use super::Source;
use super::cuts::CutJob;
use super::outcome::Job;
use super::train::Effort;
use anyhow::{Context, Result};
use clap::Args;
use lacuna_prune::{ChannelRecipe, Recipe};
use std::path::PathBuf;

/// The recipe names the model, the method and its settings; `--emit-recipe` of every method writes one. Two
/// runs of a recipe give the same bytes.
#[derive(Args)]
pub struct Run {
    /// The recipe, a TOML file with a table `[model]`
    recipe: PathBuf,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Say what would happen and write no model
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    #[command(flatten)]
    effort: Effort,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run {
    pub fn run(&self) -> Result<String> {
        let named = || self.recipe.display().to_string();
        let text = std::fs::read_to_string(&self.recipe)
            .with_context(|| format!("{}: cannot read the recipe", self.recipe.display()))?;
        if ChannelRecipe::is_one(&text) {
            let recipe = ChannelRecipe::from_toml(&text).with_context(named)?;
            let source = Source::of_recipe(&self.recipe, recipe.model.clone())?;
            let job = CutJob {
                recipe,
                source: &source,
                output: self.output.as_deref(),
                emit_recipe: None,
                effort: &self.effort,
                json: self.json,
            };
            return match job.recipe.pagcp.is_some() {
                true => job.pagcp(),
                false => job.channels(),
            };
        }
        let mut recipe = Recipe::from_toml(&text).with_context(named)?;
        for text in recipe.calibration.iter_mut().flat_map(|c| &mut c.texts) {
            *text = self.recipe.with_file_name(&*text);
        }
        let source = Source::of_recipe(&self.recipe, recipe.model.clone())?;
        Job {
            recipe,
            source: &source,
            output: self.output.as_deref(),
            emit_recipe: None,
            effort: &self.effort,
            keep_search: false,
            json: self.json,
        }
        .run()
    }
}
