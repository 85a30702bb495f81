//! The audit: every form of every layer, timed where the layer stands in the network.
//!
//! A session with the plan's choices takes turns with sessions in which every other layer has another of its
//! forms, so that a layer's neighbours, and what they leave in the caches, are those of the plan. What
//! counts is the median over the rounds of the ratio to the plan's choice in the same round.

mod subject;
mod tune;

pub use tune::tune;

use crate::model::open;
use crate::{Config, Result, median};
use lacuna::Model;
use lacuna::plan::{Candidate, Chosen, Forms, Variant, Weighted, machine};
use lacuna_targets::{Conditions, State};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use subject::Subject;

/// Rounds of turns.
const ROUNDS: usize = 10;

/// Forms of a layer that are tried beside the plan's choice: the dense ones and those estimated fastest.
const ALTERNATIVES: usize = 4;

/// How far behind the best form a choice may be.
pub const TOLERANCE: f64 = 0.05;

/// And how far in milliseconds: reading the clock and waiting for the other threads is not steadier.
const TOLERANCE_MS: f64 = 0.002;

/// Whether a layer's choice holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within the tolerance of the best, in one of two measurements at least.
    Holds,
    /// Behind the best by more than the tolerance, measured twice.
    Behind,
}

/// A form of a layer, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct FormTime {
    /// The form.
    pub form: String,
    /// Its time: the plan's choice's median, times the ratio to it.
    pub ms: f64,
    /// It needs a copy of the weight that the plan does not allow itself; it does not count as best.
    pub copy: bool,
    #[serde(skip)]
    variant: Variant,
}

/// A layer with a choice of forms.
#[derive(Clone, Debug, Serialize)]
pub struct AuditLayer {
    /// `run`, or of a language model `decode` or `prefill`.
    pub phase: &'static str,
    /// The node.
    pub node: String,
    /// Weight and output sizes.
    pub shape: String,
    /// The share of the weight that is not zero.
    pub density: f64,
    /// The plan's choice.
    pub chosen: String,
    /// Who took it: `asked`, `measured` or `estimated`.
    pub by: &'static str,
    /// Every form that was tried, the plan's choice first.
    pub forms: Vec<FormTime>,
    /// The fastest of those that the plan may choose.
    pub best: String,
    /// How much longer the choice takes than the best: 0.05 is 5 %.
    pub behind: f64,
    /// The same in the second measurement, of layers that were behind in the first.
    pub behind_again: Option<f64>,
    /// Whether the choice holds.
    pub verdict: Verdict,
    #[serde(skip)]
    key: String,
}

/// A whole phase, chosen and dense.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// `run`, `decode` or `prefill`.
    pub phase: &'static str,
    /// The plan's choices, milliseconds.
    pub chosen_ms: f64,
    /// Every weight dense, milliseconds.
    pub dense_ms: f64,
    /// How many times faster the choices are: the median over rounds.
    pub speedup: f64,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// The model's path as it was given.
    pub model: String,
    /// The processor, as files of measured choices name it.
    pub machine: String,
    /// Threads of a run.
    pub threads: usize,
    /// The instruction set.
    pub isa: String,
    /// The layers in the order of the network.
    pub layers: Vec<AuditLayer>,
    /// Whole runs.
    pub whole: Vec<Compared>,
    /// What the machine did meanwhile.
    pub conditions: Conditions,
}

impl Audit {
    /// Layers whose choice does not hold.
    pub fn behind(&self) -> impl Iterator<Item = &AuditLayer> {
        self.layers.iter().filter(|l| l.verdict == Verdict::Behind)
    }

    /// Phases in which the choices are slower than dense by more than the tolerance.
    pub fn slower_than_dense(&self) -> impl Iterator<Item = &Compared> {
        self.whole
            .iter()
            .filter(|c| c.speedup < 1.0 / (1.0 + TOLERANCE))
    }

    /// Whether every choice holds.
    pub fn holds(&self) -> bool {
        self.behind().next().is_none() && self.slower_than_dense().next().is_none()
    }
}

/// A layer under measurement: its place, the forms that are tried, and ratios to the choice by round.
struct Probe {
    phase: usize,
    step: usize,
    facts: Weighted,
    tried: Vec<Candidate>,
    ratios: Vec<Vec<f64>>,
    chosen_ms: Vec<f64>,
}

