//! Whole heads and neurons of a decoder go, and what stays makes up for them: Týr-the-Pruner (arXiv 2503.09657) and
//! simpler methods on the same engine.
//!
//! An attention loses query heads and an MLP neurons: inputs of the matrix that reads them (`local`). `supernet` has every
//! module at several widths, `search` looks for the widths that keep the model's answers (`evaluate`) at a number of
//! parameters, and `compact` makes the smaller model.

mod compact;
mod evaluate;
mod files;
mod local;
mod loss;
mod modules;
mod plan;
mod search;
mod settings;
mod spread;
mod supernet;
mod surrogate;

pub use local::{Local, Score, Step};
pub use modules::{HeadMode, Kind};
pub use search::Evolution;
pub use settings::{SearchSettings, Stage, Structured};
pub use spread::Spread;
pub use supernet::Accumulation;

use crate::calibration::{Calibration, windows};
use crate::{Error, LayerError, Progress, Result};
use evaluate::{Judge, Levels};
use lacuna::Model;
use plan::Budget;
use search::Search;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;
use supernet::{Net, Rung};

/// A pruned model and how it came about.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model.
    pub model: Model,
    /// The same with the shapes of the model before: zeros where what went was read. It computes the same.
    pub masked: Model,
    /// What replays it: the settings with the widths that were found, without a search.
    pub settings: Structured,
    /// Parameters of all attentions and MLPs that could go, before and after, and what the sparsity asks for.
    pub parameters: [usize; 3],
    /// What the outputs of each attention and MLP lost.
    pub errors: Vec<LayerError>,
    /// What was left of each module.
    pub modules: Vec<Width>,
    /// Rounds of the search.
    pub rounds: Vec<Round>,
}

/// What is left of an attention or an MLP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Width {
    /// The weight that reads it.
    pub weight: String,
    /// What it is.
    pub kind: Kind,
    /// Heads or neurons that it had.
    pub units: usize,
    /// Those that are left.
    pub kept: Vec<usize>,
}

/// A round of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Bytes of its supernet.
    pub supernet_bytes: u64,
    /// The divergence of the best at the end of each generation, in nats a token, each on windows of its own.
    pub history: Vec<f64>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub enum Event {
    /// A part of the work.
    Progress(Progress),
    /// A supernet is about to take so many bytes.
    Supernet {
        /// The round, from 1.
        round: usize,
        /// Bytes on disk.
        bytes: u64,
    },
    /// A generation begins, or the last is done.
    Generation {
        /// The round, from 1, and of how many.
        round: [usize; 2],
        /// Generations that are done, and of how many.
        generation: [usize; 2],
        /// The divergence of the best so far.
        best: Option<f64>,
    },
}

