//! Widths and parameters: what is to be left, the same everywhere, and levels around it.

use super::SearchSettings;
use super::evaluate::Levels;
use super::modules::{Kind, Module};
use super::supernet::{Ladder, Net, Rung};
use crate::{Error, Result};

/// The most that two results of the same sparsity differ by, as a share of the parameters of the model: half of it to
/// each side.
const TOLERANCE: f64 = 0.005;

/// Neurons go by so many at most where nothing else is said.
const GRAIN: usize = 16;

/// What is to be left of the parameters of all modules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Parameters of all modules.
    pub all: usize,
    /// Those that are to be left.
    pub target: usize,
    slack: usize,
}

impl Budget {
    pub fn new(net: &Net<'_>, sparsity: f64) -> Budget {
        let all: usize = net.modules.iter().map(Module::parameters).sum();
        let model: usize = net.model.weights().values().map(|w| w.numel()).sum();
        Budget {
            all,
            target: ((1.0 - sparsity) * all as f64).round() as usize,
            slack: (TOLERANCE / 2.0 * model as f64) as usize,
        }
    }

    /// The fewest and the most parameters of candidates, where the first has `start`.
    pub fn range(&self, start: usize) -> (usize, usize) {
        let slack = self.slack.max(start.abs_diff(self.target));
        (self.target.saturating_sub(slack), self.target + slack)
    }

    /// Whether so many are a fifth of the slack away at most.
    pub fn is_near(&self, parameters: usize) -> bool {
        parameters.abs_diff(self.target) <= self.slack / 5
    }

    /// The same share of every attention's atoms, spread where it is no whole number, and of every MLP what is left over.
    ///
    /// # Errors
    /// When the MLPs cannot make up for it.
    pub fn uniform(&self, net: &Net<'_>) -> Result<Vec<usize>> {
        let keep = self.target as f64 / self.all.max(1) as f64;
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
        let parameters = |counts: &[usize]| -> usize {
            let pairs = net.modules.iter().zip(counts);
            pairs.map(|(m, &c)| m.left(&spread(m, c))).sum()
        };
        let found = parameters(&counts);
        self.adjust(net, &mut counts, found)?;
        Ok(counts)
    }

    /// Changes neurons, by as many in every MLP as can be, where `found` parameters are not the target.
    ///
    /// # Errors
    /// When the MLPs cannot make up for it.
    pub fn adjust(&self, net: &Net<'_>, counts: &mut [usize], found: usize) -> Result<()> {
        let mlps: Vec<usize> = (0..counts.len())
            .filter(|&m| net.modules[m].kind == Kind::Mlp)
            .collect();
        let mut off = found as f64 - self.target as f64;
        // Evenly spaced: those of a stride first, then those beside them.
        let order: Vec<usize> = (0..mlps.len())
            .map(|i| mlps[i * stride(mlps.len()) % mlps.len()])
            .collect();
        for turn in 0.. {
            let mut moved = false;
            for &m in &order {
                let module = &net.modules[m];
                let grain = grain(module);
                let worth = (module.parameters() / module.units.max(1) * grain) as f64;
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
        Err(self.refuse(found))
    }

    /// Moves MLPs up or down by levels until `levels` are inside the range, or as near as levels come to it.
    pub fn balance(&self, net: &Net<'_>, supernet: &[Vec<Rung>], mut levels: Levels) -> Levels {
        let off = |l: &Levels| {
            let rungs = supernet.iter().zip(l).map(|(r, &l)| &r[l]);
            net.parameters(rungs) as i64 - self.target as i64
        };
        let mlps: Vec<usize> = (0..levels.len())
            .filter(|&m| net.modules[m].kind == Kind::Mlp)
            .collect();
        for turn in 0..mlps.len() * 16 {
            let found = off(&levels);
            if found.unsigned_abs() as usize <= self.slack {
                break;
            }
            let m = mlps[turn * stride(mlps.len()) % mlps.len()];
            let mut other = levels.clone();
            if found > 0 && levels[m] + 1 < supernet[m].len() {
                other[m] += 1;
            } else if found < 0 && levels[m] > 0 {
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
    pub fn near(&self, parameters: usize) -> Result<()> {
        match parameters.abs_diff(self.target) <= self.slack {
            true => Ok(()),
            false => Err(self.refuse(parameters)),
        }
    }

    fn refuse(&self, found: usize) -> Error {
        Error::Channels(format!(
            "{} of {} parameters are to be left; heads and neurons leave {found}",
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
