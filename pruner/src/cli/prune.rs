//! `prune global-mp`, `magnitude`, `erk` and `lamp`: a recipe from flags or a file.

use super::outcome::Job;
use super::train::FineTune;
use super::{Source, dtype};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna::DType;
use lacuna_prune::{AllocatorName, Floor, FloorMode, Recipe, Ties};
use std::path::PathBuf;

/// The magnitudes of all layers are ranked together; the smallest go.
#[derive(Args)]
pub struct GlobalMp {
    #[command(flatten)]
    options: Options,
}

/// Every layer loses its own smallest magnitudes: the baseline.
#[derive(Args)]
pub struct Magnitude {
    #[command(flatten)]
    options: Options,
}

/// Densities by the shapes of the layers alone: in proportion to the sum of their axes over the product.
#[derive(Args)]
pub struct Erk {
    #[command(flatten)]
    options: Options,
}

/// The square of each weight over the sum of its layer's squares that are not smaller; the smallest go.
#[derive(Args)]
pub struct Lamp {
    #[command(flatten)]
    options: Options,
}

impl Erk {
    pub fn run(&self) -> Result<String> {
        self.options.run(AllocatorName::Erk)
    }
}

impl Lamp {
    pub fn run(&self) -> Result<String> {
        self.options.run(AllocatorName::Lamp)
    }
}

impl GlobalMp {
    pub fn run(&self) -> Result<String> {
        self.options.run(AllocatorName::GlobalMagnitude)
    }
}

impl Magnitude {
    pub fn run(&self) -> Result<String> {
        self.options.run(AllocatorName::Uniform)
    }
}

#[derive(Args)]
struct Options {
    #[command(flatten)]
    source: Source,
    /// The share of the selected weights that is to be zero, such as 0.9
    #[arg(long, value_name = "S", required_unless_present = "recipe")]
    sparsity: Option<f64>,
    /// The Lacuna file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Every layer keeps at least N weights; smaller layers stay whole
    #[arg(long, value_name = "N")]
    min_weights: Option<usize>,
    /// Every layer keeps at least P percent of all selected weights of the network
    #[arg(long, value_name = "P", conflicts_with = "min_weights")]
    mt_percent: Option<f64>,
    /// How the minimum is kept
    #[arg(long, value_enum, default_value_t = Mode::Refine)]
    mt_mode: Mode,
    /// What happens to equal magnitudes at the threshold
    #[arg(long, value_enum, default_value_t = TieRule::Exact)]
    ties: TieRule,
    /// Reach the sparsity exactly; the default, the same as --ties exact
    #[arg(long, conflicts_with = "ties")]
    exact: bool,
    /// Prune only weights whose names match; a shell glob, may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave weights whose names match as they are; a shell glob, may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Store every weight dense, zeros included
    #[arg(long)]
    keep_dense: bool,
    /// Store matrices in this dtype: f32, f16 or bf16 [default: that of the model]
    #[arg(long, value_parser = dtype)]
    dtype: Option<DType>,
    /// Take everything above from a recipe
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "sparsity", "min_weights", "mt_percent", "mt_mode", "ties", "exact", "include", "exclude", "keep_dense",
        "dtype",
    ])]
    recipe: Option<PathBuf>,
    /// Write the recipe, for `prune run`; its SHA-256 is the one that the output carries
    #[arg(long, value_name = "FILE", alias = "save-recipe")]
    emit_recipe: Option<PathBuf>,
    /// Say what would happen and write no model
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    #[command(flatten)]
    fine_tune: FineTune,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Rank once, then rescale and clamp the layers (the reference)
    Refine,
    /// One ranking without each layer's largest weights
    Global,
}

#[derive(Clone, Copy, ValueEnum)]
enum TieRule {
    /// The earlier weights go: the sparsity is exact
    Exact,
    /// All stay (the reference)
    Keep,
}

impl Options {
    fn run(&self, allocator: AllocatorName) -> Result<String> {
        Job {
            recipe: self.recipe(allocator)?,
            source: &self.source,
            output: self.output.as_deref(),
            emit_recipe: self.emit_recipe.as_deref(),
            effort: self.fine_tune.effort(),
            json: self.json,
        }
        .run()
    }

    fn recipe(&self, allocator: AllocatorName) -> Result<Recipe> {
        if let Some(path) = &self.recipe {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{}: cannot read the recipe", path.display()))?;
            let recipe = Recipe::from_toml(&text).with_context(|| path.display().to_string())?;
            if recipe.allocator != allocator {
                bail!(
                    "{}: the recipe's allocator is `{}`, this verb's is `{}`; use the other verb",
                    path.display(),
                    recipe.allocator.get().name(),
                    allocator.get().name()
                );
            }
            return Ok(recipe);
        }
        let floor = Floor {
            mode: match self.mt_mode {
                Mode::Refine => FloorMode::Refine,
                Mode::Global => FloorMode::Global,
            },
            min_weights: self.min_weights,
            mt_percent: self.mt_percent,
        };
        let wanted = floor.min_weights.is_some() || floor.mt_percent.is_some();
        Ok(Recipe {
            ties: match self.ties {
                TieRule::Exact => Ties::Exact,
                TieRule::Keep => Ties::Keep,
            },
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            keep_dense: self.keep_dense,
            dtype: self.dtype,
            floor: wanted.then_some(floor),
            train: self.fine_tune.settings()?,
            ..Recipe::new(allocator, self.sparsity.unwrap_or_default())
        })
    }
}
