//! How sparse each layer gets.

mod columns;
mod erk;
mod floor;
mod global;
mod lamp;
mod owl;
mod searched;
mod uniform;

pub use columns::Columns;
pub use erk::{Erk, densities};
pub use floor::{Refined, refine};
pub use global::GlobalMagnitude;
pub use lamp::Lamp;
pub(crate) use owl::OUTLIER;
pub use owl::Owl;
pub use searched::Searched;
pub use uniform::Uniform;

pub(crate) use columns::{EVEN, Pair, first_factors, pairs};

use crate::{Error, Layer, Result};
use serde::{Deserialize, Serialize};

/// Decides how many weights each layer loses.
pub trait Allocator: Sync {
    /// The name that recipes and reports use.
    fn name(&self) -> &'static str;

    /// Spreads the budget over the layers. `layers` is not empty and holds no NaN.
    fn allocate(&self, layers: &[Layer<'_>], budget: &Budget) -> Result<Allocation>;
}

/// What an allocator has to spend. Made by [`Budget::new`], which checks it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// The share of the weights that is to be zero, in `[0, 1)`.
    pub sparsity: f64,
    /// Weights of all layers.
    pub total: usize,
    /// Weights to remove: `floor(sparsity * total)`.
    pub remove: usize,
    /// Every layer keeps `min(sigma, size)` weights; 0 for no floor.
    pub sigma: usize,
    /// How the floor is kept.
    pub floor: FloorMode,
    /// What happens to equal magnitudes at the threshold.
    pub ties: Ties,
}

/// What happens to weights whose magnitude equals a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ties {
    /// As many go as the budget says, the earlier ones first (layer, then flat index).
    #[default]
    Exact,
    /// The rule of the Global MP reference: the k-th smallest magnitude and everything equal to
    /// it stays, so that k - 1 weights go where no two are equal.
    Keep,
}

/// How a minimum of weights per layer is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloorMode {
    /// As in the Global MP reference: rank once, then rescale the layers' sparsities and clamp
    /// those that the floor holds, until the target is met; layers below the floor stay whole.
    #[default]
    Refine,
    /// One ranking, in which each layer's largest weights do not take part.
    Global,
}

/// What an allocator decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// For each layer, how many of its weights go.
    pub remove: Vec<usize>,
    /// For each layer, whether the floor kept weights that would have gone.
    pub floored: Vec<bool>,
    /// The one magnitude below which weights go, where the method has one.
    pub threshold: Option<f32>,
}

impl Budget {
    /// A budget over layers of these sizes. Refuses a sparsity outside `[0, 1)` and a floor that
    /// the sparsity leaves no room for.
    pub fn new(
        sizes: &[usize],
        sparsity: f64,
        sigma: usize,
        floor: FloorMode,
        ties: Ties,
    ) -> Result<Budget> {
        if !(0.0..1.0).contains(&sparsity) {
            return Err(Error::Sparsity(sparsity));
        }
        let total: usize = sizes.iter().sum();
        let remove = share(sparsity, total);
        let needed: usize = sizes.iter().map(|&n| n.min(sigma)).sum();
        let left = total - remove;
        if needed > left {
            let largest = (total - needed) as f64 / total as f64;
            return Err(Error::Floor {
                sigma,
                layers: sizes.len(),
                needed,
                sparsity,
                total,
                left,
                largest: (largest * 1e6).floor() / 1e6,
            });
        }
        Ok(Budget {
            sparsity,
            total,
            remove,
            sigma,
            floor,
            ties,
        })
    }

    /// For each layer, the most weights that the floor lets go.
    pub fn caps(&self, layers: &[Layer<'_>]) -> Vec<usize> {
        let cap = |l: &Layer<'_>| l.numel() - l.numel().min(self.sigma);
        layers.iter().map(cap).collect()
    }
}

/// `floor(share * n)`, at most `n`; see [`whole`].
pub(crate) fn share(share: f64, n: usize) -> usize {
    whole(share * n as f64).min(n)
}

/// `floor(x)` of a non-negative `x`, where an `x` that misses a whole number by rounding alone is
/// that number.
fn whole(x: f64) -> usize {
    let near = x.round();
    let close = (x - near).abs() <= 4.0 * f64::EPSILON * near;
    (if close { near } else { x.floor() }) as usize
}

/// Whole numbers next to `ideal`, each at most its cap, that sum to `total` if the caps allow:
/// rounded down, then the missing ones by largest remainder, the earlier first.
fn apportion(ideal: &[f64], caps: &[usize], total: usize) -> Vec<usize> {
    let floors: Vec<usize> = ideal.iter().map(|&x| whole(x)).collect();
    let rest = |i: usize| ideal[i] - floors[i] as f64;
    let mut order: Vec<usize> = (0..ideal.len()).collect();
    order.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)).then(a.cmp(&b)));
    let mut counts: Vec<usize> = floors.iter().zip(caps).map(|(&n, &c)| n.min(c)).collect();
    let mut sum: usize = counts.iter().sum();
    while sum < total {
        let before = sum;
        for &i in &order {
            if sum < total && counts[i] < caps[i] {
                counts[i] += 1;
                sum += 1;
            }
        }
        if sum == before {
            break;
        }
    }
    // Rounding in the sparsities can only be over by a few.
    for &i in order.iter().rev() {
        let take = counts[i].min(sum.saturating_sub(total)).min(1);
        counts[i] -= take;
        sum -= take;
    }
    counts
}

