//! Evolution over levels: budget-preserving swaps, more tokens for fewer candidates, the parent never lost.

use super::surrogate::{Sample, Surrogate};
use super::{Evolution, Judge, Levels, Space};
use crate::random::Random;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;

/// With a surrogate: how many candidates are drawn for each that is taken, and of how many times the swaps.
const DRAWN: usize = 50;
const WIDER: usize = 3;

/// The most parts that lose a level in one trade.
const TRADED: usize = 3;

/// Where a search is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub digest: String,
    /// Generations that are done.
    pub generation: usize,
    pub parent: Levels,
    /// The divergence of the parent at each generation's end, of the last stage's windows.
    pub history: Vec<f64>,
}

/// One evaluation, as it stands in the log.
#[derive(Serialize, Deserialize)]
struct Row {
    round: usize,
    generation: usize,
    stage: usize,
    tokens: usize,
    /// What it takes of the budget.
    cost: f64,
    divergence: f64,
    levels: Levels,
}

/// A search over one supernet.
pub(crate) struct Search<'a> {
    pub judge: &'a Judge<'a>,
    pub space: &'a Space<'a>,
    pub evolution: &'a Evolution,
    pub seed: u64,
    pub round: usize,
    /// The least and the most that candidates cost.
    pub budget: (f64, f64),
    /// Where the state is kept.
    pub state: PathBuf,
    /// Where evaluations go, as JSON lines.
    pub log: PathBuf,
}

