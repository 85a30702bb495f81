//! A recipe carried out, and what came of it: as text, as JSON, and in a sidecar beside the output.

use super::calibration::{Show, Shown, tokens};
use super::text::{self, Align, Table};
use super::train::{Effort, checkpoint, fine_tune, line};
use super::{Source, file_bytes, from_recipe, json, write_text};
use anyhow::{Context, Result};
use lacuna::Model;
use lacuna::model::Symbols;
use lacuna_prune::report::{LayerReport, MAC_CONVENTION, ModelReport, Totals, forecast, report};
use lacuna_prune::search::{Round, tidy};
use lacuna_prune::train::{EpochRow, forget};
use lacuna_prune::{LayerError, Plan, PlannedLayer, Pruned, Recipe, SolverName, save};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The sparsity from which magnitude alone is no method for a language model.
const HOPELESS: f64 = 0.35;

const NOTE: &str = "magnitude alone ruins language models at such a sparsity (SmolLM2-135M at 50 %: perplexity 37 -> 430); \
     measure with `prune eval --text`";

/// A recipe and what it is applied to.
pub struct Job<'a> {
    pub recipe: Recipe,
    pub source: &'a Source,
    /// The model to write; nothing is written without.
    pub output: Option<&'a Path>,
    pub emit_recipe: Option<&'a Path>,
    /// How a recipe's training is carried out.
    pub effort: &'a Effort,
    /// Keep what a search leaves on disk.
    pub keep_search: bool,
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    kind: &'static str,
    tool: &'static str,
    input: PathBuf,
    /// SHA-256 of what was pruned.
    input_sha256: Option<String>,
    output: Option<PathBuf>,
    dry_run: bool,
    recipe_sha256: String,
    recipe: Recipe,
    plan: Plan,
    /// What the run was calibrated on, and what its layers lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CalibrationReport>,
    /// Figures of the training, by epoch.
    epochs: Vec<EpochRow>,
    floored: Vec<String>,
    emptied: Vec<String>,
    note: Option<&'static str>,
    mac_convention: &'static str,
    before: State,
    after: State,
    /// The prunable layers afterwards.
    layers: Vec<LayerReport>,
    /// Whether the output was reopened and its zeros equal the plan's.
    verified: bool,
    seconds: Seconds,
}

#[derive(Serialize)]
struct CalibrationReport {
    /// Tokens of the texts.
    tokens: usize,
    /// Bytes of the hidden states of all windows.
    state_bytes: usize,
    /// The mean over layers of the relative error of their outputs, on the windows and on those held out.
    mean_error: Option<f64>,
    mean_held_out_error: Option<f64>,
    errors: Vec<LayerError>,
    /// Rounds of a search for sparsities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rounds: Vec<Round>,
    /// Wall time of the final pruning by phase.
    phase_seconds: BTreeMap<&'static str, f64>,
}

/// Wall time.
#[derive(Serialize)]
struct Seconds {
    open: f64,
    plan: f64,
    write: Option<f64>,
}

/// What a model takes.
#[derive(Serialize)]
pub struct State {
    #[serde(flatten)]
    pub totals: Totals,
    sparsity: f64,
    sparsity_of_all: f64,
    pub file_bytes: Option<u64>,
}

impl State {
    pub fn of(model: &ModelReport, file_bytes: Option<u64>) -> State {
        let totals = model.totals;
        State {
            totals,
            sparsity: totals.sparsity(),
            sparsity_of_all: totals.sparsity_of_all(),
            file_bytes,
        }
    }
}