/// The `refine` floor over layers that start with these sparsities. A layer of exactly `sigma`
/// weights stays whole: the reference lets it lose weights, against the floor's definition.
fn refine_layers(layers: &[Layer<'_>], start: &[f64], budget: &Budget) -> Result<Allocation> {
    let sizes: Vec<usize> = layers.iter().map(Layer::numel).collect();
    let whole = |i: usize| sizes[i] <= budget.sigma;
    let start: Vec<f64> = (0..sizes.len())
        .map(|i| if whole(i) { 0.0 } else { start[i] })
        .collect();
    let target = budget.remove as f64 / budget.total.max(1) as f64;
    let refined = refine(&sizes, &start, budget.sigma, target)?;
    Ok(Allocation {
        remove: counts_at(layers, &refined.sparsities, budget),
        floored: refined.held,
        threshold: None,
    })
}

/// What goes where layers are to have these sparsities, a floor kept.
///
/// # Errors
/// When the floor and the budget cannot both be met.
fn at_sparsities(layers: &[Layer<'_>], start: &[f64], budget: &Budget) -> Result<Allocation> {
    if budget.sigma > 0 && budget.remove > 0 {
        return refine_layers(layers, start, budget);
    }
    Ok(Allocation {
        remove: counts_at(layers, start, budget),
        floored: vec![false; layers.len()],
        threshold: None,
    })
}

/// How many weights go from each layer at these sparsities: in all exactly the budget's number,
/// or by the reference's rule of keeping ties.
fn counts_at(layers: &[Layer<'_>], sparsities: &[f64], budget: &Budget) -> Vec<usize> {
    match budget.ties {
        Ties::Exact => {
            let ideal: Vec<f64> = (layers.iter().zip(sparsities))
                .map(|(l, s)| s * l.numel() as f64)
                .collect();
            apportion(&ideal, &budget.caps(layers), budget.remove)
        }
        Ties::Keep => (layers.iter().zip(sparsities))
            .map(|(l, &s)| {
                let k = share(s, l.numel()).max(1);
                match l.numel() {
                    0 => 0,
                    _ => crate::select::strictly_below_kth(l, k),
                }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_rounding_missed_is_whole() {
        assert_eq!(share(0.29, 100), 29); // 28.999999999999996 as f64
        assert_eq!(share(0.9, 10), 9);
        assert_eq!(share(0.999, 10), 9);
        assert_eq!(share(0.0, 10), 0);
    }

    #[test]
    fn apportion_meets_the_total_within_the_caps() {
        assert_eq!(apportion(&[1.5, 1.5, 1.0], &[9, 9, 9], 4), [2, 1, 1]);
        assert_eq!(apportion(&[3.9, 0.1], &[3, 9], 4), [3, 1]);
        assert_eq!(apportion(&[2.0, 2.0], &[2, 2], 9), [2, 2]);
        assert_eq!(apportion(&[2.2, 2.0], &[9, 9], 3), [2, 1]);
    }

    #[test]
    fn sparsities_outside_zero_to_one_are_refused() {
        for s in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
            let e = Budget::new(&[10], s, 0, FloorMode::Refine, Ties::Exact).unwrap_err();
            assert!(matches!(e, Error::Sparsity(_)), "{s}: {e}");
        }
    }

    #[test]
    fn an_infeasible_floor_is_refused_with_the_arithmetic() {
        let e = Budget::new(&[100, 5, 1000], 0.95, 50, FloorMode::Global, Ties::Exact).unwrap_err();
        let text = e.to_string();
        for part in ["takes 105 weights", "(1 - 0.95) * 1105 = 56", "0.904977"] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        let largest = 0.904977;
        Budget::new(&[100, 5, 1000], largest, 50, FloorMode::Global, Ties::Exact).unwrap();
    }
}