impl Search<'_> {
    /// The best levels from `start` on. `tell` gets the generations done, and the divergence of the parent.
    pub fn run(
        &self,
        start: Levels,
        digest: String,
        tell: &mut dyn FnMut(usize, Option<f64>),
    ) -> Result<State> {
        let fresh = State {
            digest: digest.clone(),
            generation: 0,
            parent: start,
            history: Vec::new(),
        };
        let read = std::fs::read_to_string(&self.state).ok();
        let known: Option<State> = read.and_then(|t| serde_json::from_str(&t).ok());
        let mut state = known.filter(|s| s.digest == digest).unwrap_or(fresh);
        while state.generation < self.evolution.generations {
            tell(state.generation, state.history.last().copied());
            let (best, divergence) = self.generation(&state)?;
            state.parent = best;
            state.history.push(divergence);
            state.generation += 1;
            super::write_json(&self.state, &state)?;
        }
        tell(state.generation, state.history.last().copied());
        Ok(state)
    }

    /// The best of a generation and of its parent.
    fn generation(&self, state: &State) -> Result<(Levels, f64)> {
        let place = [self.round as u64, state.generation as u64];
        let mut random = Random::new(self.seed, &place);
        let mut pool = self.offspring(state, &mut random);
        let last = self.evolution.stages.len() - 1;
        let mut rows = String::new();
        let mut best = (state.parent.clone(), f64::NAN);
        for (at, stage) in self.evolution.stages.iter().enumerate() {
            if at == last {
                pool.push(state.parent.clone());
            }
            let count = pool.len();
            if at == 0 && self.evolution.surrogate {
                if state.generation == 0 {
                    pool.extend(self.probes(&state.parent));
                }
                pool.push(state.parent.clone());
            }
            let mut order: Vec<usize> = (0..self.judge.windows()).collect();
            random.shuffle(&mut order);
            order.truncate(stage.tokens.div_ceil(self.judge.window()).max(1));
            let candidates: Vec<&Levels> = pool.iter().collect();
            let found = self.judge.divergences(self.space, &candidates, &order)?;
            for (levels, &divergence) in pool.iter().zip(&found) {
                let row = Row {
                    round: self.round,
                    generation: state.generation,
                    stage: at,
                    tokens: order.len() * self.judge.window(),
                    cost: self.space.cost(levels),
                    divergence,
                    levels: levels.clone(),
                };
                rows += &serde_json::to_string(&row).unwrap_or_default();
                rows.push('\n');
            }
            let mut ranks: Vec<usize> = (0..count).collect();
            ranks.sort_by(|&a, &b| found[a].total_cmp(&found[b]).then(a.cmp(&b)));
            ranks.truncate(if at == last { 1 } else { stage.keep.max(1) });
            // Where nothing fits beside the parent, it alone goes on.
            if let Some(&first) = ranks.first() {
                best.1 = found[first];
            }
            pool = ranks.into_iter().map(|i| pool[i].clone()).collect();
        }
        best.0 = pool.swap_remove(0);
        self.append(state.generation, &rows)?;
        Ok(best)
    }

    /// Every part a level up and a level down, one at a time: outside the budget, to learn from.
    fn probes(&self, parent: &Levels) -> Vec<Levels> {
        let mut probes = Vec::new();
        for m in 0..parent.len() {
            for level in [parent[m].checked_sub(1), Some(parent[m] + 1)] {
                if let Some(level) = level.filter(|l| *l < self.space.costs[m].len()) {
                    let mut levels = parent.clone();
                    levels[m] = level;
                    probes.extend((self.space.allowed)(&levels).then_some(levels));
                }
            }
        }
        probes
    }

    /// Candidates that differ from the parent and from each other, inside the budget.
    fn offspring(&self, state: &State, random: &mut Random) -> Vec<Levels> {
        let (all, parent) = (self.evolution.offspring, &state.parent);
        let mut seen: HashSet<Levels> = HashSet::from([parent.clone()]);
        let surrogate = match self.evolution.surrogate {
            true => Surrogate::fit(parent, &self.samples(state.generation)),
            false => None,
        };
        let mut made = Vec::new();
        if state.generation == 0 {
            let splits = self.space.splits(parent, self.budget, random);
            made.extend(splits.into_iter().filter(|l| seen.insert(l.clone())));
        }
        if let Some(surrogate) = surrogate {
            let swaps = self.evolution.swaps * WIDER;
            let drawn = self.mutants(parent, swaps, all * DRAWN, &mut seen, random);
            let guess = |l: Levels| (surrogate.predict(&l), l);
            let mut ranked: Vec<(f64, Levels)> = drawn.into_iter().map(guess).collect();
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
            made.extend(ranked.into_iter().map(|r| r.1).take(all * 3 / 4));
        }
        let rest = all.saturating_sub(made.len());
        made.extend(self.mutants(parent, self.evolution.swaps, rest, &mut seen, random));
        made
    }

    /// So many candidates at most, of so many swaps at most.
    fn mutants(
        &self,
        parent: &Levels,
        swaps: usize,
        count: usize,
        seen: &mut HashSet<Levels>,
        random: &mut Random,
    ) -> Vec<Levels> {
        let (mut made, most) = (Vec::new(), swaps.max(1));
        for _ in 0..count * 20 {
            if made.len() == count {
                break;
            }
            let swaps = 1 + random.below(most).min(random.below(most));
            let mut levels = parent.clone();
            for _ in 0..swaps {
                match random.below(2) == 0 {
                    true => self.trade(&mut levels, random),
                    false => self.swap(&mut levels, random),
                }
            }
            if self.space.fits(&levels, self.budget) && seen.insert(levels.clone()) {
                made.push(levels);
            }
        }
        made
    }

    /// The evaluations of the round before a generation. What a killed run left of a line ends them.
    fn samples(&self, generation: usize) -> Vec<Sample> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let rows = text
            .lines()
            .map_while(|l| serde_json::from_str::<Row>(l).ok());
        let own = |r: &Row| r.round == self.round && r.generation < generation;
        rows.filter(own)
            .map(|r| Sample {
                group: (r.generation, r.stage),
                tokens: r.tokens,
                levels: r.levels,
                divergence: r.divergence,
            })
            .collect()
    }

    /// Parts that can go a level down.
    fn down(&self, levels: &Levels) -> Vec<usize> {
        let all = 0..levels.len();
        all.filter(|&m| levels[m] + 1 < self.space.costs[m].len())
            .collect()
    }

    /// One part loses a level and another of its kind gains one of the same size.
    fn swap(&self, levels: &mut Levels, random: &mut Random) {
        let size = |m: usize, l: usize| self.space.sizes[m][l];
        let kinds = &self.space.kinds;
        let down = self.down(levels);
        if down.is_empty() {
            return;
        }
        let a = down[random.below(down.len())];
        let step = size(a, levels[a]) - size(a, levels[a] + 1);
        let up: Vec<usize> = (0..levels.len())
            .filter(|&m| {
                let same = m != a && kinds[m] == kinds[a] && levels[m] > 0;
                same && size(m, levels[m] - 1) - size(m, levels[m]) == step
            })
            .collect();
        if !up.is_empty() {
            levels[up[random.below(up.len())]] -= 1;
            levels[a] += 1;
        }
    }

    /// Up to [`TRADED`] parts lose a level, and others gain some while the budget has room.
    fn trade(&self, levels: &mut Levels, random: &mut Random) {
        let mut touched = Vec::new();
        for _ in 0..=random.below(TRADED) {
            let mut down = self.down(levels);
            down.retain(|m| !touched.contains(m));
            if down.is_empty() {
                break;
            }
            let a = down[random.below(down.len())];
            levels[a] += 1;
            touched.push(a);
        }
        let mut cost = self.space.cost(levels);
        loop {
            let gain = |m: usize, l: usize| self.space.costs[m][l - 1] - self.space.costs[m][l];
            let up: Vec<usize> = (0..levels.len())
                .filter(|m| levels[*m] > 0 && !touched.contains(m))
                .filter(|&m| cost + gain(m, levels[m]) <= self.budget.1)
                .collect();
            if up.is_empty() {
                break;
            }
            let b = up[random.below(up.len())];
            cost += gain(b, levels[b]);
            levels[b] -= 1;
            touched.push(b);
        }
    }

    /// Adds a generation to the log; rows that a killed run wrote of it, or of later ones, go first.
    fn append(&self, generation: usize, rows: &str) -> Result<()> {
        let io = |action| {
            move |source| Error::Io {
                path: self.log.clone(),
                action,
                source,
            }
        };
        let there = std::fs::read_to_string(&self.log).unwrap_or_default();
        let earlier = |line: &&str| {
            let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
            let at =
                |r: &serde_json::Value| Some((r["round"].as_u64()?, r["generation"].as_u64()?));
            let place = (self.round as u64, generation as u64);
            row.as_ref().and_then(at).is_some_and(|p| p < place)
        };
        let kept = there.lines().filter(earlier).count();
        if kept < there.lines().count() {
            let lines: String = there.lines().take(kept).map(|l| format!("{l}\n")).collect();
            std::fs::write(&self.log, lines).map_err(io("write"))?;
        }
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log);
        let mut file = file.map_err(io("write"))?;
        file.write_all(rows.as_bytes()).map_err(io("write"))
    }
}