impl Structured {
    /// Prunes `model` on windows of `tokens`. A search keeps its supernets, its state and its log in `work`, and goes on
    /// from what is there; `origin` names model and text.
    ///
    /// # Errors
    /// When the settings are no sparsity or search, the text is too short, the model is no decoder with heads or neurons
    /// that can go, the sparsity cannot be met, second moments are singular, or a file cannot be written.
    pub fn run(
        &self,
        model: &Model,
        tokens: &[u32],
        origin: &str,
        work: &Path,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::Sparsity(self.sparsity));
        }
        let (calibration, origin) = (&self.calibration, origin.to_owned());
        let net = Net::new(model, self.heads, calibration, tokens, origin)?;
        let budget = Budget::new(&net, self.sparsity);
        let mut rounds = Vec::new();
        let counts = match (&self.search, self.widths.is_empty()) {
            (_, false) => self.given(&net)?,
            (None, true) => match self.spread {
                Spread::Even => budget.uniform(&net)?,
                Spread::Ranked => spread::ranked(&net, &budget)?,
                Spread::Blocks => spread::blocks(&net, &budget)?,
            },
            (Some(search), true) => {
                search.check()?;
                self.find(search, &net, &budget, tokens, work, &mut rounds, tell)?
            }
        };
        let exact = !self.widths.is_empty() || !self.spread.is_even();
        let (counts, rungs) = self.apply(&net, &budget, counts, exact, tell)?;
        let rungs: Vec<Rung> = rungs.into_iter().flatten().collect();
        let small = net.compact(model, rungs.iter().enumerate())?;
        let masked = net.masked(&rungs)?;
        let name = |m: usize| net.modules[m].reader.clone();
        let widths = (counts.iter().enumerate())
            .map(|(m, c)| (name(m), c * net.modules[m].bundle))
            .collect();
        let each = rungs.iter().enumerate();
        Ok(Outcome {
            model: small,
            masked,
            settings: Structured {
                search: None,
                widths,
                ..self.clone()
            },
            parameters: [budget.all, net.parameters(rungs.iter()), budget.target],
            errors: (each.clone())
                .map(|(m, r)| LayerError {
                    weight: name(m),
                    fitted: r.error,
                    held_out: r.held_out,
                })
                .collect(),
            modules: each
                .map(|(m, r)| Width {
                    weight: name(m),
                    kind: net.modules[m].kind,
                    units: net.modules[m].units,
                    kept: r.kept.clone(),
                })
                .collect(),
            rounds,
        })
    }

    /// Atoms that the settings name.
    fn given(&self, net: &Net<'_>) -> Result<Vec<usize>> {
        let refuse = |what: String| Err(Error::Recipe(format!("widths: {what}")));
        let known = |w: &&String| !net.modules.iter().any(|m| m.reader == **w);
        if let Some(name) = self.widths.keys().find(known) {
            return refuse(format!("`{name}` reads no heads or neurons of the model"));
        }
        let mut counts = Vec::new();
        for m in &net.modules {
            let width = self.widths.get(&m.reader).copied().unwrap_or(m.units);
            if width > m.units || !width.is_multiple_of(m.bundle * m.grain()) {
                return refuse(format!(
                    "`{}` = {width}: it has {} that go by {}",
                    m.reader,
                    m.units,
                    m.bundle * m.grain()
                ));
            }
            counts.push(width / m.bundle);
        }
        Ok(counts)
    }

    /// Prunes every module to one width, from the model as it was, each block on what the pruned blocks before it give;
    /// neurons make up for what keys and values took, until the target is met.
    fn apply(
        &self,
        net: &Net<'_>,
        budget: &Budget,
        mut counts: Vec<usize>,
        exact: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<(Vec<usize>, Vec<Vec<Rung>>)> {
        let accumulation = match self.spread.is_even() {
            true => Accumulation::Expectation,
            false => Accumulation::None,
        };
        // Which heads go decides which keys do, so that a second look is needed at times.
        let mut attempt = 0;
        loop {
            let ladders = plan::single(&counts);
            let rungs = net.supernet(&ladders, &self.local, accumulation, None, &mut |p| {
                tell(Event::Progress(p));
            })?;
            let found = net.parameters(rungs.iter().map(|r| &r[0]));
            if exact || attempt == 2 || budget.is_near(found) {
                return Ok((counts, rungs));
            }
            budget.adjust(net, &mut counts, found)?;
            attempt += 1;
        }
    }

    /// The atoms of each module that a search finds.
    #[allow(clippy::too_many_arguments)]
    fn find(
        &self,
        search: &SearchSettings,
        net: &Net<'_>,
        budget: &Budget,
        tokens: &[u32],
        work: &Path,
        rounds: &mut Vec<Round>,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Vec<usize>> {
        let io = |source| Error::Io {
            path: work.to_owned(),
            action: "write",
            source,
        };
        std::fs::create_dir_all(work).map_err(io)?;
        let run = self.hash()?;
        let (mark, own) = (work.join("run.json"), digest(&(&run, &net.digest))?);
        match std::fs::read_to_string(&mark) {
            Ok(other) if other.trim_matches('"') != own => {
                return Err(Error::Data {
                    path: work.to_owned(),
                    what: "holds a search of another model, text or setting; remove it, or name another output".into(),
                });
            }
            Ok(_) => {}
            Err(_) => write_json(&mark, &own)?,
        }
        let c = &self.calibration;
        let drawn = windows(
            &Calibration {
                windows: c.windows + c.held_out + search.windows,
                held_out: 0,
                ..c.clone()
            },
            tokens,
        )?;
        let judge = Judge::new(
            net,
            &drawn[c.windows + c.held_out..],
            search.top,
            &work.join("teacher.safetensors"),
            &mut |p| tell(Event::Progress(p)),
        )?;
        let mut counts = budget.uniform(net)?;
        for round in 0..search.rounds {
            let ladders = plan::ladders(net, &counts, search, round);
            let bytes = net.bytes(&ladders);
            tell(Event::Supernet {
                round: round + 1,
                bytes,
            });
            let folder = work.join(format!("round-{}", round + 1));
            std::fs::create_dir_all(&folder).map_err(io)?;
            let supernet = net.supernet(
                &ladders,
                &self.local,
                self.accumulation,
                Some(&folder),
                &mut |p| tell(Event::Progress(p)),
            )?;
            let start: Levels = ladders.iter().map(|l| l.centre).collect();
            let start = budget.balance(net, &supernet, start);
            let rungs = supernet.iter().zip(&start);
            let parameters = net.parameters(rungs.map(|(r, &l)| &r[l]));
            let evolution = &search.evolution;
            let found = Search {
                net,
                judge: &judge,
                supernet: &supernet,
                evolution,
                seed: c.seed,
                round: round + 1,
                budget: budget.range(parameters),
                state: work.join(format!("round-{}.json", round + 1)),
                log: work.join("evaluations.jsonl"),
            }
            .run(
                start,
                digest(&(&run, &net.digest, &ladders))?,
                &mut |done, best| {
                    tell(Event::Generation {
                        round: [round + 1, search.rounds],
                        generation: [done, evolution.generations],
                        best,
                    });
                },
            )?;
            counts = (found.parent.iter().zip(&ladders))
                .map(|(&l, ladder)| ladder.counts[l])
                .collect();
            rounds.push(Round {
                supernet_bytes: bytes,
                history: found.history,
            });
            drop(supernet);
            if round > 0 {
                files::remove(&work.join(format!("round-{round}")))?;
            }
        }
        Ok(counts)
    }
}

/// Takes away what a finished search does not need any more; its log stays.
///
/// # Errors
/// When the system refuses.
pub fn tidy(work: &Path, rounds: usize) -> Result<()> {
    for round in 1..=rounds {
        files::remove(&work.join(format!("round-{round}")))?;
    }
    let teacher = work.join("teacher.safetensors");
    match std::fs::remove_file(&teacher) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: teacher,
            action: "remove",
            source,
        }),
        _ => Ok(()),
    }
}

/// The SHA-256 of a value's JSON.
fn digest(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|e| Error::Recipe(e.to_string()))?;
    let bytes = Sha256::digest(text.as_bytes());
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Replaces a file of JSON.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::Recipe(e.to_string()))?;
    let fill = |out: &mut dyn lacuna::model::file::Output| out.write_all(text.as_bytes());
    Ok(lacuna::model::file::replace(path, fill, |_| Ok(()))?)
}
