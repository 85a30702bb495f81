//! Parameters and multiply-accumulates of a model some of whose units are gone, without cutting it.

use super::Groups;
use crate::Result;
use crate::report::{bind, macs};
use lacuna::model::{Symbols, infer_shapes};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Size and work of a model or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Elements that training changes, as `prune inspect` counts them.
    pub parameters: u64,
    /// Multiply-accumulates at batch 1, as `prune inspect` counts them.
    pub macs: u64,
    /// Bytes of all weights, stored dense.
    pub bytes: u64,
}

struct Measured {
    shape: Vec<usize>,
    /// Bytes of an element.
    width: u64,
    trained: bool,
    macs: u64,
}

/// What a model costs by how many units of each group are gone.
pub(crate) struct Meter {
    at: BTreeMap<String, usize>,
    weights: Vec<Measured>,
    /// Weight, axis and indices of a unit, by group.
    touched: Vec<Vec<(usize, usize, usize)>>,
    /// What no group touches.
    rest: Cost,
}

impl Meter {
    pub fn new(groups: &Groups<'_>) -> Result<Meter> {
        let model = groups.model();
        let shapes = infer_shapes(
            model.graph(),
            model.weights(),
            &bind(model, &Symbols::new()),
        )?;
        let mut work: HashMap<&str, u64> = HashMap::new();
        for (name, _) in model.prunable() {
            work.insert(name, 0);
        }
        for node in &model.graph().nodes {
            let name = node.op.weight_input().and_then(|i| node.inputs.get(i));
            if let Some(name) = name
                && let Some(sum) = work.get_mut(name.as_str())
            {
                *sum += macs(node, &model.weights()[name], &shapes);
            }
        }
        let statistics = groups.statistics();
        let mut at: BTreeMap<String, usize> = BTreeMap::new();
        let mut weights = Vec::with_capacity(model.weights().len());
        for (name, weight) in model.weights() {
            at.insert(name.clone(), weights.len());
            weights.push(Measured {
                shape: weight.shape().to_vec(),
                width: weight.dtype().size() as u64,
                trained: !statistics.contains(name.as_str()),
                macs: work.get(name.as_str()).copied().unwrap_or(0),
            });
        }
        let touched: Vec<Vec<(usize, usize, usize)>> = (groups.all().iter())
            .map(|g| {
                let members = g.members.iter();
                members
                    .map(|m| (at[m.weight.as_str()], m.axis, m.per_unit))
                    .collect()
            })
            .collect();
        let mut free = vec![true; weights.len()];
        for (weight, _, _) in touched.iter().flatten() {
            free[*weight] = false;
        }
        let mut rest = Cost::default();
        for (weight, _) in weights.iter().zip(&free).filter(|(_, free)| **free) {
            rest.add(weight, &weight.shape);
        }
        for (weight, free) in weights.iter_mut().zip(&free) {
            if *free {
                (weight.trained, weight.macs, weight.width) = (false, 0, 0);
            }
        }
        Ok(Meter {
            at,
            weights,
            touched,
            rest,
        })
    }

    /// Where [`Meter::shapes`] has a weight.
    pub fn place(&self, weight: &str) -> Option<usize> {
        self.at.get(weight).copied()
    }

    /// The shape of every weight with so many units of each group gone.
    pub fn shapes(&self, removed: &[usize]) -> Vec<Vec<usize>> {
        let mut shapes: Vec<Vec<usize>> = self.weights.iter().map(|w| w.shape.clone()).collect();
        for (touched, &units) in self.touched.iter().zip(removed) {
            for &(weight, axis, per_unit) in touched {
                shapes[weight][axis] -= per_unit * units;
            }
        }
        shapes
    }

    /// The cost with so many units of each group gone.
    pub fn total(&self, removed: &[usize]) -> Cost {
        let shapes = self.shapes(removed);
        let mut sum = self.rest;
        for (weight, shape) in self.weights.iter().zip(&shapes) {
            sum.add(weight, shape);
        }
        sum
    }

    /// What goes with one unit of a group.
    pub fn unit(&self, group: usize) -> Cost {
        let mut left: HashMap<usize, Vec<usize>> = HashMap::new();
        for &(weight, axis, per_unit) in &self.touched[group] {
            let shape = left
                .entry(weight)
                .or_insert_with(|| self.weights[weight].shape.clone());
            shape[axis] -= per_unit;
        }
        let (mut before, mut after) = (Cost::default(), Cost::default());
        for (weight, shape) in &left {
            before.add(&self.weights[*weight], &self.weights[*weight].shape);
            after.add(&self.weights[*weight], shape);
        }
        Cost {
            parameters: before.parameters - after.parameters,
            macs: before.macs - after.macs,
            bytes: before.bytes - after.bytes,
        }
    }
}

impl Cost {
    /// Adds a weight of which `shape` is left.
    fn add(&mut self, weight: &Measured, shape: &[usize]) {
        let mut work = u128::from(weight.macs);
        for (&left, &whole) in shape.iter().zip(&weight.shape) {
            work = work * left as u128 / whole.max(1) as u128;
        }
        self.macs += u64::try_from(work).unwrap_or(u64::MAX);
        let numel = shape.iter().product::<usize>() as u64;
        self.bytes += numel * weight.width;
        if weight.trained {
            self.parameters += numel;
        }
    }
}

impl Groups<'_> {
    /// What goes with one unit of each group.
    ///
    /// # Errors
    /// When a shape cannot be inferred.
    pub fn unit_costs(&self) -> Result<Vec<Cost>> {
        let meter = Meter::new(self)?;
        Ok((0..self.all().len()).map(|g| meter.unit(g)).collect())
    }
}
