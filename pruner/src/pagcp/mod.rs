//! Performance-aware global channel pruning (PAGCP, arXiv 2303.11923) of networks with any number of tasks.
//!
//! A round visits the groups of channels one after the other. From each goes as much as every task allows: its loss, on
//! samples held out of the training and on the network as it is by then, may grow by an allowance, and the most sensitive
//! task decides. The allowances of all visits together let a loss grow by a set factor at most. Of what was found the groups
//! are taken that lose least for what they save; the network is cut and trained; rounds follow until the budget is met.
//!
//! The method is that of the published description and of what is documented of its reference; where the reference slips,
//! [`PagcpSettings::as_coded`] follows it, and the default does not.

mod allowance;
mod budget;
mod oracle;
mod pass;
mod split;
mod state;

pub use crate::latency::{LatencyTable, MeasuredLayer};
pub use budget::{Budget, Saved};
pub use pass::Visit;

use crate::eval::{EvalOptions, preprocess};
use crate::groups::{Criterion, Groups, Limits};
use crate::tasks::{LossName, Metric, TaskData, TaskSettings, heads};
use crate::train::{Device, Effort, EpochRow, TrainSettings, distill};
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::Dim;
use oracle::Oracle;
use pass::Pass;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use state::Store;
use std::path::PathBuf;

/// Everything that decides the result, given the network: the table `[pagcp]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagcpSettings {
    /// The share by which the first visit may raise any task's loss: 0.06.
    pub allowance: f64,
    /// The factor by which all visits of a round together may raise it: 6.
    pub inflation: f64,
    /// What a round adds to the allowance of the round before it.
    pub allowance_slope: f64,
    /// What a round adds to the inflation of the round before it.
    pub inflation_slope: f64,
    /// Whether allowances fall or rise by one factor so that the inflation is used up; else all are the first.
    pub decay: bool,
    /// The share of the groups that a round takes at most: 0.8.
    pub top: f64,
    /// What units of a group are ranked by.
    pub criterion: Criterion,
    /// The most rounds.
    pub rounds: usize,
    /// Patterns of weights whose outputs stay.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Follow the reference where it slips: a group that no task stops is forgotten by the running network and loses a
    /// step less, the groups that are taken are ranked anew on the whole network, loss is counted from the start of the
    /// round and not from the visit before, and the last round may save more than the budget asks for.
    #[serde(default)]
    pub as_coded: bool,
    /// Images a run of the oracle.
    pub batch: usize,
    /// Epochs of the training after each round.
    pub epochs: usize,
    /// What may be left.
    pub budget: Budget,
    /// What every group keeps.
    #[serde(default)]
    pub limits: Limits,
    /// The training after each round; none with no epochs. Its tasks are what decides, and its `hold_out` samples are
    /// what they decide on.
    pub train: TrainSettings,
}

impl PagcpSettings {
    /// The usual ones for a budget.
    pub fn new(budget: Budget) -> PagcpSettings {
        PagcpSettings {
            budget,
            allowance: 0.06,
            inflation: 6.0,
            allowance_slope: 0.0,
            inflation_slope: 0.0,
            decay: true,
            top: 0.8,
            criterion: Criterion::L1,
            rounds: 10,
            ignore: Vec::new(),
            limits: Limits::default(),
            as_coded: false,
            batch: 32,
            train: TrainSettings::default(),
            epochs: 0,
        }
    }

