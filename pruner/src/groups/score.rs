//! How much a unit seems to matter, by its weights alone.

use super::{Groups, Member, Role};
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

impl Criterion {
    /// The score of every unit of every group; none of groups that must stay.
    ///
    /// # Errors
    /// When a weight is not of floating-point numbers, or not finite.
    pub fn scores(self, groups: &Groups<'_>) -> Result<Vec<Vec<f64>>> {
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
        let sums: Result<BTreeMap<(&str, usize), Vec<f64>>> = axes
            .into_par_iter()
            .map(|(name, axes)| self.sums(name, &groups.model().weights()[name], &axes))
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
                        let sum: f64 = m.indices(unit).iter().map(|&i| sums[i as usize]).sum();
                        let weight = &groups.model().weights()[&m.weight];
                        let behind = weight.numel() / weight.shape()[m.axis].max(1);
                        let mean = sum / (behind * m.per_unit).max(1) as f64;
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
    ) -> Result<BTreeMap<(&'n str, usize), Vec<f64>>> {
        let values = weight.to_f32().ok_or_else(|| Error::WeightType {
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
        let one = |&axis: &usize| {
            let inner: usize = shape[axis + 1..].iter().product::<usize>().max(1);
            let mut sums = vec![0.0; shape[axis]];
            for (i, run) in values.chunks(inner).enumerate() {
                sums[i % shape[axis]] += run.iter().map(|&v| power(v)).sum::<f64>();
            }
            ((name, axis), sums)
        };
        Ok(axes.iter().map(one).collect())
    }
}
