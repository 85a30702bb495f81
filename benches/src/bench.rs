//! The whole measurement of one model.

use crate::decoder::{self, DecoderReport};
use crate::layer::{Layer, place_under_limits, set_beside_dense};
use crate::memory::Resident;
use crate::model::{Facts, Opened, open};
use crate::runner::{Runner, ms};
use crate::{Error, Result, Summary, median};
use lacuna::model::{Dim, Graph, Node, Op, Symbols};
use lacuna::plan::{Costs, Forms, PackReport, Tuned};
use lacuna::{DType, Model, Session, SessionOptions};
use lacuna_targets::{Conditions, Limits, Profile, State};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Sparse and dense take turns this often.
pub(crate) const ROUNDS: u32 = 10;

/// How long a quick measurement of the machine may take.
const QUICK: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model: a Lacuna file, or anything that the converters open.
    pub path: PathBuf,
    /// The model's name in reports; `None` takes the path.
    pub shown_as: Option<String>,
    /// Threads of a run; 0 takes every core.
    pub threads: usize,
    /// The instruction set; `None` takes the best one here.
    pub isa: Option<String>,
    /// Run every weight dense, and nothing else.
    pub dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are; `None` where a
    /// decoder or session does by itself.
    pub round_inputs: Option<bool>,
    /// The first dimension of the inputs, where it is symbolic or the format lets it be replaced.
    pub batch: usize,
    /// Untimed runs before the timed ones; the first run comes before them.
    pub warmup: usize,
    /// Steady runs last at least this long, for each of the things that are measured.
    pub min_time: Duration,
    /// Measure every layer, the same layer dense, and the limits of the machine.
    pub layers: bool,
    /// Limits of this machine; `None` measures them quickly when layers are measured.
    pub profile: Option<Profile>,
    /// Choices that were measured before.
    pub tuned: Option<Tuned>,
    /// Constants of the plan's estimate; [`costs`] takes them from a profile.
    pub costs: Costs,
    /// A directory where packed weights are kept.
    pub pack_cache: Option<PathBuf>,
    /// Of a language model: tokens of the prompt.
    pub prompt: usize,
    /// Of a language model: tokens generated after it.
    pub generate: usize,
    /// Of a language model: tokens in the cache before either.
    pub depth: usize,
}

impl Config {
    /// The model's name in reports.
    pub(crate) fn name(&self) -> String {
        let path = || self.path.display().to_string();
        self.shown_as.clone().unwrap_or_else(path)
    }
}

/// Tokens of the inputs of an encoder.
const TOKENS: usize = 128;

/// What was measured. Times are milliseconds, sizes bytes.
#[derive(Clone, Debug)]
pub struct Report {
    /// The model's path as it was given.
    pub model: String,
    /// Length of that file.
    pub file_bytes: u64,
    /// Parameters and non-zeros.
    pub facts: Facts,
    /// Weights that are stored sparse or were encoded so on the fly.
    pub sparse_weights: usize,
    /// Names and shapes of the inputs.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// Names and shapes of the outputs.
    pub outputs: Vec<(String, Vec<usize>)>,
    /// Batch size.
    pub batch: usize,
    /// Threads of a run.
    pub threads: usize,
    /// The instruction set that ran.
    pub isa: String,
    /// Whether every weight ran dense.
    pub dense: bool,
    /// Reading and converting the file.
    pub load_ms: f64,
    /// Encoding weights with zeros on the fly; 0 for a file that is sparse already.
    pub encode_ms: f64,
    /// Planning and packing.
    pub plan_ms: f64,
    /// Packing alone.
    pub pack_ms: f64,
    /// What the pack cache brought, where one is named.
    pub packs: Option<PackReport>,
    /// The first run.
    pub first_ms: f64,
    /// Steady runs.
    pub steady: Summary,
    /// Memory of the process with this one session, after steady runs.
    pub resident: Option<Resident>,
    /// Bytes of activations and scratch in the session.
    pub arena_bytes: usize,
    /// Bytes of activations alone, and the least that any layout takes.
    pub activations: (usize, usize),
    /// Bytes of repacked weights.
    pub packed_bytes: usize,
    /// Bytes of weights executed from the file.
    pub mapped_bytes: usize,
    /// Steady runs of the dense session that took turns with this one.
    pub dense_steady: Option<Summary>,
    /// How many times faster than dense: the median over turns.
    pub speedup: Option<f64>,
    /// What the machine did meanwhile.
    pub conditions: Conditions,
    /// The machine's limits that layers are held against.
    pub limits: Option<Limits>,
    /// Every step of the plan, in order; empty when not asked for.
    pub layers: Vec<Layer>,
}

/// What was measured, by the kind of model.
#[derive(Clone, Debug)]
pub enum Measured {
    /// A model that runs as a whole.
    Whole(Box<Report>),
    /// A model that generates text.
    Decoder(Box<DecoderReport>),
}