    /// The allowance of the first visit, and the inflation, of the round behind these. A round that found nothing
    /// doubles the allowance of those behind it.
    fn allowances(&self, rounds: &[Round]) -> [f64; 2] {
        let round = rounds.len() as f64;
        let idle = rounds.iter().filter(|r| r.is_idle()).count();
        let doubled = match self.as_coded {
            true => 1.0,
            false => 2f64.powi(idle.min(1 << 10) as i32),
        };
        [
            (self.allowance + self.allowance_slope * round) * doubled,
            self.inflation + self.inflation_slope * round,
        ]
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Channels(what));
        self.budget.check()?;
        self.limits.check()?;
        if self.train.data.hold_out.unwrap_or(0) == 0 {
            return refuse("no samples are held out to decide by".into());
        }
        let fits = |x: f64, least: f64| x.is_finite() && x > least;
        if !fits(self.allowance, 0.0) || !fits(self.inflation, 1.0) {
            return refuse(format!(
                "an allowance of {} and an inflation of {}; give more than 0 and more than 1",
                self.allowance, self.inflation
            ));
        }
        if !fits(self.allowance_slope, -1.0) || !fits(self.inflation_slope, -1e6) {
            return refuse(format!(
                "slopes of {} and {}",
                self.allowance_slope, self.inflation_slope
            ));
        }
        if !(self.top > 0.0 && self.top <= 1.0) {
            return refuse(format!("{} is no share of the groups to take", self.top));
        }
        if self.rounds == 0 || self.batch == 0 {
            return refuse("no rounds, or no images a run".into());
        }
        Ok(())
    }
}

/// What a round came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The factor from one allowance to the next.
    pub decay: f64,
    /// The visits, in their order.
    pub visits: Vec<Visit>,
    /// What was left of the dense network's cost before the round, as a share.
    pub left_before: f64,
    /// And after it.
    pub left_after: f64,
    /// The loss of each task before the round, on the samples held out.
    pub losses_before: Vec<f64>,
    /// Once the network is cut.
    pub losses_cut: Vec<f64>,
    /// Once it is trained.
    pub losses_after: Vec<f64>,
    /// The metric of each task, on the same samples: before the round, once cut, and once trained.
    pub metrics: [Vec<f64>; 3],
    /// The training, epoch by epoch.
    pub epochs: Vec<EpochRow>,
}

impl Round {
    /// Whether nothing went.
    fn is_idle(&self) -> bool {
        self.visits.iter().all(|v| v.taken == 0)
    }
}

/// How a run is carried out.
#[derive(Clone, Debug, Default)]
pub struct Conduct {
    /// Where gradients are computed.
    pub device: Device,
    /// Threads of the oracle; 0 takes every core.
    pub threads: usize,
    /// The state: gone on from where it is there. None without a path.
    pub state: Option<PathBuf>,
}

/// How far a run is.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The round, from 0.
    pub round: usize,
    /// What it does.
    pub stage: Stage<'a>,
    /// What is left of the dense network's cost, as a share.
    pub left: f64,
    /// What may be left.
    pub goal: f64,
}

