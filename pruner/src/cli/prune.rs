//! The verbs that prune: a recipe from flags or a file.

use super::calibration::CalibrationFlags;
use super::outcome::Job;
use super::train::{Effort, FineTune};
use super::{Source, dtype};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna::DType;
use lacuna_prune::{AllocatorName, Floor, FloorMode, Pattern, Recipe, SolverName, Ties};
use std::path::PathBuf;

/// The magnitudes of all layers are ranked together; the smallest go.
#[derive(Args)]
pub struct GlobalMp {
    #[command(flatten)]
    options: Options,
}

/// Every layer loses its own smallest magnitudes: the baseline. With a text, the error of each layer is measured, and
/// a refiner may mend it.
#[derive(Args)]
pub struct Magnitude {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    calibration: CalibrationFlags,
}

/// A method that learns from a text what each layer sees, block by block.
#[derive(Args)]
pub struct Calibrated {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    calibration: CalibrationFlags,
    /// The seed that draws the windows
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Calibration"
    )]
    seed: u64,
}

impl Calibrated {
    pub fn run(&self, solver: SolverName) -> Result<String> {
        let recipe = match self.common.recipe()? {
            Some(recipe) if recipe.solver != solver => bail!(
                "the recipe's solver is `{}`, this verb's is `{}`; use the other verb",
                recipe.solver.get().name(),
                solver.get().name()
            ),
            Some(recipe) => recipe,
            None => {
                let recipe = Recipe {
                    solver,
                    ..self.common.built(AllocatorName::Uniform, false)?
                };
                self.calibration.complete(recipe, self.seed)
            }
        };
        let keep = self.calibration.search.keep_search;
        self.common.carry_out(recipe, &Effort::default(), keep)
    }
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

/// Of factors of low rank, W = W1 W2, the columns of W1 with the smallest sums of magnitudes go: the rule of Global MP for
/// FastGRNN. `prune cut` then makes the factors smaller.
#[derive(Args)]
pub struct Columns {
    #[command(flatten)]
    options: Options,
    /// The columns that a first factor keeps, such as rnn.U1=8, may be repeated; the others lose the share that
    /// --sparsity says
    #[arg(long, value_name = "WEIGHT=N", value_parser = rank, conflicts_with = "recipe")]
    rank: Vec<(String, usize)>,
}

/// A weight's name and a number.
fn rank(text: &str) -> Result<(String, usize), String> {
    let parts = text.rsplit_once('=');
    let parsed = parts.and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    parsed.ok_or_else(|| "a weight and a number, such as rnn.U1=8".to_owned())
}

impl Columns {
    pub fn run(&self) -> Result<String> {
        let Options { common, fine_tune } = &self.options;
        let recipe = match common.recipe()? {
            Some(recipe) => check(recipe, AllocatorName::Columns)?,
            None => Recipe {
                solver: SolverName::Columns,
                ranks: self.rank.iter().cloned().collect(),
                train: fine_tune.settings()?,
                ..common.built(AllocatorName::Columns, !self.rank.is_empty())?
            },
        };
        common.carry_out(recipe, fine_tune.effort(), false)
    }
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
        let options = &self.options;
        let recipe = match options.common.recipe()? {
            Some(recipe) if recipe.calibration.is_some() => recipe,
            Some(recipe) => check(recipe, AllocatorName::Uniform)?,
            None => {
                let recipe = options.common.built(AllocatorName::Uniform, false)?;
                let recipe = Recipe {
                    train: options.fine_tune.settings()?,
                    ..recipe
                };
                self.calibration.complete(recipe, options.fine_tune.seed())
            }
        };
        let keep = self.calibration.search.keep_search;
        options
            .common
            .carry_out(recipe, options.fine_tune.effort(), keep)
    }
}

#[derive(Args)]
struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    fine_tune: FineTune,
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    source: Source,
    /// The share of the selected weights that is to be zero, such as 0.9
    #[arg(long, value_name = "S")]
    sparsity: Option<f64>,
    /// Keep N of every M neighbours along the inputs, such as 2:4, in every layer; stands for the sparsity
    #[arg(long, value_name = "N:M", conflicts_with = "sparsity")]
    pattern: Option<Pattern>,
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
        "sparsity", "pattern", "min_weights", "mt_percent", "mt_mode", "ties", "exact", "include", "exclude", "keep_dense",
        "dtype",
    ])]
    recipe: Option<PathBuf>,
    /// Write the recipe, for `prune run`; its SHA-256 is the one that the output carries
    #[arg(long, value_name = "FILE", alias = "save-recipe")]
    emit_recipe: Option<PathBuf>,
    /// Say what would happen and write no model
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
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
        let recipe = match self.common.recipe()? {
            Some(recipe) => check(recipe, allocator)?,
            None => Recipe {
                train: self.fine_tune.settings()?,
                ..self.common.built(allocator, false)?
            },
        };
        self.common
            .carry_out(recipe, self.fine_tune.effort(), false)
    }
}

/// Refuses the recipe of another allocator.
fn check(recipe: Recipe, allocator: AllocatorName) -> Result<Recipe> {
    if recipe.allocator != allocator {
        bail!(
            "the recipe's allocator is `{}`, this verb's is `{}`; use the other verb",
            recipe.allocator.get().name(),
            allocator.get().name()
        );
    }
    Ok(recipe)
}

impl Common {
    fn carry_out(&self, recipe: Recipe, effort: &Effort, keep_search: bool) -> Result<String> {
        Job {
            recipe,
            source: &self.source,
            output: self.output.as_deref(),
            emit_recipe: self.emit_recipe.as_deref(),
            effort,
            keep_search,
            json: self.json,
        }
        .run()
    }

    /// The recipe of `--recipe`.
    fn recipe(&self) -> Result<Option<Recipe>> {
        let Some(path) = &self.recipe else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot read the recipe", path.display()))?;
        let mut recipe = Recipe::from_toml(&text).with_context(|| path.display().to_string())?;
        for text in recipe.calibration.iter_mut().flat_map(|c| &mut c.texts) {
            *text = path.with_file_name(&*text);
        }
        Ok(Some(recipe))
    }

    /// The recipe of the flags. `sizes` says whether something else than a share says how much goes.
    fn built(&self, allocator: AllocatorName, sizes: bool) -> Result<Recipe> {
        let share = match (self.pattern.map(Pattern::sparsity).or(self.sparsity), sizes) {
            (None, false) => bail!("--sparsity is missing: the share that is to be zero"),
            (given, _) => given.unwrap_or_default(),
        };
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
            pattern: self.pattern,
            ties: match self.ties {
                TieRule::Exact => Ties::Exact,
                TieRule::Keep => Ties::Keep,
            },
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            keep_dense: self.keep_dense,
            dtype: self.dtype,
            floor: wanted.then_some(floor),
            ..Recipe::new(allocator, share)
        })
    }
}
