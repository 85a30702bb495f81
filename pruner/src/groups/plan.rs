//! Which units go, by one score for each and one target for the model.

use super::cost::{Cost, Meter};
use super::{Criterion, Groups, Limits, Removed};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the units of different groups compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every group loses the same share of its units.
    Uniform,
    /// The units of all groups are ranked together.
    Global,
}

/// What may be left of a model, as a share of what it has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Of its multiply-accumulates.
    Macs(f64),
    /// Of its parameters.
    Parameters(f64),
}

impl Target {
    fn share(self) -> f64 {
        let (Target::Macs(share) | Target::Parameters(share)) = self;
        share
    }

    fn of(self, cost: Cost) -> u64 {
        match self {
            Target::Macs(_) => cost.macs,
            Target::Parameters(_) => cost.parameters,
        }
    }
}

/// The units that go from a model.
#[derive(Clone, Debug)]
pub struct ChannelPlan {
    /// The units.
    pub removed: Removed,
    /// The model as it is.
    pub before: Cost,
    /// The model without them.
    pub after: Cost,
}

impl ChannelPlan {
    /// Takes the units of the lowest scores until `target` is met, and no more. Of equal scores the earlier unit
    /// goes first.
    ///
    /// # Errors
    /// When the target is no share, when the limits keep too much for it, or when a weight cannot be ranked.
    pub fn new(
        groups: &Groups<'_>,
        criterion: Criterion,
        scope: Scope,
        target: Target,
        limits: &Limits,
    ) -> Result<ChannelPlan> {
        limits.check()?;
        if !(0.0..=1.0).contains(&target.share()) {
            return Err(Error::Channels(format!(
                "{} is no share from 0 to 1 of what may be left",
                target.share()
            )));
        }
        let meter = Meter::new(groups)?;
        let all = groups.all();
        let before = meter.total(&vec![0; all.len()]);
        let scores = criterion.scores(groups)?;
        let mut ranks: Vec<Vec<usize>> = Vec::with_capacity(all.len());
        for scores in &scores {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
            ranks.push(order);
        }
        let allowed = |wanted: &[usize]| -> Vec<usize> {
            let each = all.iter().zip(wanted);
            each.map(|(g, &n)| limits.allowed(g, n)).collect()
        };
        let most: Vec<usize> = allowed(&all.iter().map(|g| g.units).collect::<Vec<_>>());
        let goal = (target.share() * target.of(before) as f64).floor() as u64;
        let fits = |removed: &[usize]| target.of(meter.total(removed)) <= goal;
        if !fits(&most) {
            let reached = target.of(meter.total(&most)) as f64 / target.of(before).max(1) as f64;
            return Err(Error::Channels(format!(
                "{:.4} of the model may be left, but the groups and limits keep {reached:.4}",
                target.share()
            )));
        }
        // Both walks take more with every step, so that the first step that fits can be looked for by halves.
        const STEPS: usize = 1 << 20;
        let pool: Vec<(usize, f64)> = match scope {
            Scope::Uniform => Vec::new(),
            Scope::Global => {
                let mut pool: Vec<(usize, usize, f64)> = Vec::new();
                for (group, order) in ranks.iter().enumerate() {
                    pool.extend(order.iter().map(|&u| (group, u, scores[group][u])));
                }
                pool.sort_by(|a, b| a.2.total_cmp(&b.2).then((a.0, a.1).cmp(&(b.0, b.1))));
                pool.into_iter()
                    .map(|(group, _, score)| (group, score))
                    .collect()
            }
        };
        let wanted = |step: usize| -> Vec<usize> {
            match scope {
                Scope::Uniform => {
                    let share = |n: usize| (n as u128 * step as u128 / STEPS as u128) as usize;
                    all.iter().map(|g| share(g.units)).collect()
                }
                Scope::Global => {
                    let mut counts = vec![0; all.len()];
                    for (group, _) in &pool[..step] {
                        counts[*group] += 1;
                    }
                    counts
                }
            }
        };
        let (mut low, mut high) = match scope {
            Scope::Uniform => (0, STEPS),
            Scope::Global => (0, pool.len()),
        };
        while low < high {
            let middle = (low + high) / 2;
            match fits(&allowed(&wanted(middle))) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let counts = allowed(&wanted(high));
        let after = meter.total(&counts);
        let removed = ranks.iter().zip(&counts);
        let removed = removed.map(|(order, &n)| order[..n.min(order.len())].to_vec());
        Ok(ChannelPlan {
            removed: Removed::new(groups, removed.collect())?,
            before,
            after,
        })
    }
}
