//! The text that a method learns from: flags, tokens, progress.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use lacuna::{Model, Tokenizer};
use lacuna_prune::search::{Event, SearchSettings};
use lacuna_prune::{AllocatorName, Calibration, Prefix, Progress, Recipe, RefinerName};
use sha2::{Digest, Sha256};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The text that a method learns from, and how.
#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub struct TextFlags {
    /// A UTF-8 text to learn from, or tokens (little-endian u32, *.tokens); may be repeated. Not one to measure on
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    calibration_text: Vec<PathBuf>,
    /// Windows of the text, drawn without overlap [default: 128; 64 for heads and neurons]
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Tokens of a window
    #[arg(long, value_name = "T", default_value_t = 512)]
    window: usize,
    /// Further windows on which the error of each layer or module is measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    held_out: usize,
    /// Added to the diagonal of the second moments, as a share of its mean
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    damping: f64,
}

impl TextFlags {
    /// A calibration on `windows` windows where no flag says how many.
    pub fn calibration(&self, windows: usize, seed: u64) -> Calibration {
        Calibration {
            texts: self.calibration_text.clone(),
            windows: self.windows.unwrap_or(windows),
            window: self.window,
            seed,
            damping: self.damping,
            held_out: self.held_out,
            ..Calibration::default()
        }
    }
}

/// What a method learns from, and what it does with it.
#[derive(Args)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationFlags {
    #[command(flatten)]
    learn: TextFlags,
    /// Which model the inputs of a block come from
    #[arg(long, value_enum, default_value_t = PrefixName::Pruned)]
    prefix: PrefixName,
    /// How sparse each layer gets
    #[arg(long, value_enum, default_value_t = LayerShares::Uniform)]
    allocator: LayerShares,
    /// What happens to a layer afterwards
    #[arg(long, value_enum, default_value_t = Refine::None)]
    refine: Refine,
    #[command(flatten)]
    pub search: SearchFlags,
}

/// How levels are looked for.
#[derive(Args)]
#[command(next_help_heading = "Search")]
pub struct SearchFlags {
    /// Search in minutes, to see that it works
    #[arg(long)]
    quick: bool,
    /// Rounds, each with half the interval of the one before
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Generations of a round
    #[arg(long, value_name = "N")]
    generations: Option<usize>,
    /// Candidates of a generation
    #[arg(long, value_name = "N")]
    offspring: Option<usize>,
    /// Windows of the text that candidates are compared on, others than those that the model is pruned on
    #[arg(long, value_name = "N")]
    search_windows: Option<usize>,
    /// Draw all candidates at random, none by what earlier ones taught
    #[arg(long)]
    no_surrogate: bool,
    /// Keep the supernet and the teacher's answers when done
    #[arg(long)]
    pub keep_search: bool,
}