/// Measures a model. `progress` is told what happens now.
///
/// Memory is read before anything but the model's own session exists. The dense session then
/// takes turns with it, so that both see the same machine.
///
/// # Errors
/// When the model cannot be opened, planned or run, or an option does not fit it.
pub fn run(config: &Config, mut progress: impl FnMut(&str)) -> Result<Measured> {
    let before = State::now();
    progress("load");
    let opened = open(&config.path, config.batch, !config.dense)?;
    Ok(match is_decoder(&opened.model) {
        true => Measured::Decoder(Box::new(decoder::run(
            config,
            opened,
            before,
            &mut progress,
        )?)),
        false => Measured::Whole(Box::new(whole(config, opened, before, &mut progress)?)),
    })
}

/// Whether a model generates text.
pub(crate) fn is_decoder(model: &Model) -> bool {
    let keeps = |n: &Node| matches!(n.op, Op::Attention { cache: true, .. });
    model.graph().nodes.iter().any(keeps)
}

fn whole(
    config: &Config,
    opened: Opened,
    before: State,
    progress: &mut dyn FnMut(&str),
) -> Result<Report> {
    let sparse_weights = opened.model.weights().values().filter(|w| w.is_sparse());
    let sparse_weights = sparse_weights.count();
    let facts = Facts::of(&opened.model);
    let (load_ms, encode_ms) = (ms(opened.load), ms(opened.encode));

    progress("plan and pack");
    let (mut runner, plan_ms) = session(&opened.model, config, config.dense)?;
    drop(opened);
    progress("first run");
    let first_ms = runner.warm_up(1)?.first().map_or(0.0, |t| ms(*t));
    runner.warm_up(config.warmup)?;

    // Without a sparse weight the two plans are one.
    let compare = config.layers && !config.dense && sparse_weights > 0;
    let turns = if config.layers { ROUNDS } else { 1 };
    progress("steady runs");
    runner.burst(config.min_time / turns)?;
    let resident = Resident::now();

    let mut dense = None;
    if compare {
        progress("plan dense");
        let opened = open(&config.path, config.batch, false)?;
        let (mut other, _) = session(&opened.model, config, true)?;
        other.warm_up(1 + config.warmup)?;
        dense = Some(other);
    }
    if config.layers {
        // That burst had the machine to itself; only turns compare.
        runner.forget();
        for turn in 1..=ROUNDS {
            progress(&format!("turn {turn} of {ROUNDS}"));
            for runner in [Some(&mut runner), dense.as_mut()].into_iter().flatten() {
                // One run brings its own weights back into the caches.
                runner.warm_up(1)?;
                runner.burst(config.min_time / ROUNDS)?;
                runner.burst_by_step(config.min_time / ROUNDS)?;
            }
        }
    }

    let threads = runner.session.threads();
    let conditions = Conditions::since(before, threads);
    let mut layers = Vec::new();
    let mut limits = None;
    if config.layers {
        layers = runner.layers();
        if let Some(dense) = &dense {
            set_beside_dense(&mut layers, &dense.layers());
        }
        progress("limits of this machine");
        let profile = machine(config.profile.as_ref(), threads)?;
        place_under_limits(&mut layers, &profile, threads);
        limits = profile.limits_for(threads);
    }
    let pairs: Option<Vec<f64>> = dense.as_ref().map(|dense| {
        let turns = dense.bursts.iter().zip(&runner.bursts);
        turns.map(|(dense, sparse)| dense / sparse).collect()
    });
    let nothing = || Error::Option("no run was timed".into());
    let memory = runner.session.memory();
    Ok(Report {
        model: config.name(),
        file_bytes: file_bytes(&config.path)?,
        facts,
        sparse_weights,
        inputs: runner.session.inputs().to_vec(),
        outputs: runner.session.outputs().to_vec(),
        batch: config.batch,
        threads,
        isa: runner.session.isa().to_owned(),
        dense: config.dense,
        load_ms,
        encode_ms,
        plan_ms,
        pack_ms: ms(runner.session.pack_time()),
        packs: (config.pack_cache.is_some()).then(|| runner.session.packs().clone()),
        first_ms,
        steady: Summary::of(&runner.times).ok_or_else(nothing)?,
        resident,
        arena_bytes: memory.arena,
        activations: (memory.activations, memory.activations_bound),
        packed_bytes: memory.packed,
        mapped_bytes: memory.mapped,
        dense_steady: dense.as_ref().and_then(|d| Summary::of(&d.times)),
        speedup: pairs.and_then(|p| median(&p)),
        conditions,
        limits,
        layers,
    })
}

/// A runner over a new session, and the milliseconds that planning took.
fn session(model: &Model, config: &Config, dense: bool) -> Result<(Runner, f64)> {
    session_with(model, config, dense, Forms::new())
}

/// The same with forms by the names of weights.
pub(crate) fn session_with(
    model: &Model,
    config: &Config,
    dense: bool,
    forms: Forms,
) -> Result<(Runner, f64)> {
    let options = SessionOptions {
        threads: config.threads,
        isa: config.isa.clone(),
        dense,
        round_inputs: config.round_inputs.unwrap_or(false),
        symbols: symbols(model.graph(), config.batch)?,
        forms,
        tuned: config.tuned.clone(),
        costs: config.costs.clone(),
        pack_cache: config.pack_cache.clone(),
        ..SessionOptions::default()
    };
    let start = std::time::Instant::now();
    let session = Session::new(model, options)?;
    let plan_ms = ms(start.elapsed());
    Ok((Runner::new(session), plan_ms))
}

