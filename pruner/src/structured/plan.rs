//! Widths and parameters: what is to be left, the same everywhere, and levels around it.

use super::cost::{LatencyBudget, Limit, Meter};
use super::modules::{Kind, Module};
use super::supernet::{Ladder, Net, Rung};
use crate::search::{Levels, SearchSettings};
use crate::{Error, Result};

/// The most that two results of the same sparsity differ by, as a share of the parameters of the model: half of it to
/// each side.
const TOLERANCE: f64 = 0.005;

/// Neurons go by so many at most where nothing else is said.
const GRAIN: usize = 16;

/// What is to be left of the parameters of all modules, or of their milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// What all modules take.
    pub all: f64,
    /// What is to be left of it.
    pub target: f64,
    /// What the rest of the model takes; of parameters nothing.
    pub rest: f64,
    slack: f64,
    meter: Meter,
    /// What the meter says times this.
    scale: f64,
}

impl Budget {
    pub fn new(net: &Net<'_>, sparsity: f64) -> Budget {
        let all: usize = net.modules.iter().map(Module::parameters).sum();
        let model: usize = net.model.weights().values().map(|w| w.numel()).sum();
        Budget {
            all: all as f64,
            target: ((1.0 - sparsity) * all as f64).round(),
            rest: 0.0,
            slack: (TOLERANCE / 2.0 * model as f64).floor(),
            meter: Meter::Parameters,
            scale: 1.0,
        }
    }

    /// Of milliseconds. What is aimed at lies below the limit by the slack, so that candidates keep it.
    ///
    /// # Errors
    /// When the limit is none, the table is not of the model, or the rest of the model takes as much.
    pub fn of_latency(net: &Net<'_>, budget: &LatencyBudget) -> Result<Budget> {
        let refuse = |what: String| Err(Error::Channels(what));
        let Some(whole) = budget.table.whole(budget.of) else {
            return refuse("the table of latencies is of no language model".into());
        };
        let limit = match budget.limit {
            Limit::Milliseconds(ms) => ms,
            Limit::Share(share) => share * whole,
        };
        if !(limit > 0.0 && limit < whole) {
            return refuse(format!(
                "{limit:.3} ms are asked for; the model takes {whole:.3} as it is"
            ));
        }
        let mut found = Budget {
            all: 0.0,
            target: 0.0,
            rest: 0.0,
            slack: TOLERANCE / 2.0 * whole,
            meter: Meter::new(net, budget)?,
            scale: 1.0,
        };
        let full = |m: &Module| (0..m.units).collect::<Vec<_>>();
        let each = net.modules.iter().enumerate();
        found.all = each
            .map(|(m, one)| found.meter.of(m, one, &full(one)))
            .sum();
        // Layers alone may take longer than where they stand.
        found.scale = (whole / found.all.max(f64::MIN_POSITIVE)).min(1.0);
        found.all *= found.scale;
        found.rest = whole - found.all;
        found.target = limit - found.rest - found.slack;
        if found.target <= 0.0 {
            return refuse(format!(
                "{limit:.3} ms are asked for; {:.3} of {whole:.3} are in no attention and no MLP",
                found.rest
            ));
        }
        Ok(found)
    }

    /// The most that the whole model may take.
    pub fn limit(&self) -> f64 {
        self.rest + self.target + self.slack
    }

    /// What a module takes of the budget with these units left.
    pub fn of(&self, net: &Net<'_>, m: usize, kept: &[usize]) -> f64 {
        self.scale * self.meter.of(m, &net.modules[m], kept)
    }

