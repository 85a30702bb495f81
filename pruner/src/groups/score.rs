//! How much a unit seems to matter, by its weights alone.

use super::{Groups, Member, Removed, Role};
use crate::{Error, Result};
use lacuna::model::Weight;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What units are ranked by. Only weights of two or more axes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The mean magnitude of the weights that make it, summed over the layers of the group.
    L1,
    /// The root of the mean square of the weights that make it, summed over the layers of the group.
    L2,
    /// The sum of squares of the weights that make and of those that read it, the mean over both, relative to
    /// the mean of the group (DepGraph, arXiv 2301.12900).
    GroupNorm,
}

/// Sums over what is left of a weight, by index of an axis.
struct Sums {
    by_index: Vec<f64>,
    /// Elements that are left at an index.
    behind: usize,
}

impl Criterion {
    /// The score of every unit of every group; none of groups that must stay.
    ///
    /// # Errors
    /// When a weight is not of floating-point numbers, or not finite.
    pub fn scores(self, groups: &Groups<'_>) -> Result<Vec<Vec<f64>>> {
        self.scores_left(groups, &Removed::none(groups))
    }

    /// The same of the network that is left without the units `removed`: what went with them does not count.
    /// The scores of those units themselves say nothing.
    ///
    /// # Errors
    /// As [`Criterion::scores`]; and when the units are of another model.
    pub fn scores_left(self, groups: &Groups<'_>, removed: &Removed) -> Result<Vec<Vec<f64>>> {
        let cutter = groups.cutter(removed)?;
        let all = groups.all();
        let counted = |m: &Member| {
            let reads = m.role == Role::Input && self == Criterion::GroupNorm;
            let axes = groups.model().weights()[&m.weight].shape().len();
            axes >= 2 && (reads || m.role == Role::Output)
        };
        let mut axes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for member in all
            .iter()
            .filter(|g| g.reason.is_none())
            .flat_map(|g| &g.members)
        {
            let own = axes.entry(&member.weight).or_default();
            if counted(member) && !own.contains(&member.axis) {
                own.push(member.axis);
            }
        }
        axes.retain(|_, axes| !axes.is_empty());
        let sums: Result<BTreeMap<(&str, usize), Sums>> = axes
            .into_par_iter()
            .map(|(name, axes)| {
                let kept: Vec<Option<Vec<usize>>> = (groups.coupling.weight_axes(name).iter())
                    .map(|axis| cutter.kept(axis))
                    .collect();
                self.sums(name, &groups.model().weights()[name], &axes, &kept)
            })
            .try_reduce(BTreeMap::new, |mut a, b| {
                a.extend(b);
                Ok(a)
            });
        let sums = sums?;
        let of_group = |(at, group): (usize, &super::Group)| {
            if all[at].reason.is_some() {
                return Vec::new();
            }
            let members: Vec<&Member> = group.members.iter().filter(|m| counted(m)).collect();
            let mut scores: Vec<f64> = (0..group.units)
                .map(|unit| {
                    let of = |m: &&Member| {
                        let sums = &sums[&(m.weight.as_str(), m.axis)];
                        let own = m.indices(unit).iter();
                        let sum: f64 = own.map(|&i| sums.by_index[i as usize]).sum();
                        let mean = sum / (sums.behind * m.per_unit).max(1) as f64;
                        match self {
                            Criterion::L1 => mean,
                            Criterion::L2 => mean.sqrt(),
                            Criterion::GroupNorm => sum / members.len() as f64,
                        }
                    };
                    members.iter().map(of).sum()
                })
                .collect();
            if self == Criterion::GroupNorm {
                let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
                if mean > 0.0 {
                    scores.iter_mut().for_each(|s| *s /= mean);
                }
            }
            scores
        };
        Ok(all.iter().enumerate().map(of_group).collect())
    }

    /// Sums of magnitudes or squares by index of each axis.
    fn sums<'n>(
        self,
        name: &'n str,
        weight: &Weight,
        axes: &[usize],
        kept: &[Option<Vec<usize>>],
    ) -> Result<BTreeMap<(&'n str, usize), Sums>> {
        let mut values = weight.to_f32().ok_or_else(|| Error::WeightType {
            weight: name.to_owned(),
            dtype: weight.dtype(),
        })?;
        weight.release();
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                weight: name.to_owned(),
                index,
                value: values[index],
            });
        }
        let power = |v: f32| match self {
            Criterion::L1 => f64::from(v.abs()),
            Criterion::L2 | Criterion::GroupNorm => f64::from(v) * f64::from(v),
        };
        let shape = weight.shape();
        let mut left = shape.to_vec();
        for (axis, kept) in kept.iter().enumerate() {
            let Some(kept) = kept else { continue };
            left[axis] = kept.len();
            let inner: usize = shape[axis + 1..].iter().product::<usize>().max(1);
            for (i, run) in values.chunks_mut(inner).enumerate() {
                if kept.binary_search(&(i % shape[axis])).is_err() {
                    run.fill(0.0);
                }
            }
        }
        let one = |&axis: &usize| {
            let inner: usize = shape[axis + 1..].iter().product::<usize>().max(1);
            let mut sums = vec![0.0; shape[axis]];
            for (i, run) in values.chunks(inner).enumerate() {
                sums[i % shape[axis]] += run.iter().map(|&v| power(v)).sum::<f64>();
            }
            let behind = left.iter().product::<usize>() / left[axis].max(1);
            let sums = Sums {
                by_index: sums,
                behind,
            };
            ((name, axis), sums)
        };
        Ok(axes.iter().map(one).collect())
    }
}