/// The batch bound to the symbols that stand first in an input's shape.
fn symbols(graph: &Graph, batch: usize) -> Result<Symbols> {
    let mut symbols = Symbols::new();
    for input in &graph.inputs {
        match input.shape.first() {
            Some(Dim::Symbol(name)) => {
                symbols.insert(name.clone(), batch);
                // Token ids and masks: a sentence of some length.
                if let (DType::I64, [_, Dim::Symbol(tokens)]) = (input.dtype, &input.shape[..]) {
                    symbols.insert(tokens.clone(), TOKENS);
                }
            }
            Some(Dim::Fixed(n)) if batch != 1 && *n != batch => {
                return Err(Error::Option(format!(
                    "batch {batch}: the first dimension of input `{}` is fixed at {n} in the model",
                    input.name
                )));
            }
            _ => {}
        }
    }
    Ok(symbols)
}

/// The constants of the plan's estimate on a profile's machine: its own, the runtime's where it has none.
///
/// # Errors
/// When the runtime does not know a name; the error names the profile.
pub fn costs(profile: &Profile) -> Result<Costs> {
    let mut costs = Costs::default();
    for (name, value) in &profile.costs {
        costs
            .set(name, *value)
            .map_err(|e| Error::Option(format!("profile `{}`: {e}", profile.name)))?;
    }
    Ok(costs)
}

/// Measures a machine with each number of threads, `time` each, and sets the constants of bytes from memory in its profile.
///
/// # Errors
/// When it cannot be measured.
pub fn measure(
    profile: &mut Profile,
    time: Duration,
    threads: &[usize],
    mut progress: impl FnMut(&str),
) -> Result<()> {
    for &threads in threads {
        progress(&format!("limits of this machine, {threads} thread(s)"));
        profile.measure(time, threads)?;
    }
    if let Some(limits) = profile.limits_for(1) {
        let costs = Costs::default().with_balance(limits.fma_gflops / limits.dram_gbs);
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        for (name, value) in [
            ("mapped", costs.mapped),
            ("packed", costs.packed),
            ("reread", costs.reread),
        ] {
            profile.costs.insert(name.into(), rounded(value));
        }
    }
    Ok(())
}

/// The profile to hold layers against: the one given, or this machine, measured quickly.
pub(crate) fn machine(given: Option<&Profile>, threads: usize) -> Result<Profile> {
    match given {
        Some(profile) if profile.limits.is_empty() => Err(Error::Option(format!(
            "profile `{}` has no measured limits",
            profile.name
        ))),
        Some(profile) => Ok(profile.clone()),
        None => {
            let mut here = Profile::detect();
            here.measure(QUICK, threads)?;
            Ok(here)
        }
    }
}

pub(crate) fn file_bytes(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(|source| lacuna::Error::Io {
        path: path.to_owned(),
        action: "look at",
        source,
    })?;
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna::model::Input;

    fn graph(first: Dim) -> Graph {
        Graph {
            inputs: vec![Input::f32("x", vec![first, Dim::Fixed(3)])],
            ..Graph::default()
        }
    }

    #[test]
    fn a_symbolic_batch_is_bound_and_a_fixed_one_is_refused() {
        let symbolic = graph(Dim::Symbol("N".into()));
        assert_eq!(symbols(&symbolic, 8).unwrap()["N"], 8);
        let fixed = graph(Dim::Fixed(1));
        assert!(symbols(&fixed, 1).unwrap().is_empty());
        let error = symbols(&fixed, 8).unwrap_err().to_string();
        assert!(
            error.contains("batch 8") && error.contains("`x`") && error.contains("at 1"),
            "{error}"
        );
    }

    #[test]
    fn a_measured_profile_has_costs_that_the_plan_takes() {
        let mut here = Profile::detect();
        assert_eq!(costs(&here).unwrap(), Costs::default());
        measure(&mut here, Duration::from_millis(20), &[1], |_| {}).unwrap();
        let limits = here.limits_for(1).unwrap();
        let expected = Costs::default().with_balance(limits.fma_gflops / limits.dram_gbs);
        let found = costs(&here).unwrap();
        assert!((found.packed - expected.packed).abs() < 1e-4);
        assert_eq!(found.load, Costs::default().load);
        here.name = "odd".into();
        here.costs.insert("lode".into(), 1.0);
        let error = costs(&here).unwrap_err().to_string();
        for part in ["`odd`", "`lode`", "load, far_load"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_profile_without_limits_is_refused_by_name() {
        let mut bare = Profile::detect();
        bare.name = "bare".into();
        let error = machine(Some(&bare), 1).unwrap_err().to_string();
        assert!(error.contains("`bare`"), "{error}");
    }
}