    /// What modules with these rungs take.
    pub fn cost<'r>(&self, net: &Net<'_>, rungs: impl Iterator<Item = &'r Rung>) -> f64 {
        let each = rungs.enumerate();
        each.map(|(m, r)| self.of(net, m, &r.kept)).sum()
    }

    /// The least and the most that candidates cost, where the first has `start`.
    pub fn range(&self, start: f64) -> (f64, f64) {
        let slack = self.slack.max((start - self.target).abs());
        (self.target - slack, self.target + slack)
    }

    /// Whether it is a fifth of the slack away at most.
    pub fn is_near(&self, found: f64) -> bool {
        (found - self.target).abs() <= self.slack / 5.0
    }

    /// The same share of every attention's atoms, spread where it is no whole number, and of every MLP what is left over.
    ///
    /// # Errors
    /// When the MLPs cannot make up for it.
    pub fn uniform(&self, net: &Net<'_>) -> Result<Vec<usize>> {
        let keep = self.target / self.all.max(f64::MIN_POSITIVE);
        let mut counts = vec![0; net.modules.len()];
        for kind in [Kind::Attention, Kind::Mlp] {
            let mut due = 0.5;
            for (count, m) in counts.iter_mut().zip(&net.modules) {
                if m.kind == kind {
                    let grain = m.grain() * grain(m);
                    due += keep * m.atoms() as f64 / grain as f64;
                    let whole = (due.floor() as usize).min(m.atoms() / grain);
                    due -= whole as f64;
                    *count = (whole * grain).max(least(m));
                }
            }
        }
        if !net.attends(|m| counts[m]) {
            let middle = net.modules.len() / 2;
            let attention = |&m: &usize| net.modules[m].kind == Kind::Attention;
            if let Some(m) = (middle..counts.len()).chain(0..middle).find(attention) {
                counts[m] = net.modules[m].grain();
            }
        }
        let found = self.at(net, &counts);
        self.adjust(net, &mut counts, found)?;
        Ok(counts)
    }

    /// What so many atoms of each module take.
    fn at(&self, net: &Net<'_>, counts: &[usize]) -> f64 {
        let each = counts.iter().enumerate();
        each.map(|(m, &c)| self.of(net, m, &spread(&net.modules[m], c)))
            .sum()
    }

    /// Changes neurons, by as many in every MLP as can be, where `found` is not the target.
    ///
    /// # Errors
    /// When the MLPs cannot make up for it.
    pub fn adjust(&self, net: &Net<'_>, counts: &mut [usize], found: f64) -> Result<()> {
        let mlps: Vec<usize> = (0..counts.len())
            .filter(|&m| net.modules[m].kind == Kind::Mlp)
            .collect();
        let mut off = found - self.target;
        // Evenly spaced: those of a stride first, then those beside them.
        let order: Vec<usize> = (0..mlps.len())
            .map(|i| mlps[i * stride(mlps.len()) % mlps.len()])
            .collect();
        for turn in 0.. {
            let mut moved = false;
            for &m in &order {
                let module = &net.modules[m];
                let grain = grain(module);
                let (low, high) = match counts[m] >= grain {
                    true => (counts[m] - grain, counts[m]),
                    false => (counts[m], counts[m] + grain),
                };
                let of = |count: usize| self.of(net, m, &spread(module, count));
                let worth = of(high) - of(low);
                if off.abs() < worth / 2.0 {
                    return Ok(());
                }
                if off > 0.0 && counts[m] >= grain + least(module) {
                    (counts[m], off, moved) = (counts[m] - grain, off - worth, true);
                } else if off < 0.0 && counts[m] + grain <= module.units {
                    (counts[m], off, moved) = (counts[m] + grain, off + worth, true);
                }
            }
            if !moved || turn > 1 << 20 {
                break;
            }
        }
        match off.abs() <= self.slack {
            true if matches!(self.meter, Meter::Milliseconds(_)) => Ok(()),
            _ => Err(self.refuse(found)),
        }
    }

    /// Moves MLPs up or down by levels until `levels` are inside the range, or as near as levels come to it.
    pub fn balance(&self, net: &Net<'_>, supernet: &[Vec<Rung>], mut levels: Levels) -> Levels {
        let off = |l: &Levels| {
            let rungs = supernet.iter().zip(l).map(|(r, &l)| &r[l]);
            self.cost(net, rungs) - self.target
        };
        let mlps: Vec<usize> = (0..levels.len())
            .filter(|&m| net.modules[m].kind == Kind::Mlp)
            .collect();
        for turn in 0..mlps.len() * 16 {
            let found = off(&levels);
            if found.abs() <= self.slack {
                break;
            }
            let m = mlps[turn * stride(mlps.len()) % mlps.len()];
            let mut other = levels.clone();
            if found > 0.0 && levels[m] + 1 < supernet[m].len() {
                other[m] += 1;
            } else if found < 0.0 && levels[m] > 0 {
                other[m] -= 1;
            }
            if off(&other).abs() < found.abs() {
                levels = other;
            }
        }
        levels
    }

    /// Refuses what is further from the target than results of one sparsity may be.
    ///
    /// # Errors
    /// When it is.
    pub fn near(&self, found: f64) -> Result<()> {
        match (found - self.target).abs() <= self.slack {
            true => Ok(()),
            false => Err(self.refuse(found)),
        }
    }

    fn refuse(&self, found: f64) -> Error {
        let (what, places) = match self.meter {
            Meter::Parameters => ("parameters", 0),
            Meter::Milliseconds(_) => ("ms of attentions and MLPs", 3),
        };
        Error::Channels(format!(
            "{:.places$} of {:.places$} {what} are to be left; heads and neurons leave {found:.places$}",
            self.target, self.all
        ))
    }
}

/// A step through so many places that comes to all of them.
fn stride(n: usize) -> usize {
    let prime = [7, 5, 3, 11, 13]
        .into_iter()
        .find(|p| n > *p && !n.is_multiple_of(*p));
    prime.unwrap_or(1)
}

/// Heads of which the keys are spread as far as can be.
fn spread(m: &Module, atoms: usize) -> Vec<usize> {
    let all = m.atoms().max(1);
    let picked: Vec<usize> = (0..atoms).map(|i| i * all / atoms).collect();
    m.units_of(&picked)
}

/// Neurons that go at a time; heads go by one.
fn grain(m: &Module) -> usize {
    match m.kind {
        Kind::Attention => 1,
        Kind::Mlp => (m.units / 64).clamp(1, GRAIN),
    }
}

/// The fewest atoms of a module.
pub(super) fn least(m: &Module) -> usize {
    match m.optional {
        true => 0,
        false => m.grain(),
    }
}

/// One level for each module.
pub(super) fn single(counts: &[usize]) -> Vec<Ladder> {
    let one = |&c: &usize| Ladder {
        counts: vec![c],
        centre: 0,
    };
    counts.iter().map(one).collect()
}

/// Levels around `counts` for a round, from 0.
pub(super) fn ladders(
    net: &Net<'_>,
    counts: &[usize],
    search: &SearchSettings,
    round: usize,
) -> Vec<Ladder> {
    let share = search.interval / 2f64.powi(round as i32);
    let one = |(m, &count): (&Module, &usize)| {
        let grain = m.grain() * grain(m);
        let interval = (share * m.atoms() as f64 / grain as f64).round().max(1.0) as usize * grain;
        let up = ((m.atoms() - count) / interval).min(search.levels);
        let down = ((count - least(m).min(count)) / interval).min(search.levels);
        Ladder {
            counts: (0..=up + down)
                .map(|l| count + up * interval - l * interval)
                .collect(),
            centre: up,
        }
    };
    net.modules.iter().zip(counts).map(one).collect()
}
