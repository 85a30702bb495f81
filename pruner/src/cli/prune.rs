//! `prune global-mp` and `prune magnitude`: a recipe from flags or a file, carried out and reported.

use super::text::{self, Align, Table};
use super::{Source, dtype, file_bytes, json};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lacuna::DType;
use lacuna::model::Symbols;
use lacuna_prune::report::{MAC_CONVENTION, Totals, report};
use lacuna_prune::{AllocatorName, Floor, FloorMode, Plan, Recipe, Ties, save};
use serde::Serialize;
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
    /// Write the recipe; its SHA-256 is the one that the output carries
    #[arg(long, value_name = "FILE")]
    save_recipe: Option<PathBuf>,
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

/// The sparsity from which magnitude alone is no method for a language model.
const HOPELESS: f64 = 0.35;

const NOTE: &str = "magnitude alone ruins language models at such a sparsity (SmolLM2-135M at 50 %: perplexity 37 -> 430); \
     measure with `prune eval --text`";

#[derive(Serialize)]
struct Report {
    input: PathBuf,
    output: Option<PathBuf>,
    dry_run: bool,
    recipe_sha256: String,
    recipe: Recipe,
    plan: Plan,
    floored: Vec<String>,
    emptied: Vec<String>,
    note: Option<&'static str>,
    mac_convention: &'static str,
    before: State,
    after: State,
    /// Whether the output was reopened and its zeros equal the plan's.
    verified: bool,
}

#[derive(Serialize)]
struct State {
    #[serde(flatten)]
    totals: Totals,
    sparsity: f64,
    sparsity_of_all: f64,
    file_bytes: Option<u64>,
}

impl State {
    fn of(model: &lacuna::Model, file_bytes: Option<u64>) -> Result<State> {
        let totals = report(model, &Symbols::new())?.totals;
        Ok(State {
            totals,
            sparsity: totals.sparsity(),
            sparsity_of_all: totals.sparsity_of_all(),
            file_bytes,
        })
    }
}

impl Options {
    fn run(&self, allocator: AllocatorName) -> Result<String> {
        let recipe = self.recipe(allocator)?;
        let model = self.source.open()?;
        let input = || self.source.name().display().to_string();
        let pruned = recipe.run(&model).with_context(input)?;
        let before = State::of(&model, Some(self.source.bytes()?))?;
        let after = match &self.output {
            Some(path) => State::of(&save(&pruned, path)?, Some(file_bytes(path)?))?,
            None => State::of(&pruned.model, None)?,
        };
        if let Some(path) = &self.save_recipe {
            std::fs::write(path, recipe.to_toml())
                .with_context(|| format!("{}: cannot write the recipe", path.display()))?;
        }
        let names = |layers: Vec<&lacuna_prune::PlannedLayer>| {
            layers.into_iter().map(|l| l.weight.clone()).collect()
        };
        let report = Report {
            input: self.source.name(),
            output: self.output.clone(),
            dry_run: self.dry_run,
            recipe_sha256: recipe.hash(),
            floored: names(pruned.plan.floored().collect()),
            emptied: names(pruned.plan.emptied().collect()),
            note: (model.is_language_model() && pruned.plan.sparsity() > HOPELESS).then_some(NOTE),
            plan: pruned.plan,
            recipe,
            mac_convention: MAC_CONVENTION,
            before,
            after,
            verified: self.output.is_some(),
        };
        match self.json {
            true => json(&report),
            false => Ok(report.text()),
        }
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
            ..Recipe::new(allocator, self.sparsity.unwrap_or_default())
        })
    }
}

impl Report {
    fn text(&self) -> String {
        let mut out = format!(
            "{}, {}, recipe sha256 {}\n",
            self.plan.allocator,
            text::percent(self.plan.target),
            self.recipe_sha256
        );
        if let Some(t) = self.plan.threshold {
            out += &format!("threshold |w| = {t:e}\n");
        }
        out += "\n";
        out += &self.layers();
        out += "\n";
        if self.plan.sigma > 0 {
            out += &format!(
                "floor: {} weights per layer; it kept weights in {} layers{}{}\n",
                text::count(self.plan.sigma as u64),
                self.floored.len(),
                if self.floored.is_empty() { "" } else { ": " },
                self.floored.join(", ")
            );
        }
        if !self.emptied.is_empty() {
            out += &format!(
                "WARNING: nothing is left of {}; where no path leads around it the model is dead. \
                 A floor (--min-weights, --mt-percent) or --exclude keeps it alive.\n",
                self.emptied.join(", ")
            );
        }
        if let Some(note) = &self.note {
            out += &format!("note: {note}\n");
        }
        out += &self.totals();
        out += &format!("MACs at batch 1: {}\n", self.mac_convention);
        match &self.output {
            Some(path) => {
                out += &format!(
                    "wrote {}; reopened: the zeros of {} layers are those of the plan\n",
                    path.display(),
                    self.plan.layers.len()
                );
            }
            None => out += "dry run: nothing was written\n",
        }
        out
    }

    fn layers(&self) -> String {
        let mut table = Table::new([
            ("weight", Align::Left),
            ("op", Align::Left),
            ("shape", Align::Left),
            ("size", Align::Right),
            ("before", Align::Right),
            ("sparsity", Align::Right),
            ("kept", Align::Right),
            ("", Align::Left),
        ]);
        for l in &self.plan.layers {
            table.row([
                l.weight.clone(),
                l.op.to_owned(),
                text::shape(&l.shape),
                text::count(l.size as u64),
                text::percent(text::ratio(l.zeros_before as u64, l.size as u64)),
                text::percent(l.sparsity()),
                text::count((l.size - l.zeros_after) as u64),
                match (l.is_empty(), l.floored) {
                    (true, _) => "EMPTY".to_owned(),
                    (_, true) => "floor".to_owned(),
                    _ => String::new(),
                },
            ]);
        }
        table.render()
    }

    fn totals(&self) -> String {
        let (b, a) = (&self.before, &self.after);
        let mut table = Table::new([
            ("", Align::Left),
            ("before", Align::Right),
            ("after", Align::Right),
            ("left", Align::Right),
        ]);
        let plan = &self.plan;
        let selected = text::ratio(plan.zeros_before as u64, plan.total as u64);
        table.row([
            "sparsity, pruned layers".to_owned(),
            text::percent(selected),
            text::percent(plan.sparsity()),
        ]);
        table.row([
            "sparsity, all prunable layers".to_owned(),
            text::percent(b.sparsity),
            text::percent(a.sparsity),
        ]);
        table.row([
            "sparsity, all weights".to_owned(),
            text::percent(b.sparsity_of_all),
            text::percent(a.sparsity_of_all),
        ]);
        let mut line = |what: &str, before: u64, after: Option<u64>, show: fn(u64) -> String| {
            table.row([
                what.to_owned(),
                show(before),
                after.map_or("-".into(), show),
                after.map_or("-".into(), |n| text::percent(text::ratio(n, before))),
            ]);
        };
        let nonzero = |t: &Totals| (t.parameters - t.parameter_zeros) as u64;
        let (bt, at) = (&b.totals, &a.totals);
        line(
            "parameters that are not zero",
            nonzero(bt),
            Some(nonzero(at)),
            text::count,
        );
        line("MACs", bt.sparse_macs, Some(at.sparse_macs), text::count);
        line(
            "bytes of the weights",
            bt.weight_bytes as u64,
            Some(at.weight_bytes as u64),
            text::count,
        );
        line(
            "bytes of the file",
            b.file_bytes.unwrap_or(0),
            a.file_bytes,
            text::count,
        );
        table.render()
    }
}
