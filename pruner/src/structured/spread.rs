//! Widths without a search: the same share everywhere, by a ranking across modules, or by whole blocks.

use super::modules::{Kind, Module};
use super::plan::{Budget, least};
use super::supernet::Net;
use crate::Result;
use crate::calibration::Moments;
use crate::matrix::Matrix;
use serde::{Deserialize, Serialize};

/// How the widths of modules are told where no search looks for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// The same share of every attention, and of every MLP.
    #[default]
    Even,
    /// The lowest of all heads and neurons by [`Fluctuation`](super::Score::Fluctuation), standardised within each module
    /// (FLAP, arXiv 2312.11983).
    Ranked,
    /// Whole blocks, those that change the direction of the states least first (ShortGPT, arXiv 2403.03853); of the last ones
    /// an attention or an MLP alone where that comes nearer.
    Blocks,
}

impl Spread {
    pub(super) fn is_even(&self) -> bool {
        *self == Spread::Even
    }
}

/// Units that go together, and their rank.
struct Bunch {
    module: usize,
    rank: f64,
}

/// Atoms of each module that stay where the lowest of all go.
pub(super) fn ranked(net: &Net<'_>, budget: &Budget) -> Result<Vec<usize>> {
    let mut bunches: Vec<Bunch> = Vec::new();
    // Bunches of each module in the order in which they go.
    let mut goes: Vec<Vec<Vec<usize>>> = vec![Vec::new(); net.modules.len()];
    net.watch(&mut |block| {
        for &(m, input) in block.members {
            let scores = atoms(&net.modules[m], &net.dense(m), &block.taps.fitted[input]);
            for (atoms, rank) in in_order(&net.modules[m], &scores) {
                bunches.push(Bunch { module: m, rank });
                goes[m].push(atoms);
            }
        }
    })?;
    // A stable sort: bunches of a module stay in their order.
    bunches.sort_by(|a, b| a.rank.total_cmp(&b.rank));
    let mut kept: Vec<Vec<bool>> = (net.modules.iter())
        .map(|m| vec![true; m.atoms()])
        .collect();
    let mut gone = vec![0; net.modules.len()];
    let count = |k: &[bool]| k.iter().filter(|k| **k).count();
    let (mut left, target) = (budget.all as usize, budget.target as usize);
    for Bunch { module, .. } in bunches {
        let m = &net.modules[module];
        let atoms = &goes[module][gone[module]];
        let stays = count(&kept[module]);
        if stays < atoms.len() + least(m)
            || (stays == atoms.len()
                && !net.attends(|m| if m == module { 0 } else { count(&kept[m]) }))
        {
            continue;
        }
        let parameters = |kept: &[bool]| -> usize {
            let of: Vec<usize> = (0..kept.len()).filter(|&a| kept[a]).collect();
            m.left(&m.units_of(&of))
        };
        let before = match m.kind {
            Kind::Attention => parameters(&kept[module]),
            Kind::Mlp => stays * (m.parameters() / m.units.max(1)),
        };
        let mut other = kept[module].clone();
        atoms.iter().for_each(|&a| other[a] = false);
        let after = match m.kind {
            Kind::Attention => parameters(&other),
            Kind::Mlp => (stays - atoms.len()) * (m.parameters() / m.units.max(1)),
        };
        let next = left - (before - after);
        // The one that crosses the target goes where that is nearer.
        if next.abs_diff(target) > left.abs_diff(target) {
            break;
        }
        (kept[module], left) = (other, next);
        gone[module] += 1;
    }
    Ok(kept.iter().map(|k| count(k)).collect())
}

/// The rank of each atom: the mean over its channels of their standardised fluctuation.
fn atoms(module: &Module, dense: &Matrix, inputs: &Moments) -> Vec<f64> {
    let mut norms = vec![0.0; dense.cols];
    for row in dense.data.chunks_exact(dense.cols.max(1)) {
        for (n, w) in norms.iter_mut().zip(row) {
            *n += w * w;
        }
    }
    let spreads = inputs.spreads();
    let scores: Vec<f64> = norms.iter().zip(&spreads).map(|(n, s)| n * s).collect();
    let n = scores.len().max(1) as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n).sqrt();
    let deviation = deviation.max(f64::MIN_POSITIVE);
    let one = |channels: Vec<usize>| {
        let all = channels.iter().map(|&c| (scores[c] - mean) / deviation);
        all.sum::<f64>() / channels.len().max(1) as f64
    };
    module.atom_inputs().into_iter().map(one).collect()
}

