//! Whole heads and neurons of a decoder go, and what stays makes up for them: Týr-the-Pruner (arXiv 2503.09657) and
//! simpler methods on the same engine.
//!
//! An attention loses query heads and an MLP neurons: inputs of the matrix that reads them (`local`). `supernet` has every
//! module at several widths, of which [`search`](crate::search) finds those that keep the model's answers at a number of
//! parameters (`cost`), and `compact` makes the smaller model.

mod compact;
mod cost;
mod files;
mod local;
mod loss;
mod modules;
mod plan;
mod settings;
mod spread;
mod supernet;

pub use cost::{Latency, LatencyBudget, Limit};
pub(crate) use local::solve;
pub use local::{Local, Score, Step};
pub use modules::{HeadMode, Kind};
pub use settings::Structured;
pub use spread::Spread;
pub use supernet::Accumulation;

use crate::search::{Event, Levels, Parts, Round, Rounds, SearchSettings, Space, Teacher};
use crate::{Error, LayerError, Progress, Result};
use lacuna::Model;
use plan::Budget;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use supernet::{Ladder, Net, Rung};

/// A pruned model and how it came about.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model.
    pub model: Model,
    /// The same with the shapes of the model before: zeros where what went was read. It computes the same.
    pub masked: Model,
    /// What replays it: the settings with the widths that were found, without a search.
    pub settings: Structured,
    /// Parameters of all attentions and MLPs that could go, before and after, and what the sparsity asks for; with a budget
    /// of milliseconds the last is what is left.
    pub parameters: [usize; 3],
    /// Milliseconds, where they were the budget.
    pub latency: Option<Latency>,
    /// What the outputs of each attention and MLP lost.
    pub errors: Vec<LayerError>,
    /// What was left of each module.
    pub modules: Vec<Width>,
    /// Rounds of the search.
    pub rounds: Vec<Round>,
    /// Wall time of this run by phase: `forward` of the windows through the model, `moments` of inputs, `solve`, `advance`
    /// of the states through what was pruned, `teacher`, `search`.
    pub seconds: BTreeMap<&'static str, f64>,
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
        if self.latency.is_some() && !self.spread.is_even() {
            return Err(Error::Recipe(
                "a budget of milliseconds goes with a search or with even widths".into(),
            ));
        }
        let (calibration, origin) = (&self.calibration, origin.to_owned());
        let net = Net::new(model, self.heads, calibration, tokens, origin)?;
        let budget = match &self.latency {
            Some(latency) => Budget::of_latency(&net, latency)?,
            None => Budget::new(&net, self.sparsity),
        };
        let mut rounds = Vec::new();
        let counts = match (&self.search, self.widths.is_empty()) {
            (_, false) => self.given(&net)?,
            (None, true) => match self.spread {
                Spread::Even => budget.uniform(&net)?,
                Spread::Ranked => spread::ranked(&net, &budget)?,
                Spread::Blocks => spread::blocks(&net, &budget)?,
            },
            (Some(search), true) => {
                let search = Rounds {
                    settings: search,
                    calibration,
                    tokens,
                    teacher: Teacher {
                        model,
                        blocks: &net.blocks,
                        digest: &net.digest,
                    },
                    hash: &self.hash()?,
                    work,
                    spent: &net.spent,
                };
                let parts = Widths {
                    settings: self,
                    net: &net,
                    budget: &budget,
                };
                let found = search.run(&parts, budget.uniform(&net)?, tell)?;
                rounds = found.1;
                found.0
            }
        };
        if !net.attends(|m| counts[m]) {
            return Err(Error::Channels(
                "no attention is left: a model without one is no decoder".into(),
            ));
        }
        let exact = !self.widths.is_empty() || !self.spread.is_even();
        let (counts, rungs) = self.apply(&net, &budget, counts, exact, tell)?;
        let rungs: Vec<Rung> = rungs.into_iter().flatten().collect();
        let small = net.compact(model, rungs.iter().enumerate())?;
        let all = net.modules.iter().map(|m| m.parameters()).sum();
        let left = net.parameters(rungs.iter());
        let latency = self.latency.as_ref().map(|l| Latency {
            of: l.of,
            ms: [
                budget.rest + budget.all,
                budget.rest + budget.cost(&net, rungs.iter()),
                budget.limit(),
            ],
            rest_ms: budget.rest,
        });
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
                sparsity: match latency {
                    Some(_) => 1.0 - left as f64 / all as f64,
                    None => self.sparsity,
                },
                latency: None,
                search: None,
                widths,
                ..self.clone()
            },
            parameters: [
                all,
                left,
                match latency {
                    Some(_) => left,
                    None => budget.target as usize,
                },
            ],
            latency,
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
            seconds: net.spent.all(),
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
            let found = budget.cost(net, rungs.iter().map(|r| &r[0]));
            if exact || attempt == 2 || budget.is_near(found) {
                return Ok((counts, rungs));
            }
            budget.adjust(net, &mut counts, found)?;
            attempt += 1;
        }
    }
}

/// The modules of a decoder, of which a search finds the widths.
struct Widths<'a, 'm> {
    settings: &'a Structured,
    net: &'a Net<'m>,
    budget: &'a Budget,
}

impl Parts for Widths<'_, '_> {
    /// Atoms.
    type Choice = usize;
    type Ladder = Ladder;
    type Rung = Rung;

    fn by_block(&self) -> Vec<Vec<usize>> {
        self.net.by_block()
    }

    fn ladders(&self, found: &[usize], settings: &SearchSettings, round: usize) -> Vec<Ladder> {
        plan::ladders(self.net, found, settings, round)
    }

    fn choice(&self, ladder: &Ladder, level: usize) -> usize {
        ladder.counts[level]
    }

    fn bytes(&self, ladders: &[Ladder]) -> u64 {
        self.net.bytes(ladders)
    }

    fn supernet(
        &self,
        ladders: &[Ladder],
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<Rung>>> {
        let Structured {
            local,
            accumulation,
            ..
        } = self.settings;
        self.net
            .supernet(ladders, local, *accumulation, Some(folder), progress)
    }

    fn space<'s>(&'s self, _: &[Ladder], supernet: &'s [Vec<Rung>]) -> Space<'s> {
        let (net, budget) = (self.net, self.budget);
        let cost = |(m, rungs): (usize, &Vec<Rung>)| {
            rungs.iter().map(|r| budget.of(net, m, &r.kept)).collect()
        };
        let size = |rungs: &Vec<Rung>| rungs.iter().map(|r| r.kept.len()).collect();
        Space {
            costs: supernet.iter().enumerate().map(cost).collect(),
            sizes: supernet.iter().map(size).collect(),
            kinds: net.modules.iter().map(|m| m.kind as usize).collect(),
            allowed: Box::new(|levels: &Levels| net.attends(|m| supernet[m][levels[m]].kept.len())),
            apply: Box::new(|block, chosen| {
                let rungs = chosen.iter().map(|&(m, l)| (m, &supernet[m][l]));
                net.compact(block, rungs)
            }),
        }
    }

    fn start(&self, ladders: &[Ladder], supernet: &[Vec<Rung>]) -> Levels {
        let middle = ladders.iter().map(|l| l.centre).collect();
        self.budget.balance(self.net, supernet, middle)
    }

    fn range(&self, start: f64) -> (f64, f64) {
        self.budget.range(start)
    }
}