impl Probe {
    fn new(phase: usize, step: usize, facts: &Weighted) -> Probe {
        let mut others: Vec<Candidate> = facts.legal.clone();
        others.retain(|c| c.variant != facts.form);
        others.sort_by(|a, b| {
            let rank = |c: &Candidate| !c.variant.form.is_dense();
            rank(a).cmp(&rank(b)).then(a.cost.total_cmp(&b.cost))
        });
        others.truncate(ALTERNATIVES);
        let same = |c: &&Candidate| c.variant == facts.form;
        let chosen = facts.legal.iter().find(same).copied().unwrap_or(Candidate {
            variant: facts.form,
            cost: 0.0,
            copy: false,
        });
        let tried: Vec<Candidate> = std::iter::once(chosen).chain(others).collect();
        Probe {
            phase,
            step,
            facts: facts.clone(),
            ratios: vec![Vec::new(); tried.len()],
            tried,
            chosen_ms: Vec::new(),
        }
    }

    /// Ratio to the choice of a form that was tried.
    fn ratio(&self, i: usize) -> f64 {
        match i {
            0 => 1.0,
            _ => median(&self.ratios[i]).unwrap_or(f64::NAN),
        }
    }

    fn ms(&self) -> f64 {
        median(&self.chosen_ms).unwrap_or(f64::NAN)
    }

    /// The fastest of the forms that the plan may choose.
    fn best(&self) -> usize {
        let free = (1..self.tried.len()).filter(|&i| !self.tried[i].copy);
        let best = free.min_by(|a, b| self.ratio(*a).total_cmp(&self.ratio(*b)));
        best.filter(|&i| self.ratio(i) < 1.0).unwrap_or(0)
    }

    /// How far the choice is behind a form, and whether that is more than may be.
    fn behind(&self, i: usize) -> (f64, bool) {
        let ratio = self.ratio(i);
        let behind = 1.0 / ratio - 1.0;
        let far = behind > TOLERANCE && self.ms() * (1.0 - ratio) > TOLERANCE_MS;
        (behind, far)
    }
}

/// The forms in which every other weight, from `parity` on, has the one that `pick` says.
fn assignment(
    probes: &[Probe],
    parity: usize,
    pick: impl Fn(&Probe) -> Option<Variant>,
) -> (Forms, Vec<bool>) {
    let mut order: BTreeMap<&str, usize> = BTreeMap::new();
    let mut forms = Forms::new();
    let mut changed = Vec::with_capacity(probes.len());
    for probe in probes {
        let name = probe.facts.weight.as_str();
        let next = order.len();
        let at = *order.entry(name).or_insert(next);
        let variant = pick(probe).filter(|_| at % 2 == parity);
        changed.push(variant.is_some());
        let list = forms.entry(name.to_owned()).or_default();
        list.push(variant.unwrap_or(probe.facts.form));
    }
    (forms, changed)
}

/// Fills ratios: the plan's choices take turns with the sessions of `others`, each with the layers and
/// the index of the form that it tries for each.
fn measure(
    probes: &mut [Probe],
    chosen: &mut Subject,
    others: &mut [(Subject, Vec<Option<usize>>)],
    rounds: usize,
    time: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    for round in 0..rounds {
        say(&format!("round {} of {rounds}", round + 1));
        let count = others.len();
        for turn in 0..count {
            let i = (turn + round) % count.max(1);
            // The choice beside each: what drifts, drifts for both.
            let own = chosen.turn(time / 2, false)?;
            let (subject, tries) = &mut others[i];
            let theirs = subject.turn(time, false)?;
            for (probe, tried) in probes.iter_mut().zip(tries) {
                let base = own.steps[probe.phase][probe.step];
                probe.chosen_ms.push(base);
                if let Some(form) = tried {
                    probe.ratios[*form].push(theirs.steps[probe.phase][probe.step] / base);
                }
            }
        }
    }
    Ok(())
}

fn who(by: Chosen) -> &'static str {
    match by {
        Chosen::Asked => "asked",
        Chosen::Measured => "measured",
        _ => "estimated",
    }
}

