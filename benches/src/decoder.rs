//! The measurement of a language model: prefill and decode apart.

use crate::bench::{ROUNDS, file_bytes, machine};
use crate::layer::{Layer, place_under_limits, set_beside_dense, share_out};
use crate::memory::Resident;
use crate::model::{Facts, Opened};
use crate::runner::ms;
use crate::{Config, Error, Result, Summary, input, median};
use lacuna::plan::Forms;
use lacuna::{Decoder, DecoderOptions, Model, PhaseKind};
use lacuna_targets::{Conditions, Limits, State};
use std::time::{Duration, Instant};

/// What was measured of a language model. Times are milliseconds, sizes bytes.
#[derive(Clone, Debug)]
pub struct DecoderReport {
    /// The model's path as it was given.
    pub model: String,
    /// The model's own name, with what it was made from.
    pub name: String,
    /// Length of that file.
    pub file_bytes: u64,
    /// Parameters and non-zeros.
    pub facts: Facts,
    /// Weights that are stored sparse or were encoded so on the fly.
    pub sparse_weights: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated, each after those before it.
    pub generate: usize,
    /// Tokens in the cache before the prompt, and before the generation.
    pub depth: usize,
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
    /// Planning.
    pub plan_ms: f64,
    /// The first prompt.
    pub first_ms: f64,
    /// The whole prompt.
    pub prefill: Summary,
    /// One generated token: the mean of each repetition.
    pub decode: Summary,
    /// Memory of the process with this one decoder, after it ran.
    pub resident: Option<Resident>,
    /// Bytes of activations.
    pub arena_bytes: usize,
    /// Bytes of keys and values.
    pub cache_bytes: usize,
    /// Bytes of repacked weights.
    pub packed_bytes: usize,
    /// Bytes of weights executed from the file.
    pub mapped_bytes: usize,
    /// Bytes of weights that one generated token reads.
    pub token_bytes: usize,
    /// The dense decoder that took turns with this one.
    pub beside: Option<Beside>,
    /// What the machine did meanwhile.
    pub conditions: Conditions,
    /// The machine's limits that layers are held against.
    pub limits: Option<Limits>,
    /// Every step of the plan for one token, then every step of the plan for a chunk.
    pub layers: [Vec<Layer>; 2],
}

/// The same model with every weight dense.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The whole prompt.
    pub prefill: Summary,
    /// One generated token.
    pub decode: Summary,
    /// How many times faster the sparse prefill is: the median over turns.
    pub prefill_speedup: f64,
    /// How many times faster the sparse decode is: the median over turns.
    pub decode_speedup: f64,
}

impl DecoderReport {
    /// Prompt tokens a second.
    pub fn prefill_tps(&self) -> f64 {
        self.prompt as f64 / (self.prefill.p50 * 1e-3)
    }

    /// Generated tokens a second.
    pub fn decode_tps(&self) -> f64 {
        1e3 / self.decode.p50
    }

    /// Bytes of weights that decoding reads a second, in 10⁹.
    pub fn decode_gbs(&self) -> f64 {
        self.token_bytes as f64 / (self.decode.p50 * 1e-3) * 1e-9
    }
}

/// A decoder, what it is fed, and its times.
pub(crate) struct Runner {
    pub decoder: Decoder,
    /// Tokens in the cache before what is measured.
    depth: usize,
    prompt: Vec<u32>,
    next: Vec<u32>,
    pub prefill: Vec<f64>,
    pub decode: Vec<f64>,
    /// Times of each step of the plan for one token, and for a chunk.
    pub steps: [Vec<Vec<f64>>; 2],
}

impl Runner {
    pub fn new(model: &Model, config: &Config, forms: Forms) -> Result<Runner> {
        let mut decoder = Decoder::new(
            model,
            DecoderOptions {
                threads: config.threads,
                isa: config.isa.clone(),
                dense: config.dense,
                forms,
                tuned: config.tuned.clone(),
                costs: config.costs.clone(),
                round_inputs: config.round_inputs,
                capacity: config.depth + config.prompt.max(config.generate).max(1),
                chunk: config.prompt.clamp(1, 512),
                ..DecoderOptions::default()
            },
        )?;
        let ids = |len: usize, seed: u64| -> Vec<u32> {
            let ids = input::indices(len, decoder.vocabulary(), seed);
            ids.into_iter().map(|i| i as u32).collect()
        };
        let (prompt, next) = (ids(config.prompt, 3), ids(config.generate, 4));
        let before = ids(config.depth, 5);
        if !before.is_empty() {
            decoder.prefill(&before)?;
        }
        Ok(Runner {
            decoder,
            depth: config.depth,
            prompt,
            next,
            prefill: Vec::new(),
            decode: Vec::new(),
            steps: [Vec::new(), Vec::new()],
        })
    }

    /// One prompt and one generation, each after the tokens before them: their times in milliseconds, a
    /// token of the generation for the latter.
    pub fn once(&mut self) -> Result<(f64, f64)> {
        self.decoder.truncate(self.depth);
        let start = Instant::now();
        self.decoder.prefill(&self.prompt)?;
        let prefill = ms(start.elapsed());
        self.decoder.truncate(self.depth);
        let start = Instant::now();
        for &token in &self.next {
            self.decoder.step(token)?;
        }
        Ok((prefill, ms(start.elapsed()) / self.next.len() as f64))
    }

