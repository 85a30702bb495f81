//! What heads and neurons take: parameters, or milliseconds by a table of latencies.

use super::modules::{Axis, Module};
use super::supernet::Net;
use crate::latency::{LatencyTable, MeasuredLayer, Reading};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A budget of milliseconds of the whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyBudget {
    /// The most milliseconds.
    pub limit: Limit,
    /// Of what.
    #[serde(default)]
    pub of: Reading,
    /// Layers and attentions of this model, measured at several widths.
    pub table: LatencyTable,
}

/// The most time that a model may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Milliseconds.
    Milliseconds(f64),
    /// A share of what the model takes as it is.
    Share(f64),
}

/// Milliseconds of a model, by the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Of what.
    pub of: Reading,
    /// Before, after, and at most.
    pub ms: [f64; 3],
    /// What is in no attention and no MLP.
    pub rest_ms: f64,
}

/// What a module takes of the budget.
#[derive(Clone, Debug)]
pub(super) enum Meter {
    Parameters,
    /// By module.
    Milliseconds(Vec<Clock>),
}

/// The milliseconds of a module.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    layers: Vec<Timed>,
    /// By key heads and by query heads of each.
    attention: Option<MeasuredLayer>,
}

/// A layer of which one axis is cut.
#[derive(Clone, Debug)]
struct Timed {
    layer: MeasuredLayer,
    axis: usize,
    /// The size of the other.
    other: usize,
    /// Indices of a unit, and whether units are key heads.
    per_unit: usize,
    shared: bool,
}

impl Meter {
    /// Reads the table for what can go from the model. Returns the milliseconds of all modules too.
    ///
    /// # Errors
    /// When the table has not a layer or an attention of it, or the limit is none.
    pub fn new(net: &Net<'_>, budget: &LatencyBudget) -> Result<Meter> {
        let clocks = net.modules.iter().map(|m| Clock::new(net, m, budget));
        Ok(Meter::Milliseconds(clocks.collect::<Result<_>>()?))
    }

    /// What of the budget module `m` takes with these units left.
    pub fn of(&self, m: usize, module: &Module, kept: &[usize]) -> f64 {
        match self {
            Meter::Parameters => module.left(kept) as f64,
            Meter::Milliseconds(clocks) => clocks[m].at(module, kept),
        }
    }
}

impl Clock {
    fn new(net: &Net<'_>, module: &Module, budget: &LatencyBudget) -> Result<Clock> {
        let (table, of) = (&budget.table, budget.of);
        let missing = |what: String| {
            Error::Channels(format!(
                "the table of latencies has no {what}: make it from this model with `lacuna-bench MODEL --table`"
            ))
        };
        let linear = net.model.prunable();
        let mut layers = Vec::new();
        let mut add = |weight: &str, axis: usize, per_unit: usize, shared: bool| -> Result<()> {
            if !linear.iter().any(|l| l.0 == weight) {
                return Ok(());
            }
            let found = table.layers.iter().find(|l| l.weight == weight);
            let layer = found.and_then(|l| l.reading(of));
            let shape = net.model.weights()[weight].shape();
            layers.push(Timed {
                layer: layer.ok_or_else(|| missing(format!("layer `{weight}` of {of:?}")))?,
                axis,
                other: shape[1 - axis],
                per_unit,
                shared,
            });
            Ok(())
        };
        add(&module.reader, 1, module.inputs[0].len(), false)?;
        for (axes, shared) in [(&module.own, false), (&module.shared, true)] {
            for Axis {
                weight,
                axis,
                indices,
                ..
            } in axes
            {
                add(weight, *axis, indices[0].len(), shared)?;
            }
        }
        let attention = match &module.attention {
            None => None,
            Some(parts) => {
                let found = table.attentions.iter().find(|a| a.node == parts.node);
                let found = found.and_then(|a| a.reading(of));
                Some(found.ok_or_else(|| missing(format!("attention `{}`", parts.node)))?)
            }
        };
        Ok(Clock { layers, attention })
    }

    fn at(&self, module: &Module, kept: &[usize]) -> f64 {
        if kept.is_empty() {
            return 0.0;
        }
        // Query heads left of each key head that is.
        let groups: Vec<usize> = (kept.chunk_by(|a, b| module.key_head(*a) == module.key_head(*b)))
            .map(<[usize]>::len)
            .collect();
        let one = |t: &Timed| {
            let units = if t.shared { groups.len() } else { kept.len() };
            match t.axis {
                0 => t.layer.at(units * t.per_unit, t.other),
                _ => t.layer.at(t.other, units * t.per_unit),
            }
        };
        let layers: f64 = self.layers.iter().map(one).sum();
        let attention = self.attention.as_ref().map_or(0.0, |table| {
            let mut sizes = groups;
            sizes.sort_unstable();
            let nodes = sizes.chunk_by(|a, b| a == b);
            nodes.map(|n| table.at(n.len(), n[0])).sum()
        });
        layers + attention
    }
}