/// Audits a model. `progress` is told what happens now.
///
/// A layer is behind when its choice takes more than [`TOLERANCE`] longer than the fastest form that the
/// plan may choose, and 2 µs, in the median over the rounds, and again against that same form in a
/// second measurement.
///
/// # Errors
/// When the model cannot be opened, planned or run, or an option does not fit it.
pub fn audit(config: &Config, mut progress: impl FnMut(&str)) -> Result<Audit> {
    let before = State::now();
    progress("load");
    let model = open(&config.path, config.batch, true)?.model;
    let mut chosen = Subject::new(&model, config, false, Forms::new())?;
    let (threads, isa) = chosen.facts();
    let phases = chosen.phases();
    let steps = chosen.steps();
    let time = config.min_time / ROUNDS as u32;
    let mut probes = Vec::new();
    for (phase, steps) in steps.iter().enumerate() {
        for (i, step) in steps.iter().enumerate() {
            probes.extend(step.weighted.as_ref().map(|w| Probe::new(phase, i, w)));
        }
    }

    progress("plan the other forms");
    let most = probes.iter().map(|p| p.tried.len()).max().unwrap_or(1);
    let mut others = Vec::new();
    for i in 1..most {
        for parity in 0..2 {
            let pick = |p: &Probe| p.tried.get(i).map(|c| c.variant);
            let (forms, changed) = assignment(&probes, parity, pick);
            let subject = Subject::new(&model, config, false, forms)?;
            let tries = changed.iter().map(|c| c.then_some(i)).collect();
            others.push((subject, tries));
        }
    }
    measure(
        &mut probes,
        &mut chosen,
        &mut others,
        ROUNDS,
        time,
        &mut progress,
    )?;
    drop(others);

    // Again, those that are behind only, against the form that was best.
    let suspects: Vec<Option<usize>> = probes
        .iter()
        .map(|p| Some(p.best()).filter(|&b| b > 0 && p.behind(b).1))
        .collect();
    let mut again = vec![None; probes.len()];
    if suspects.iter().any(Option::is_some) {
        progress("plan the best forms");
        let mut second: Vec<Probe> = probes
            .iter()
            .map(|p| Probe::new(p.phase, p.step, &p.facts))
            .collect();
        let mut others = Vec::new();
        for parity in 0..2 {
            let of = |p: &Probe| {
                let i = probes
                    .iter()
                    .position(|q| (q.phase, q.step) == (p.phase, p.step))?;
                suspects[i].map(|s| p.tried[s].variant)
            };
            let (forms, changed) = assignment(&second, parity, of);
            let tries = changed.iter().zip(&suspects);
            let tries = tries.map(|(c, s)| s.filter(|_| *c)).collect();
            others.push((Subject::new(&model, config, false, forms)?, tries));
        }
        measure(
            &mut second,
            &mut chosen,
            &mut others,
            2 * ROUNDS,
            time,
            &mut progress,
        )?;
        for (i, suspect) in suspects.iter().enumerate() {
            again[i] = suspect.map(|s| second[i].behind(s));
        }
    }

    progress("whole runs");
    let whole = compare(&model, config, &mut chosen, time)?;
    let layers = probes.iter().zip(again).map(|(p, again)| {
        let (best, step) = (p.best(), &steps[p.phase][p.step]);
        let forms = p.tried.iter().enumerate().map(|(i, c)| FormTime {
            form: c.variant.to_string(),
            ms: p.ms() * p.ratio(i),
            copy: c.copy,
            variant: c.variant,
        });
        AuditLayer {
            phase: phases[p.phase],
            node: step.node.clone(),
            shape: step.shape.clone(),
            density: step.density,
            chosen: p.facts.form.to_string(),
            by: who(p.facts.by),
            forms: forms.collect(),
            best: p.tried[best].variant.to_string(),
            behind: p.behind(best).0,
            behind_again: again.map(|a| a.0),
            verdict: match again {
                Some((_, true)) => Verdict::Behind,
                _ => Verdict::Holds,
            },
            key: p.facts.key.clone(),
        }
    });
    Ok(Audit {
        model: config.name(),
        machine: machine().to_owned(),
        threads,
        isa,
        layers: layers.collect(),
        whole,
        conditions: Conditions::since(before, threads),
    })
}

/// Whole runs of the choices and of every weight dense, in turns.
fn compare(
    model: &Model,
    config: &Config,
    chosen: &mut Subject,
    time: Duration,
) -> Result<Vec<Compared>> {
    let mut dense = Subject::new(model, config, true, Forms::new())?;
    let phases = chosen.phases();
    let mut times: Vec<[Vec<f64>; 2]> = vec![Default::default(); phases.len()];
    for _ in 0..ROUNDS {
        let turns = [chosen.turn(time, true)?, dense.turn(time, true)?];
        for (which, turn) in turns.iter().enumerate() {
            for (phase, ms) in turn.whole.iter().enumerate() {
                times[phase][which].push(*ms);
            }
        }
    }
    let middle = |times: &[f64]| median(times).unwrap_or(f64::NAN);
    let compared = phases.iter().zip(times).map(|(phase, [chosen, dense])| {
        let ratios: Vec<f64> = dense.iter().zip(&chosen).map(|(d, c)| d / c).collect();
        Compared {
            phase,
            chosen_ms: middle(&chosen),
            dense_ms: middle(&dense),
            speedup: middle(&ratios),
        }
    });
    Ok(compared.collect())
}