/// Atoms that go together, the lowest first, with their mean rank: one by one, or one of each class.
fn in_order(module: &Module, scores: &[f64]) -> Vec<(Vec<usize>, f64)> {
    let sorted = |mut atoms: Vec<usize>| {
        atoms.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        atoms
    };
    let Some(classes) = &module.classes else {
        let all = sorted((0..scores.len()).collect());
        return all.into_iter().map(|a| (vec![a], scores[a])).collect();
    };
    let all = module.grain();
    let of = |c: usize| sorted((0..scores.len()).filter(|&a| classes[a] == c).collect());
    let each: Vec<Vec<usize>> = (0..all).map(of).collect();
    let count = each.iter().map(Vec::len).min().unwrap_or(0);
    (0..count)
        .map(|i| {
            let atoms: Vec<usize> = each.iter().map(|c| c[i]).collect();
            let rank = atoms.iter().map(|&a| scores[a]).sum::<f64>() / all as f64;
            (atoms, rank)
        })
        .collect()
}

/// Atoms of each module that stay where whole blocks go.
pub(super) fn blocks(net: &Net<'_>, budget: &Budget) -> Result<Vec<usize>> {
    let mut influence: Vec<f64> = Vec::new();
    net.watch(&mut |block| {
        let after = block.after;
        influence.push(1.0 - similarity(block.before, after.windows(), after.width()));
    })?;
    let members = net.by_block();
    let mut order: Vec<usize> = (0..members.len())
        .filter(|&b| members[b].iter().all(|&m| net.modules[m].optional))
        .collect();
    order.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]).then(a.cmp(&b)));
    let mut counts: Vec<usize> = net.modules.iter().map(Module::atoms).collect();
    let (mut left, target) = (budget.all as usize, budget.target as usize);
    for block in order {
        let members = &members[block];
        // The nearest of nothing, one of its modules, and all of it.
        let mut ways: Vec<Vec<usize>> = vec![Vec::new()];
        ways.extend(members.iter().map(|&m| vec![m]));
        ways.push(members.clone());
        ways.retain(|w| net.attends(|m| if w.contains(&m) { 0 } else { counts[m] }));
        let size =
            |way: &Vec<usize>| -> usize { way.iter().map(|&m| net.modules[m].parameters()).sum() };
        let off = |way: &Vec<usize>| (left - size(way)).abs_diff(target);
        let way = match left - size(members) >= target && ways.contains(members) {
            true => members.clone(),
            false => ways.into_iter().min_by_key(off).unwrap_or_default(),
        };
        left -= size(&way);
        way.iter().for_each(|&m| counts[m] = 0);
        if way.is_empty() {
            break;
        }
    }
    budget.near(left as f64)?;
    Ok(counts)
}

/// The mean over tokens of the cosine between states before and after a block.
fn similarity(before: &[Vec<f32>], after: &[Vec<f32>], width: usize) -> f64 {
    let (mut sum, mut tokens) = (0.0, 0usize);
    for (a, b) in before.iter().zip(after) {
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let pairs = a.iter().zip(b);
                pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let norms = (dot(a, a) * dot(b, b)).sqrt();
            sum += dot(a, b) / norms.max(f64::MIN_POSITIVE);
            tokens += 1;
        }
    }
    sum / tokens.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_is_the_mean_of_cosines() {
        let before = vec![vec![1.0, 0.0, 3.0, 4.0], vec![0.0, 2.0]];
        let after = vec![vec![5.0, 0.0, -4.0, 3.0], vec![0.0, -1.0]];
        assert_eq!(similarity(&before, &after, 2), 0.0);
        let after = vec![vec![1.0, 1.0, 6.0, 8.0], vec![0.0, 1.0]];
        let wanted = (0.5f64.sqrt() + 2.0) / 3.0;
        assert!((similarity(&before, &after, 2) - wanted).abs() < 1e-12);
    }
}
