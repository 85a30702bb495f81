//! Channels, heads and neurons that must be cut together, and cutting them.
//!
//! [`Groups::of`] reads a graph once. Every index of every axis of a weight is an elementary channel; each
//! operator says which of them go together (`couple`), by index maps and not by tracing. What hangs together
//! is a *unit*: it is cut whole or stays. Units that touch the same axes of the same weights are a [`Group`].
//! The idea of groups is that of DepGraph (arXiv 2301.12900).
//!
//! [`Groups::cut`] takes units out and gives a smaller dense model; [`Groups::mask`] gives the model that it
//! must equal, of the old shape. [`ChannelPlan`] chooses units by a [`Criterion`] until a [`Target`] is met.

mod attributes;
mod constants;
mod cost;
mod couple;
mod cut;
mod fold;
mod limits;
mod maps;
mod plan;
mod score;
mod sets;
mod slice;

pub use cost::Cost;
pub(crate) use cost::Meter;
pub use cut::{Cut, Leftover, Removed};
pub use limits::Limits;
pub use plan::{ChannelPlan, Scope, Target};
pub use score::Criterion;
pub(crate) use slice::sliced;

use crate::{Result, report};
use couple::Coupling;
use lacuna::Model;
use lacuna::model::{Symbols, infer_shapes};
use serde::{Serialize, Serializer};
use sets::Axis;
use std::collections::HashMap;
use std::fmt;

/// Why a channel must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is part of what the model returns under this name.
    Output(String),
    /// It is part of what the model is given under this name.
    Input(String),
    /// It meets an axis that is none of channels.
    Fixed,
    /// An operator does not keep it apart.
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// What it does.
        what: &'static str,
    },
    /// The user named a weight of it.
    Ignored(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Output(name) => write!(f, "output `{name}`"),
            Reason::Input(name) => write!(f, "input `{name}`"),
            Reason::Fixed => f.write_str("meets an axis that is none of channels"),
            Reason::Node { node, op, what } => write!(f, "{op} `{node}` {what}"),
            Reason::Ignored(pattern) => write!(f, "ignored by `{pattern}`"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an axis of a weight is to the channels along it. Where uses differ, the last of this order holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// They are read through it: input channels.
    Input,
    /// Something by channel that neither makes nor scales: slopes.
    Other,
    /// Means and variances.
    Statistic,
    /// They are multiplied by it.
    Scale,
    /// It is added to them.
    Shift,
    /// They are made by it: output channels, columns of an embedding.
    Output,
}

/// An axis of a weight and its indices in each unit of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The weight's name.
    pub weight: String,
    /// The axis.
    pub axis: usize,
    /// What the axis is to the channels.
    pub role: Role,
    /// Indices of one unit.
    pub per_unit: usize,
    /// The indices of the first unit, then those of the second, and so on.
    indices: Vec<u32>,
}

impl Member {
    /// The indices that `unit` has of the axis, ascending.
    pub fn indices(&self, unit: usize) -> &[u32] {
        &self.indices[unit * self.per_unit..(unit + 1) * self.per_unit]
    }
}

/// Units that touch the same axes of the same weights, the same number of indices each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How many units there are.
    pub units: usize,
    /// What they touch, in the order of the graph.
    pub members: Vec<Member>,
    /// Why they must stay, if they must.
    pub reason: Option<Reason>,
}

impl Group {
    /// A name for reports: the first weight of two or more axes that makes the channels.
    pub fn name(&self) -> &str {
        let first = self.outputs().next().or(self.members.first());
        first.map_or("", |m| m.weight.as_str())
    }

    /// The members that make the channels.
    pub fn outputs(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.role == Role::Output)
    }
}

/// The groups of a model.
#[derive(Debug)]
pub struct Groups<'m> {
    model: &'m Model,
    coupling: Coupling<'m>,
    groups: Vec<Group>,
    /// Group and unit of every elementary channel that has them.
    unit_of: Vec<Option<(u32, u32)>>,
}

