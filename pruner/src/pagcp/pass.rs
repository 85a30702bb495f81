//! One pass over the units of a network: how much of each goes, at what a task may lose.

use super::allowance::decay;
use super::budget::Costs;
use super::oracle::{Oracle, Verdict};
use super::{PagcpSettings, Progress, Stage};
use crate::groups::{Groups, Limits, Removed};
use crate::{Error, Result};
use lacuna::Model;
use serde::{Deserialize, Serialize};

/// Shares of a group that are tried: 1/20, 2/20, and so on up to 19/20.
const GRID: usize = 20;

/// The share whose removal says how much a group weighs in the order of the visits.
const WEIGHED: f64 = 0.3;

/// What a visit to a group came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Visit {
    /// The number of the group in the network of this round.
    pub group: usize,
    /// The first weight that makes its channels.
    pub name: String,
    /// Its units.
    pub units: usize,
    /// The share of each task's loss that this visit could add.
    pub allowance: f64,
    /// Those that could go, the least first; none where the first share was too much.
    pub removed: Vec<usize>,
    /// The mean loss of each task without them.
    pub losses: Vec<f64>,
    /// The task that allowed no more; none where the last share was still allowed.
    pub stopped_by: Option<String>,
    /// Shares that were tried.
    pub tried: usize,
    /// Loss for what is saved; lower is better.
    pub score: Option<f64>,
    /// How many of the units went in the end.
    pub taken: usize,
}

/// The state of a pass between two visits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// The factor from one allowance to the next.
    pub decay: f64,
    /// Groups in the order of their visits.
    pub order: Vec<usize>,
    /// The allowance of the next visit.
    pub allowance: f64,
    /// The losses that the next visit starts from.
    pub base: Vec<f64>,
    /// The losses of the network as the round met it.
    pub first: Vec<f64>,
    pub visits: Vec<Visit>,
}

pub(super) struct Pass<'a, 'm> {
    pub settings: &'a PagcpSettings,
    pub groups: &'a Groups<'m>,
    pub limits: &'a Limits,
    pub costs: &'a Costs,
    pub tasks: Vec<String>,
    pub round: usize,
    /// Of the first visit, and the inflation.
    pub allowances: [f64; 2],
    /// What the dense network costs, and what may be left of it.
    pub goal: [f64; 2],
}

impl Pass<'_, '_> {
    fn counts(&self, units: &[Vec<usize>]) -> Vec<usize> {
        units.iter().map(Vec::len).collect()
    }

    /// The cut without these units.
    pub fn cut(&self, units: &[Vec<usize>]) -> Result<Model> {
        let removed = Removed::new(self.groups, units.to_vec())?;
        Ok(self.groups.cut(&removed, true)?.model)
    }

    /// The order of the visits and the factor of the allowances.
    pub fn start(&self, losses: Vec<f64>) -> Result<State> {
        let none: Vec<usize> = vec![0; self.groups.all().len()];
        let whole = self.costs.total(&none);
        let mut weighed: Vec<(usize, f64)> = Vec::new();
        for (at, group) in self.groups.listed() {
            let most = self.limits.allowed(group, group.units);
            if most == 0 {
                continue;
            }
            let share = (WEIGHED * group.units as f64).floor() as usize;
            let mut counts = none.clone();
            counts[at] = self.limits.allowed(group, share.max(1)).max(1).min(most);
            weighed.push((at, whole - self.costs.total(&counts)));
        }
        if weighed.is_empty() {
            return Err(Error::Channels("no group can be cut".into()));
        }
        let [first, inflation] = self.allowances;
        let factor = match self.settings.decay {
            false => 1.0,
            true => decay(first, inflation, weighed.len()).ok_or_else(|| {
                Error::Channels(format!(
                    "an allowance of {first} for the first of {} groups is more than an inflation of {inflation}",
                    weighed.len()
                ))
            })?,
        };
        // What weighs most goes while the allowance is largest.
        weighed.sort_by(|a, b| {
            let by_weight = match factor <= 1.0 {
                true => b.1.total_cmp(&a.1),
                false => a.1.total_cmp(&b.1),
            };
            by_weight.then(a.0.cmp(&b.0))
        });
        Ok(State {
            decay: factor,
            order: weighed.into_iter().map(|w| w.0).collect(),
            allowance: first,
            base: losses.clone(),
            first: losses,
            visits: Vec::new(),
        })
    }

    /// The units of the running network.
    pub fn running(&self, state: &State) -> Vec<Vec<usize>> {
        let mut units = vec![Vec::new(); self.groups.all().len()];
        for visit in &state.visits {
            if self.commits(visit) {
                units[visit.group].clone_from(&visit.removed);
            }
        }
        units
    }

    /// Whether the running network loses what a visit found: the reference forgets what no task stops.
    fn commits(&self, visit: &Visit) -> bool {
        !visit.removed.is_empty() && (visit.stopped_by.is_some() || !self.settings.as_coded)
    }

