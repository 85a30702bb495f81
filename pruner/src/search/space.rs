//! What a search chooses from.

use crate::Result;
use crate::random::Random;
use lacuna::Model;
use std::collections::BTreeSet;

/// The level of each part, 0 being the fullest.
pub(crate) type Levels = Vec<usize>;

/// How far [`Space::splits`] moves all parts of a kind, in levels.
const SHIFTS: [isize; 4] = [-2, -1, 1, 2];

/// Makes a block's model with some of the parts at these levels, as pairs of part and level.
type Apply<'a> = dyn Fn(&Model, &[(usize, usize)]) -> Result<Model> + Sync + 'a;

/// What a search chooses from.
pub(crate) struct Space<'a> {
    /// By part and level what it takes of the budget.
    pub costs: Vec<Vec<f64>>,
    /// By part and level its size: where a step of a part is as large as one of another of its kind, they may swap.
    pub sizes: Vec<Vec<usize>>,
    /// By part.
    pub kinds: Vec<usize>,
    /// Levels that can be run.
    pub allowed: Box<dyn Fn(&Levels) -> bool + Sync + 'a>,
    pub apply: Box<Apply<'a>>,
}

impl Space<'_> {
    /// What levels take of the budget.
    pub fn cost(&self, levels: &Levels) -> f64 {
        self.costs.iter().zip(levels).map(|(c, &l)| c[l]).sum()
    }

    /// Whether levels cost no less and no more than `budget`, and can be run.
    pub fn fits(&self, levels: &Levels, budget: (f64, f64)) -> bool {
        (budget.0..=budget.1).contains(&self.cost(levels)) && (self.allowed)(levels)
    }

    /// All parts of a kind some levels up or down, and the others, the emptiest or the fullest first, as far the other
    /// way as keeps the budget: how much of each kind is best is too far away for single steps.
    pub fn splits(&self, from: &Levels, budget: (f64, f64), random: &mut Random) -> Vec<Levels> {
        let kinds: BTreeSet<usize> = self.kinds.iter().copied().collect();
        let last = |m: usize| self.costs[m].len() - 1;
        let mut made = Vec::new();
        for kind in kinds {
            let all = 0..from.len();
            let (own, mut others): (Vec<usize>, Vec<usize>) =
                all.partition(|&m| self.kinds[m] == kind);
            random.shuffle(&mut others);
            let steps: usize = others.iter().map(|&m| last(m)).sum();
            for shift in SHIFTS {
                let mut levels = from.clone();
                for &m in &own {
                    levels[m] = levels[m].saturating_add_signed(shift).min(last(m));
                }
                for _ in 0..steps {
                    let cost = self.cost(&levels);
                    let next = if cost > budget.1 {
                        let down = others.iter().filter(|&&m| levels[m] < last(m));
                        down.min_by_key(|&&m| levels[m]).map(|&m| (m, 1))
                    } else if cost < budget.0 {
                        let up = others.iter().filter(|&&m| levels[m] > 0);
                        up.max_by_key(|&&m| levels[m]).map(|&m| (m, -1))
                    } else {
                        None
                    };
                    let Some((m, step)) = next else { break };
                    levels[m] = levels[m].saturating_add_signed(step);
                }
                if levels != *from && self.fits(&levels, budget) {
                    made.push(levels);
                }
            }
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of nine levels: of kind 0 a step costs 1, of kind 1 three.
    fn space(kinds: &[usize]) -> Space<'static> {
        let costs = |kind: &usize| (0..9).map(|l| (8 - l) as f64 * [1.0, 3.0][*kind]).collect();
        Space {
            costs: kinds.iter().map(costs).collect(),
            sizes: kinds.iter().map(|_| (0..9).rev().collect()).collect(),
            kinds: kinds.to_vec(),
            allowed: Box::new(|levels| levels[0] < 8),
            apply: Box::new(|model, _| Ok(model.clone())),
        }
    }

    #[test]
    fn a_kind_moves_as_a_whole_and_the_other_keeps_the_budget() {
        let space = space(&[0, 1, 0, 1, 0, 1]);
        let from = vec![4; 6];
        let cost = space.cost(&from);
        let budget = (cost - 1.5, cost + 1.5);
        let splits = space.splits(&from, budget, &mut Random::new(0, &[]));
        assert_eq!(splits.len(), 6);
        for levels in &splits {
            assert!(space.fits(levels, budget), "{levels:?}");
            let moved = |kind: usize| -> BTreeSet<isize> {
                let own = (0..6).filter(|m| space.kinds[*m] == kind);
                own.map(|m| levels[m] as isize - 4).collect()
            };
            let whole = |kind| moved(kind).len() == 1 && !moved(kind).contains(&0);
            assert!(whole(0) || whole(1), "{levels:?}");
        }
    }

    #[test]
    fn nothing_makes_up_for_a_kind_alone() {
        let space = space(&[0, 0]);
        let cost = space.cost(&vec![4; 2]);
        let splits = space.splits(&vec![4; 2], (cost, cost), &mut Random::new(0, &[]));
        assert!(splits.is_empty());
    }

    #[test]
    fn what_cannot_run_is_no_split() {
        let space = space(&[0, 1, 1]);
        let from = vec![7, 4, 4];
        let cost = space.cost(&from);
        for levels in space.splits(&from, (cost - 4.0, cost + 4.0), &mut Random::new(0, &[])) {
            assert!(levels[0] < 8, "{levels:?}");
        }
    }
}