    pub fn burst(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let (prefill, decode) = self.once()?;
            self.prefill.push(prefill);
            self.decode.push(decode);
            if begin.elapsed() >= time {
                return Ok(());
            }
        }
    }

    /// A generation and a chunk with the time of each step.
    pub fn by_step(&mut self) -> Result<()> {
        self.decoder.truncate(self.depth);
        let tokens: Vec<&[u32]> = self.next.chunks(1).collect();
        let chunk = &self.prompt[..self.prompt.len().min(self.decoder.chunk())];
        for (kind, part) in tokens.into_iter().map(|t| (0, t)).chain([(1, chunk)]) {
            if kind == 1 {
                self.decoder.truncate(self.depth);
            }
            let (steps, times) = self.decoder.run_timed(part)?;
            let kept = &mut self.steps[kind];
            kept.resize(steps.len(), Vec::new());
            for (kept, time) in kept.iter_mut().zip(times) {
                kept.push(ms(time));
            }
        }
        Ok(())
    }

    fn layers(&self) -> [Vec<Layer>; 2] {
        let list = |kind: PhaseKind, times: &[Vec<f64>]| {
            let steps = self.decoder.steps(kind);
            let mut layers: Vec<Layer> = steps
                .iter()
                .zip(times)
                .map(|(step, times)| Layer::of(step, median(times).unwrap_or(0.0)))
                .collect();
            share_out(&mut layers);
            layers
        };
        [
            list(PhaseKind::Step, &self.steps[0]),
            list(PhaseKind::Chunk, &self.steps[1]),
        ]
    }

    fn summary(&self) -> Result<[Summary; 2]> {
        let of = |times: &[f64]| {
            Summary::of(times).ok_or_else(|| Error::Option("no run was timed".into()))
        };
        Ok([of(&self.prefill)?, of(&self.decode)?])
    }
}

/// Measures a language model as [`run`](crate::run) measures others.
pub(crate) fn run(
    config: &Config,
    opened: Opened,
    before: State,
    progress: &mut dyn FnMut(&str),
) -> Result<DecoderReport> {
    if config.prompt < 2 || config.generate == 0 {
        return Err(Error::Option(format!(
            "{} prompt tokens and {} generated ones; at least 2 and 1",
            config.prompt, config.generate
        )));
    }
    if config.batch != 1 {
        return Err(Error::Option(format!(
            "batch {}: a decoder runs one sequence",
            config.batch
        )));
    }
    let model = match config.dense {
        true => opened.model.decoded(),
        false => opened.model,
    };
    let sparse_weights = model.weights().values().filter(|w| w.is_sparse()).count();
    progress("plan");
    let mut runner = Runner::new(&model, config, Forms::new())?;
    let plan_ms = ms(runner.decoder.plan_time());
    progress("first run");
    let first_ms = runner.once()?.0;
    let rounds = if config.layers { ROUNDS } else { 1 };
    progress("steady runs");
    runner.burst(config.min_time / rounds)?;
    let resident = Resident::now();

    let mut dense = None;
    if config.layers && sparse_weights > 0 {
        progress("plan dense");
        let mut other = Runner::new(&model.decoded(), config, Forms::new())?;
        other.once()?;
        dense = Some(other);
    }
    let mut turns: [Vec<f64>; 2] = Default::default();
    if config.layers {
        (runner.prefill, runner.decode) = (Vec::new(), Vec::new());
        for turn in 1..=ROUNDS {
            progress(&format!("turn {turn} of {ROUNDS}"));
            let mut last = Vec::new();
            for runner in [Some(&mut runner), dense.as_mut()].into_iter().flatten() {
                let from = runner.prefill.len();
                runner.burst(config.min_time / ROUNDS)?;
                runner.by_step()?;
                last.push([
                    median(&runner.prefill[from..]),
                    median(&runner.decode[from..]),
                ]);
            }
            if let [ours, beside] = last[..] {
                for (i, turns) in turns.iter_mut().enumerate() {
                    turns.extend(beside[i].zip(ours[i]).map(|(b, o)| b / o));
                }
            }
        }
    }
    let mut layers = [Vec::new(), Vec::new()];
    let mut limits = None;
    let threads = runner.decoder.threads();
    let conditions = Conditions::since(before, threads);
    if config.layers {
        layers = runner.layers();
        progress("limits of this machine");
        let profile = machine(config.profile.as_ref(), threads)?;
        let beside = dense.as_ref().map(Runner::layers);
        for (i, layers) in layers.iter_mut().enumerate() {
            if let Some(beside) = &beside {
                set_beside_dense(layers, &beside[i]);
            }
            place_under_limits(layers, &profile, threads);
        }
        limits = profile.limits_for(threads);
    }
    let [prefill, decode] = runner.summary()?;
    let beside = match &dense {
        Some(dense) => {
            let [prefill, decode] = dense.summary()?;
            Some(Beside {
                prefill,
                decode,
                prefill_speedup: median(&turns[0]).unwrap_or(f64::NAN),
                decode_speedup: median(&turns[1]).unwrap_or(f64::NAN),
            })
        }
        None => None,
    };
    let memory = runner.decoder.memory();
    let step = runner.decoder.steps(PhaseKind::Step);
    Ok(DecoderReport {
        model: config.name(),
        name: model.graph().name.clone(),
        file_bytes: file_bytes(&config.path)?,
        facts: Facts::of(&model),
        sparse_weights,
        prompt: config.prompt,
        generate: config.generate,
        depth: config.depth,
        threads,
        isa: runner.decoder.isa().to_owned(),
        dense: config.dense,
        load_ms: ms(opened.load),
        encode_ms: ms(opened.encode),
        plan_ms,
        first_ms,
        prefill,
        decode,
        resident,
        arena_bytes: memory.arena,
        cache_bytes: memory.cache,
        packed_bytes: memory.packed,
        mapped_bytes: memory.mapped,
        token_bytes: step.iter().map(|s| s.weight_bytes).sum(),
        beside,
        conditions,
        limits,
        layers,
    })
}