    /// Visits the next group.
    pub fn visit(
        &self,
        state: &mut State,
        oracle: &mut Oracle,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<()> {
        let at = state.order[state.visits.len()];
        let group = &self.groups.all()[at];
        let running = self.running(state);
        let ranks = self.ranks(at, &running)?;
        let most: Vec<f64> = state
            .base
            .iter()
            .map(|b| b * (1.0 + state.allowance))
            .collect();
        let mut visit = Visit {
            group: at,
            name: group.name().to_owned(),
            units: group.units,
            allowance: state.allowance,
            removed: Vec::new(),
            losses: Vec::new(),
            stopped_by: None,
            tried: 0,
            score: None,
            taken: 0,
        };
        let cost = self.costs.total(&self.counts(&running));
        let mut found: Vec<(usize, Vec<f64>)> = Vec::new();
        for step in 1..GRID {
            let count = self.limits.allowed(group, group.units * step / GRID);
            if count == 0 || found.last().is_some_and(|f| f.0 == count) {
                continue;
            }
            progress(&Progress {
                round: self.round,
                stage: Stage::Visit {
                    group: group.name(),
                    at: [state.visits.len() + 1, state.order.len()],
                    share: count as f64 / group.units as f64,
                    most: &most,
                    losses: found.last().map_or(&state.base, |f| &f.1),
                },
                left: cost / self.goal[0],
                goal: self.goal[1] / self.goal[0],
            });
            let mut trial = running.clone();
            trial[at] = ranks[..count].to_vec();
            visit.tried += 1;
            match oracle.trial(&self.cut(&trial)?, &most)? {
                Verdict::Within(losses) => found.push((count, losses)),
                Verdict::Exceeds(task) => {
                    visit.stopped_by = Some(self.tasks[task].clone());
                    break;
                }
            }
        }
        if visit.stopped_by.is_none() && self.settings.as_coded && found.len() > 1 {
            // Steps back where nothing was exceeded, too.
            found.pop();
        }
        if let Some((count, losses)) = found.pop() {
            visit.removed = ranks[..count].to_vec();
            let mut after = running.clone();
            after[at].clone_from(&visit.removed);
            let saved = cost - self.costs.total(&self.counts(&after));
            let sum = |losses: &[f64]| match self.settings.as_coded {
                true => self.weighted(losses),
                false => losses
                    .iter()
                    .zip(&state.first)
                    .map(|(l, f)| l / f.max(1e-20))
                    .sum(),
            };
            let before = match self.settings.as_coded {
                true => &state.first,
                false => &state.base,
            };
            visit.score = Some((sum(&losses) - sum(before)) / (saved / self.goal[0] + 1e-20));
            visit.losses = losses;
        }
        if self.commits(&visit) {
            state.allowance *= state.decay;
            for (base, loss) in state.base.iter_mut().zip(&visit.losses) {
                *base = base.max(*loss);
            }
        }
        let moved = self.commits(&visit);
        state.visits.push(visit);
        if moved {
            oracle.run_on(&self.cut(&self.running(state))?)?;
        }
        Ok(())
    }

    /// The sum that the network is trained on.
    fn weighted(&self, losses: &[f64]) -> f64 {
        let tasks = self.settings.train.tasks.iter().map(|t| t.weight);
        losses
            .iter()
            .zip(tasks.chain(std::iter::repeat(1.0)))
            .map(|(l, w)| l * w)
            .sum()
    }

    /// The units of a group by what they weigh in the running network, the least first.
    fn ranks(&self, group: usize, running: &[Vec<usize>]) -> Result<Vec<usize>> {
        let removed = Removed::new(self.groups, running.to_vec())?;
        let scores = self.settings.criterion.scores_left(self.groups, &removed)?;
        let scores = &scores[group];
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        Ok(order)
    }

    /// Takes the groups that lose least for what they save, as many as the settings say, and no more than the budget
    /// needs. Fills in what was taken.
    pub fn select(&self, state: &mut State) -> Result<Vec<Vec<usize>>> {
        let mut ranked: Vec<(usize, f64)> = (state.visits.iter().enumerate())
            .filter_map(|(i, v)| Some((i, v.score?)))
            .collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let most = (self.settings.top * state.order.len() as f64 + 1e-9).floor() as usize;
        // A share of few groups can be none.
        ranked.truncate(most.max(usize::from(!self.settings.as_coded)));
        let mut taken: Vec<usize> = ranked.iter().map(|r| r.0).collect();
        let mut units = vec![Vec::new(); self.groups.all().len()];
        if self.settings.as_coded {
            // In the order of the visits, from the whole network: what a group loses is ranked anew.
            taken.sort_unstable();
            for i in taken {
                let visit = &mut state.visits[i];
                visit.taken = visit.removed.len();
                let ranks = self.ranks(visit.group, &units)?;
                units[visit.group] = ranks[..visit.taken].to_vec();
            }
            return Ok(units);
        }
        let fits = |units: &[Vec<usize>]| self.costs.total(&self.counts(units)) <= self.goal[1];
        for i in taken {
            if fits(&units) {
                break;
            }
            let visit = &mut state.visits[i];
            let group = &self.groups.all()[visit.group];
            units[visit.group].clone_from(&visit.removed);
            visit.taken = visit.removed.len();
            // Of the last group only what the budget needs.
            let mut count = visit.taken;
            while fits(&units) && count > 0 {
                visit.taken = count;
                count = self.limits.allowed(group, count - 1);
                units[visit.group].truncate(count);
            }
            units[visit.group] = visit.removed[..visit.taken].to_vec();
        }
        Ok(units)
    }
}