impl Job<'_> {
    pub fn run(mut self) -> Result<String> {
        let started = Instant::now();
        let model = self.source.open()?;
        let digest = self.source.digest(&model)?;
        self.recipe.model = self.source.checked(self.recipe.model.as_ref(), &digest)?;
        if let Some(path) = self.output {
            self.source.keep(path)?;
        }
        let opened = started.elapsed();

        let input = || self.source.name().display().to_string();
        let model = self.recipe.convert(&model).with_context(input)?;
        let mut calibrated = None;
        let (plan, planned, before, after, epochs) = match (&self.recipe.train, self.output) {
            (None, Some(path)) if self.recipe.calibration.is_some() => {
                let (result, report) = self.calibrate(&model).with_context(input)?;
                self.recipe = result.1;
                calibrated = Some(report);
                let planned = started.elapsed();
                let saved = save(&result.0, path)?;
                let figures = |m| lacuna_prune::report::report(m, &Symbols::new());
                (
                    result.0.plan,
                    planned,
                    figures(&model)?,
                    figures(&saved)?,
                    Vec::new(),
                )
            }
            (None, _) => {
                let prepared = self.recipe.prepare(&model).with_context(input)?;
                let planned = started.elapsed();
                if let Some(path) = self.output {
                    prepared.write(path).with_context(input)?;
                }
                let plan = prepared.plan().clone();
                let (before, after) = forecast(&model, &plan, self.recipe.keep_dense)?;
                (plan, planned, before, after, Vec::new())
            }
            (Some(_), output) => {
                let path = output.context(
                    "a dry run trains nothing; leave the training out to see what is pruned first",
                )?;
                let (pruned, epochs) = fine_tune(&model, &self.recipe, path, self.effort)?;
                let planned = started.elapsed();
                let saved = save(&pruned, path)?;
                let figures = |m| report(m, &Symbols::new());
                (
                    pruned.plan,
                    planned,
                    figures(&model)?,
                    figures(&saved)?,
                    epochs,
                )
            }
        };
        let wrote = started.elapsed();
        let report = Report {
            kind: "prune",
            tool: concat!("prune ", env!("CARGO_PKG_VERSION")),
            input: self.source.name(),
            input_sha256: digest.clone(),
            output: self.output.map(Path::to_owned),
            dry_run: self.output.is_none(),
            recipe_sha256: self.recipe.hash(),
            floored: names(plan.floored()),
            emptied: names(plan.emptied()),
            note: (model.is_language_model()
                && self.recipe.solver == SolverName::Magnitude
                && plan.sparsity() > HOPELESS)
                .then_some(NOTE),
            calibration: calibrated,
            plan,
            epochs,
            recipe: self.recipe.clone(),
            mac_convention: MAC_CONVENTION,
            before: State::of(&before, Some(self.source.bytes()?)),
            after: State::of(&after, self.output.map(file_bytes).transpose()?),
            layers: after.layers,
            verified: self.output.is_some(),
            seconds: Seconds {
                open: opened.as_secs_f64(),
                plan: (planned - opened).as_secs_f64(),
                write: self.output.map(|_| (wrote - planned).as_secs_f64()),
            },
        };
        if let Some(path) = self.emit_recipe {
            self.emit(digest, path)?;
        }
        let document = json(&report)?;
        let sidecar = self.output.map(sidecar);
        if let Some(path) = &sidecar {
            write_text(path, &document)?;
        }
        // Last: until all of it is written, a run that is killed goes on from there.
        if let (Some(_), Some(path)) = (&self.recipe.train, self.output) {
            forget(&checkpoint(path))?;
        }
        let searched = report.calibration.as_ref().map_or(0, |c| c.rounds.len());
        if let (false, 1.., Some(path)) = (self.keep_search, searched, self.output) {
            tidy(&path.with_extension("search"), searched)?;
        }
        match self.json {
            true => Ok(document),
            false => Ok(report.text(sidecar.as_deref())),
        }
    }

    /// Prunes on the texts of the recipe, which then names their tokens.
    fn calibrate(&self, model: &Model) -> Result<((Pruned, Recipe), CalibrationReport)> {
        let mut recipe = self.recipe.clone();
        let settings = recipe.calibration.as_mut().context("no calibration")?;
        let (tokens, digest) = tokens(settings, model)?;
        settings.sha256 = digest;
        let mut rounds = Vec::new();
        if let (Some(_), Some(path)) = (&recipe.search, self.output) {
            let settings = recipe.calibration.as_ref().map_or("", |c| &c.sha256);
            let source = self.source.digest(model)?.unwrap_or_default();
            let work = path.with_extension("search");
            let mut show = Shown::new();
            let origin = format!("{source} {settings}");
            let mut tell = |e| show.tell(e);
            let found = recipe.search(model, &tokens, &origin, &work, &mut tell)?;
            (recipe, rounds) = (found.recipe, found.rounds);
        }
        let mut show = Show::new();
        let done = recipe.calibrate(model, &tokens, &mut |at| show.tell(at))?;
        let mean = |values: Vec<f64>| {
            let n = values.len();
            (n > 0).then(|| values.iter().sum::<f64>() / n as f64)
        };
        let report = CalibrationReport {
            tokens: tokens.len(),
            state_bytes: done.state_bytes,
            mean_error: mean(done.errors.iter().map(|e| e.fitted).collect()),
            mean_held_out_error: mean(done.errors.iter().filter_map(|e| e.held_out).collect()),
            errors: done.errors,
            rounds,
            phase_seconds: done.seconds,
        };
        Ok(((done.pruned, recipe), report))
    }

    /// Writes the recipe, with the places of files from the recipe's folder where they lie below it.
    fn emit(&self, digest: Option<String>, path: &Path) -> Result<()> {
        let mut recipe = self.recipe.clone();
        for text in recipe.calibration.iter_mut().flat_map(|c| &mut c.texts) {
            *text = from_recipe(path, text);
        }
        recipe.model = Some(self.source.placed(path, digest));
        write_text(path, &recipe.to_toml())
    }
}

fn names<'a>(layers: impl Iterator<Item = &'a PlannedLayer>) -> Vec<String> {
    layers.map(|l| l.weight.clone()).collect()
}

/// Where the report of a model lies: `NAME.report.json` beside `NAME.safetensors`.
pub fn sidecar(model: &Path) -> PathBuf {
    let stem = match model.extension() {
        Some(e) if e == "safetensors" => model.file_stem(),
        _ => model.file_name(),
    };
    let mut name = stem.unwrap_or_default().to_owned();
    name.push(".report.json");
    model.with_file_name(name)
}

impl Report {
    fn text(&self, sidecar: Option<&Path>) -> String {
        let mut method = self.plan.allocator.to_owned();
        if self.recipe.solver != SolverName::default() {
            method += &format!(", {}", self.recipe.solver.get().name());
        }
        if let Some(refiner) = self.recipe.refiner.get() {
            method += &format!(", {}", refiner.name());
        }
        if let Some(pattern) = self.plan.pattern {
            method += &format!(", {pattern}");
        }
        let mut out = format!(
            "{method}, {}, recipe sha256 {}\n",
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
        if let Some(c) = &self.calibration
            && let Some(error) = c.mean_error
        {
            out += &format!(
                "error of the layers' outputs, mean: {}",
                text::percent(error)
            );
            if let Some(error) = c.mean_held_out_error {
                out += &format!(", {} on windows held out", text::percent(error));
            }
            out += "\n";
        }
        for row in &self.epochs {
            out += &line(row);
            out += "\n";
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
                if let Some(path) = sidecar {
                    out += &format!("report in {}\n", path.display());
                }
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