impl<'m> Groups<'m> {
    /// Finds the groups of `model`, in time and memory that grow with the sum of its axes.
    pub fn of(model: &'m Model) -> Result<Groups<'m>> {
        let shapes = infer_shapes(model.graph(), model.weights(), &Symbols::new())?;
        let mut coupling = Coupling::of(model, shapes);
        // The indices of each unit, by weight axis.
        let mut unit_of_root: HashMap<u32, usize> = HashMap::new();
        let mut units: Vec<Vec<(u32, u32)>> = Vec::new();
        let mut roots: Vec<u32> = Vec::new();
        for (at, axis) in coupling.weights.iter().enumerate() {
            for (index, &id) in axis.ids.iter().enumerate() {
                let root = coupling.sets.root(id);
                let unit = *unit_of_root.entry(root).or_insert_with(|| {
                    units.push(Vec::new());
                    roots.push(root);
                    units.len() - 1
                });
                units[unit].push((at as u32, index as u32));
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<(Vec<(u32, u32)>, bool), usize> = HashMap::new();
        let mut placed: Vec<(u32, u32)> = Vec::with_capacity(units.len());
        for (unit, &root) in units.iter().zip(&roots) {
            let reason = coupling.sets.blocked(root).cloned();
            let mut touched: Vec<(u32, u32)> = Vec::new();
            for &(axis, _) in unit {
                match touched.last_mut() {
                    Some((last, count)) if *last == axis => *count += 1,
                    _ => touched.push((axis, 1)),
                }
            }
            let weights = &coupling.weights;
            let group =
                *known
                    .entry((touched, reason.is_some()))
                    .or_insert_with_key(|(touched, _)| {
                        let member = |&(axis, count): &(u32, u32)| {
                            let axis = &weights[axis as usize];
                            Member {
                                weight: axis.weight.to_owned(),
                                axis: axis.axis,
                                role: axis.role,
                                per_unit: count as usize,
                                indices: Vec::new(),
                            }
                        };
                        groups.push(Group {
                            units: 0,
                            members: touched.iter().map(member).collect(),
                            reason,
                        });
                        groups.len() - 1
                    });
            let own = &mut groups[group];
            let mut indices = unit.iter().map(|u| u.1);
            for member in &mut own.members {
                member
                    .indices
                    .extend(indices.by_ref().take(member.per_unit));
            }
            placed.push((group as u32, own.units as u32));
            own.units += 1;
        }
        let unit_of = (0..coupling.sets.len() as u32)
            .map(|id| {
                unit_of_root
                    .get(&coupling.sets.root(id))
                    .map(|&u| placed[u])
            })
            .collect();
        Ok(Groups {
            model,
            coupling,
            groups,
            unit_of,
        })
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Every group, those that must stay included. Of the latter only those that make channels are worth a line:
    /// see [`Groups::listed`].
    pub fn all(&self) -> &[Group] {
        &self.groups
    }

    /// The groups that make channels of a convolution or a linear layer, with their numbers.
    pub fn listed(&self) -> impl Iterator<Item = (usize, &Group)> {
        let products = self.model.product_weights();
        let products: std::collections::HashSet<&str> = products.iter().map(|p| p.0).collect();
        let makes = move |g: &Group| g.outputs().any(|m| products.contains(m.weight.as_str()));
        let all = self.groups.iter().enumerate();
        all.filter(move |(_, g)| makes(g))
    }

    /// The group and the unit of each index of an axis.
    fn unit(&self, id: sets::Id) -> Option<(usize, usize)> {
        self.unit_of[id as usize].map(|(g, u)| (g as usize, u as usize))
    }

    /// The axes of a value or a weight.
    fn axes(&self, name: &str) -> Vec<Axis> {
        match self.coupling.values.get(name) {
            Some(axes) => axes.clone(),
            None => self.coupling.weight_axes(name),
        }
    }

    /// Names of weights that hold running statistics.
    fn statistics(&self) -> std::collections::BTreeSet<&'m str> {
        report::statistics(self.model)
    }
}