impl SearchFlags {
    /// The preset with what the flags say; of `sparsities` or of widths.
    pub fn settings(&self, sparsities: bool) -> SearchSettings {
        let mut search = match self.quick {
            true => SearchSettings::quick(),
            false => SearchSettings::hour(),
        };
        if sparsities {
            search = search.sparsities();
        }
        let e = &mut search.evolution;
        for (field, given) in [
            (&mut e.generations, self.generations),
            (&mut e.offspring, self.offspring),
            (&mut search.rounds, self.rounds),
            (&mut search.windows, self.search_windows),
        ] {
            *field = given.unwrap_or(*field);
        }
        search.evolution.surrogate &= !self.no_surrogate;
        search
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum PrefixName {
    /// The blocks before as they were
    Dense,
    /// The blocks before as they are now
    Pruned,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LayerShares {
    /// All the same
    Uniform,
    /// Blocks with more outliers stay denser
    Owl,
    /// By shapes alone
    Erk,
    /// What a search finds that keeps the model's answers; beside the output NAME.search holds it, and the same command
    /// goes on from there
    Search,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Refine {
    /// Nothing
    None,
    /// Zeros and weights of a row change places while that lowers the error
    SparseSwaps,
    /// Least squares on the weights that are left
    Refit,
    /// The one, then the other
    SparseSwapsRefit,
}

impl CalibrationFlags {
    /// `recipe` with what the flags say.
    pub fn complete(&self, recipe: Recipe, seed: u64) -> Recipe {
        let calibration = (!self.learn.calibration_text.is_empty()).then(|| Calibration {
            prefix: match self.prefix {
                PrefixName::Dense => Prefix::Dense,
                PrefixName::Pruned => Prefix::Pruned,
            },
            ..self.learn.calibration(128, seed)
        });
        Recipe {
            calibration,
            allocator: match self.allocator {
                LayerShares::Uniform => AllocatorName::Uniform,
                LayerShares::Owl => AllocatorName::Owl,
                LayerShares::Erk => AllocatorName::Erk,
                LayerShares::Search => AllocatorName::Search,
            },
            search: (self.allocator == LayerShares::Search).then(|| self.search.settings(true)),
            refiner: match self.refine {
                Refine::None => RefinerName::None,
                Refine::SparseSwaps => RefinerName::SparseSwaps,
                Refine::Refit => RefinerName::Refit,
                Refine::SparseSwapsRefit => RefinerName::SparseSwapsRefit,
            },
            ..recipe
        }
    }
}

/// The tokens of a calibration's texts, and their SHA-256.
pub fn tokens(calibration: &Calibration, model: &Model) -> Result<(Vec<u32>, String)> {
    let mut all = Vec::new();
    let mut tokenizer = None;
    for path in &calibration.texts {
        let named = || format!("{}: cannot read the text", path.display());
        if path.extension().is_some_and(|e| e == "tokens") {
            all.extend(read_tokens(path)?);
            continue;
        }
        let text = std::fs::read_to_string(path).with_context(named)?;
        let tokenizer = match &mut tokenizer {
            Some(tokenizer) => tokenizer,
            None => tokenizer.insert(Tokenizer::new(model)?),
        };
        // With nothing before it: windows start anywhere in it.
        all.extend(tokenizer.encode(&text, false)?);
    }
    let mut digest = Sha256::new();
    for token in &all {
        digest.update(token.to_le_bytes());
    }
    let digest: String = digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if !calibration.sha256.is_empty() && calibration.sha256 != digest {
        bail!(
            "the SHA-256 of the calibration's tokens is {digest}, the recipe was made for {}",
            calibration.sha256
        );
    }
    Ok((all, digest))
}

fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("{}: cannot read the tokens", path.display()))?;
    let (tokens, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        bail!(
            "{}: {} bytes are no whole number of u32 tokens",
            path.display(),
            bytes.len()
        );
    }
    Ok(tokens.iter().map(|t| u32::from_le_bytes(*t)).collect())
}

/// Shows blocks and the time left on stderr: a bar on a terminal, else a line now and then.
pub struct Show {
    bar: Option<ProgressBar>,
    phase: Phase,
    said: Option<Instant>,
}

/// What is shown now.
struct Phase {
    name: &'static str,
    began: Instant,
    /// How many were done when it began, and last.
    first: usize,
    done: usize,
}

impl Show {
    pub fn new() -> Show {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {eta} left");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Show {
            bar,
            phase: Phase {
                name: "",
                began: Instant::now(),
                first: 0,
                done: 0,
            },
            said: None,
        }
    }

    pub fn tell(&mut self, at: Progress) {
        // A search goes through the blocks again and again.
        if self.phase.name != at.phase || at.done < self.phase.done {
            self.phase = Phase {
                name: at.phase,
                began: Instant::now(),
                first: at.done,
                done: at.done,
            };
            self.bar.iter().for_each(ProgressBar::reset_eta);
        }
        self.phase.done = at.done;
        if let Some(bar) = &self.bar {
            bar.set_message(at.phase);
            bar.set_length(at.all as u64);
            bar.set_position(at.done as u64);
            if at.done == at.all {
                bar.finish_and_clear();
            }
        } else if self
            .said
            .is_none_or(|t| t.elapsed() > Duration::from_secs(10))
        {
            self.said = Some(Instant::now());
            let spent = self.phase.began.elapsed().as_secs_f64();
            let left = match at.done - self.phase.first {
                0 => String::new(),
                ran => format!(
                    ", {:.0} s left",
                    spent / ran as f64 * (at.all - at.done) as f64
                ),
            };
            eprintln!("{} {}/{}{left}", at.phase, at.done, at.all);
        }
    }
}

/// Shows on stderr how far a run is.
pub struct Shown {
    show: Show,
    /// Generations that were done before this run's first of a round, and when it began.
    first: Option<(usize, Instant)>,
}

impl Shown {
    pub fn new() -> Shown {
        Shown {
            show: Show::new(),
            first: None,
        }
    }

    pub fn tell(&mut self, event: Event) {
        match event {
            Event::Progress(at) => self.show.tell(at),
            Event::Supernet { round, bytes } => {
                self.first = None;
                eprintln!("round {round}: a supernet of {:.1} MB", bytes as f64 / 1e6);
            }
            Event::Generation {
                round: [round, rounds],
                generation: [done, all],
                best,
            } => {
                let (from, first) = *self.first.get_or_insert_with(|| (done, Instant::now()));
                let (ran, since) = (done - from, first.elapsed().as_secs_f64());
                let best = best.map_or(String::new(), |b| format!(", divergence {b:.4}"));
                let left = match ran {
                    0 => String::new(),
                    n => format!(
                        ", {:.0} s left in the round",
                        since / n as f64 * (all - done) as f64
                    ),
                };
                eprintln!("round {round}/{rounds}, generation {done}/{all}{best}{left}");
            }
        }
    }
}