/// What a round does.
#[derive(Debug)]
pub enum Stage<'a> {
    /// A state was found: rounds and visits that are done.
    Resumed([usize; 2]),
    /// A share of a group is tried.
    Visit {
        /// The group.
        group: &'a str,
        /// Its number in the order of the visits, from 1, and of how many.
        at: [usize; 2],
        /// The share of its units.
        share: f64,
        /// The most that each task's loss may be.
        most: &'a [f64],
        /// What the losses are without the shares tried before.
        losses: &'a [f64],
    },
    /// A group was visited: what came of it, its number in the order of the visits from 1, and of how many.
    Visited(&'a Visit, [usize; 2]),
    /// The network is cut.
    Cut(&'a [Visit]),
    /// It is trained.
    Training(crate::train::Progress<'a>),
    /// The round is over.
    Done(&'a Round),
}

/// A pruned network.
#[derive(Debug)]
pub struct Outcome {
    /// The network.
    pub model: Model,
    /// What each round came to.
    pub rounds: Vec<Round>,
    /// What is left of the dense network's cost, as a share.
    pub left: f64,
    /// Whether that is in the budget.
    pub met: bool,
    /// The tasks, in the order of the losses.
    pub tasks: Vec<String>,
    /// What is measured of each.
    pub metrics: Vec<Metric>,
    /// Samples that were held out to decide by.
    pub oracle_samples: usize,
}

/// Removes the state of a run whose result is written.
///
/// # Errors
/// When a file cannot be removed.
pub fn forget(state: &std::path::Path, rounds: usize) -> Result<()> {
    Store::new(state, String::new()).forget(rounds)
}

/// Prunes `model` until the budget is met, the rounds are over, or no task allows anything more.
///
/// The result depends on the network, the settings and the machine's instruction set, and not on how often the run was
/// interrupted.
///
/// # Errors
/// When the tasks, the data or the budget do not fit the network, or a training fails.
pub fn pagcp(
    model: &Model,
    settings: &PagcpSettings,
    conduct: &Conduct,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Outcome> {
    settings.check()?;
    let mut settings = settings.clone();
    if settings.train.tasks.is_empty() {
        settings.train.tasks = vec![classifier(model)];
    }
    let settings = &settings;
    let train = &settings.train;
    let store = conduct
        .state
        .as_ref()
        .map(|path| Store::new(path, identity(model, settings)));
    let found = store.as_ref().map(Store::read).transpose()?.flatten();
    let (mut state, mut current) = match (&store, found) {
        (_, Some((state, later))) => (state, later.unwrap_or_else(|| model.clone())),
        (Some(store), None) => (store.fresh(), model.clone()),
        (None, None) => (
            Store::new("".as_ref(), String::new()).fresh(),
            model.clone(),
        ),
    };
    let (_, own) = heads(model, &train.tasks)?;
    let data = TaskData::open(&train.data.path, &train.data.split, &own)?;
    let held = train.data.held_out(data.images.len());
    let mut oracle = Oracle::new(
        &train.tasks,
        &data,
        &held,
        &preprocessing(model, train)?,
        model,
        [settings.batch, conduct.threads],
    )?;
    let dense =
        settings
            .budget
            .meter(&Groups::of(model)?)?
            .total(&vec![0; Groups::of(model)?.all().len()]);
    let goal = [dense, dense * settings.budget.share];
    let mut said = state.rounds.is_empty() && state.pass.is_none();
    let (left, met) = loop {
        let round = state.rounds.len();
        let mut groups = Groups::of(&current)?;
        groups.ignore(&settings.ignore)?;
        let costs = settings.budget.meter(&groups)?;
        let cost = costs.total(&vec![0; groups.all().len()]);
        let (left, met) = (cost / dense, cost <= goal[1]);
        let allowances = settings.allowances(&state.rounds);
        let spent = match state.rounds.last() {
            None => false,
            // The first visit may use up what all visits together may.
            _ if allowances[0] > allowances[1] - 1.0 => true,
            Some(last) => settings.as_coded && settings.allowance_slope <= 0.0 && last.is_idle(),
        };
        if met || spent || round >= settings.rounds {
            break (left, met);
        }
        if !said {
            let visits = state.pass.as_ref().map_or(0, |p| p.visits.len());
            progress(&Progress {
                round,
                stage: Stage::Resumed([round, visits]),
                left,
                goal: settings.budget.share,
            });
            said = true;
        }
        let pass = Pass {
            settings,
            groups: &groups,
            limits: &settings.limits,
            costs: &costs,
            tasks: train.tasks.iter().map(|t| t.name.clone()).collect(),
            round,
            allowances,
            goal,
        };
        let losses = oracle.run_on(&current)?;
        let metrics = oracle.metrics(&current)?;
        let mut own = match state.pass.take() {
            Some(own) => own,
            None => pass.start(losses.clone())?,
        };
        if !own.visits.is_empty() {
            oracle.run_on(&pass.cut(&pass.running(&own))?)?;
        }
        while own.visits.len() < own.order.len() {
            pass.visit(&mut own, &mut oracle, progress)?;
            if let Some(visit) = own.visits.last() {
                let running: Vec<usize> = pass.running(&own).iter().map(Vec::len).collect();
                progress(&Progress {
                    round,
                    stage: Stage::Visited(visit, [own.visits.len(), own.order.len()]),
                    left: costs.total(&running) / dense,
                    goal: settings.budget.share,
                });
            }
            if let Some(store) = &store {
                state.pass = Some(own.clone());
                store.write(&state)?;
            }
        }
        let units = pass.select(&mut own)?;
        let cut = pass.cut(&units)?;
        let counts: Vec<usize> = units.iter().map(Vec::len).collect();
        let left_after = costs.total(&counts) / dense;
        progress(&Progress {
            round,
            stage: Stage::Cut(&own.visits),
            left: left_after,
            goal: settings.budget.share,
        });
        let losses_cut = oracle.run_on(&cut)?;
        let metrics_cut = oracle.metrics(&cut)?;
        let nothing = counts.iter().all(|&n| n == 0);
        let (trained, epochs) = match settings.epochs == 0 || nothing {
            true => (cut, Vec::new()),
            false => {
                let train = TrainSettings {
                    epochs: settings.epochs,
                    seed: train.seed + round as u64,
                    ..train.clone()
                };
                let effort = Effort {
                    device: conduct.device,
                    checkpoint: store.as_ref().map(|s| s.checkpoint(round)),
                    metrics: None,
                };
                let trained = distill(&cut, model, &train, &effort, &mut |p| {
                    progress(&Progress {
                        round,
                        stage: Stage::Training(*p),
                        left: left_after,
                        goal: settings.budget.share,
                    })
                })?;
                (trained.model, trained.rows)
            }
        };
        let losses_after = oracle.run_on(&trained)?;
        state.rounds.push(Round {
            decay: own.decay,
            visits: own.visits,
            left_before: left,
            left_after,
            losses_before: losses,
            losses_cut,
            losses_after,
            metrics: [metrics, metrics_cut, oracle.metrics(&trained)?],
            epochs,
        });
        state.pass = None;
        let next = match &store {
            Some(store) => store.next(&state, &trained)?,
            None => trained,
        };
        if let Some(last) = state.rounds.last() {
            progress(&Progress {
                round,
                stage: Stage::Done(last),
                left: left_after,
                goal: settings.budget.share,
            });
        }
        drop(costs);
        drop(groups);
        current = next;
    };
    Ok(Outcome {
        model: current,
        rounds: state.rounds,
        left,
        met,
        tasks: train.tasks.iter().map(|t| t.name.clone()).collect(),
        metrics: oracle.names(),
        oracle_samples: oracle.len(),
    })
}

/// The task of a classifier: the classes of its first output.
fn classifier(model: &Model) -> TaskSettings {
    TaskSettings {
        name: "classes".into(),
        output: model.graph().outputs.first().cloned().unwrap_or_default(),
        loss: LossName::CrossEntropy,
        labels: Some("labels".into()),
        weight: 1.0,
        ignore: None,
        anchors: Vec::new(),
        metric: None,
    }
}

fn preprocessing(model: &Model, train: &TrainSettings) -> Result<crate::data::Preprocess> {
    let shape = model.graph().inputs.first().map(|i| i.shape.as_slice());
    let Some([_, Dim::Fixed(c), Dim::Fixed(h), Dim::Fixed(w)]) = shape else {
        return Err(Error::Channels(
            "the network takes no images [N, C, H, W] of a known size".into(),
        ));
    };
    let options = EvalOptions {
        preset: train.data.preset,
        mean: train.data.mean.clone(),
        std: train.data.std.clone(),
        size: train.data.size,
        ..EvalOptions::default()
    };
    preprocess(&options, [*c, *h, *w])
}

/// SHA-256 of the network and the settings.
fn identity(model: &Model, settings: &PagcpSettings) -> String {
    let mut digest = Sha256::new();
    for (name, weight) in model.weights() {
        digest.update(name.as_bytes());
        for x in weight.to_f32().unwrap_or_default() {
            digest.update(x.to_le_bytes());
        }
    }
    digest.update(format!("{:?}", model.graph()));
    digest.update(serde_json::to_string(settings).unwrap_or_default());
    let bytes = digest.finalize();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
