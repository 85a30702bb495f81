//! Taking units out of a model, and the model that the result must equal.

use super::constants::{Constants, Read};
use super::sets::{Axis, Id};
use super::{Groups, Role, attributes, fold, slice};
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::{Dim, Symbols, Weight, infer_shapes};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Units that go, by group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    units: Vec<Vec<usize>>,
}

impl Removed {
    /// The units of each group, in the order of [`Groups::all`].
    ///
    /// # Errors
    /// When a group must stay, loses every unit, or has no unit of a number.
    pub fn new(groups: &Groups<'_>, mut units: Vec<Vec<usize>>) -> Result<Removed> {
        if units.len() != groups.all().len() {
            let (given, all) = (units.len(), groups.all().len());
            return Err(Error::Channels(format!(
                "units of {given} groups, the model has {all}"
            )));
        }
        for (group, units) in groups.all().iter().zip(&mut units) {
            units.sort_unstable();
            units.dedup();
            let refuse = |what: String| {
                Err(Error::Channels(format!(
                    "group of `{}`: {what}",
                    group.name()
                )))
            };
            match (units.last(), &group.reason) {
                (None, _) => {}
                (_, Some(reason)) => return refuse(format!("it must stay: {reason}")),
                (Some(&last), _) if last >= group.units => {
                    return refuse(format!("unit {last}, it has {}", group.units));
                }
                _ if units.len() == group.units => return refuse("nothing would be left".into()),
                _ => {}
            }
        }
        Ok(Removed { units })
    }

    /// No unit of any group.
    pub fn none(groups: &Groups<'_>) -> Removed {
        Removed {
            units: vec![Vec::new(); groups.all().len()],
        }
    }

    /// The units that go from a group, ascending.
    pub fn of(&self, group: usize) -> &[usize] {
        self.units.get(group).map_or(&[], Vec::as_slice)
    }

    /// How many go from each group.
    pub fn counts(&self) -> Vec<usize> {
        self.units.iter().map(Vec::len).collect()
    }
}

/// A smaller model.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The model.
    pub model: Model,
    /// Nodes whose bias took the constants of removed channels.
    pub folded: Vec<String>,
    /// Nodes that lost constants.
    pub leftovers: Vec<Leftover>,
}

/// Constants of removed channels that a node summed over and that no bias can stand for: a window that reaches
/// beyond the border, or a channel that is not the same everywhere. There the cut model differs from the masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The node.
    pub node: String,
    /// How many channels.
    pub channels: usize,
}

/// Units that go, and of which of them shifts stay behind.
pub(super) struct Cutter<'g, 'm> {
    pub groups: &'g Groups<'m>,
    gone: Vec<bool>,
    roles: HashMap<(&'m str, usize), Role>,
}

impl<'m> Cutter<'_, 'm> {
    pub fn is_gone(&self, id: Id) -> bool {
        self.gone[id as usize]
    }

    /// What an axis of a weight is to its channels.
    pub fn role(&self, weight: &str, axis: usize) -> Role {
        self.roles
            .get(&(weight, axis))
            .copied()
            .unwrap_or(Role::Input)
    }

    /// The indices that stay, where some go.
    pub fn kept(&self, axis: &Axis) -> Option<Vec<usize>> {
        let Axis::Ids(ids) = axis else { return None };
        let stays = |(i, &id): (usize, &Id)| (!self.is_gone(id)).then_some(i);
        let kept: Vec<usize> = ids.iter().enumerate().filter_map(stays).collect();
        (kept.len() < ids.len()).then_some(kept)
    }

    /// The size of an axis of a value afterwards.
    pub fn size(&self, name: &str, axis: usize) -> Dim {
        let whole = self
            .groups
            .coupling
            .shapes
            .get(name)
            .and_then(|s| s.get(axis));
        let axes = self.groups.axes(name);
        match axes.get(axis).and_then(|a| self.kept(a)) {
            Some(kept) => Dim::Fixed(kept.len()),
            None => whole.cloned().unwrap_or(Dim::Fixed(1)),
        }
    }
}

/// What a cut leaves behind of each removed channel.
struct Decided {
    /// Group and unit of those whose shifts go too.
    dropped: HashSet<(usize, usize)>,
    reads: Vec<Read>,
    leftovers: Vec<Leftover>,
}

impl<'m> Groups<'m> {
    pub(super) fn cutter(&self, removed: &Removed) -> Result<Cutter<'_, 'm>> {
        // Units of another model's groups would be cut at random.
        Removed::new(self, removed.units.clone())?;
        let mut marks: Vec<Vec<bool>> = self.all().iter().map(|g| vec![false; g.units]).collect();
        for (marks, units) in marks.iter_mut().zip(&removed.units) {
            units.iter().for_each(|&u| marks[u] = true);
        }
        let of =
            |unit: &Option<(u32, u32)>| unit.is_some_and(|(g, u)| marks[g as usize][u as usize]);
        let roles = self.coupling.weights.iter();
        Ok(Cutter {
            groups: self,
            gone: self.unit_of.iter().map(of).collect(),
            roles: roles.map(|w| ((w.weight, w.axis), w.role)).collect(),
        })
    }

    /// Which shifts stay behind: all of them, but for those of units that some node cannot take a constant of.
    fn decide(&self, cutter: &Cutter<'_, 'm>, fold: bool) -> Decided {
        let nodes = &self.model.graph().nodes;
        let mut dropped: HashSet<(usize, usize)> = HashSet::new();
        if fold {
            let (_, reads) = Constants::of(cutter, &|_| true);
            for read in reads.iter().filter(|r| !r.exact) {
                dropped.extend(self.read_units(&nodes[read.node], read));
            }
        }
        let keeps = |id: Id| fold && self.unit(id).is_some_and(|u| !dropped.contains(&u));
        let (_, reads) = Constants::of(cutter, &keeps);
        let (reads, bad): (Vec<Read>, Vec<Read>) = reads.into_iter().partition(|r| r.exact);
        let leftover = |r: &Read| Leftover {
            node: nodes[r.node].name.clone(),
            channels: r.channels.len(),
        };
        Decided {
            leftovers: bad.iter().map(leftover).collect(),
            dropped,
            reads,
        }
    }

    /// The units of the channels that a node sums over.
    fn read_units(&self, node: &lacuna::model::Node, read: &Read) -> Vec<(usize, usize)> {
        let Some(axis) = fold::depth_axis(node, &self.coupling.shapes) else {
            return Vec::new();
        };
        match self.axes(&node.inputs[0]).get(axis) {
            Some(Axis::Ids(ids)) => {
                let unit = |&(i, _): &(usize, f32)| self.unit(*ids.get(i)?);
                read.channels.iter().filter_map(unit).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The model of the same shape in which removed channels are silent: what makes or scales them is zero.
    /// With `fold`, what is added to them (biases, the shift of a batch normalisation) stays where [`Groups::cut`]
    /// can move it into the next layer, else it is zero too.
    ///
    /// # Errors
    /// When `removed` is of another model, or a weight of another dtype than a floating-point one.
    pub fn mask(&self, removed: &Removed, fold: bool) -> Result<Model> {
        let cutter = self.cutter(removed)?;
        let decided = self.decide(&cutter, fold);
        let mut model = self.model.clone();
        let mut marks: BTreeMap<&str, Vec<(usize, Vec<usize>)>> = BTreeMap::new();
        for axis in &self.coupling.weights {
            let silent = |id: Id| match axis.role {
                Role::Output | Role::Scale => true,
                Role::Shift => !fold || self.unit(id).is_some_and(|u| decided.dropped.contains(&u)),
                Role::Input | Role::Other | Role::Statistic => false,
            };
            let gone = |(i, &id): (usize, &Id)| (cutter.is_gone(id) && silent(id)).then_some(i);
            let indices: Vec<usize> = axis.ids.iter().enumerate().filter_map(gone).collect();
            if !indices.is_empty() {
                marks
                    .entry(axis.weight)
                    .or_default()
                    .push((axis.axis, indices));
            }
        }
        for (name, axes) in marks {
            let weight = slice::zeroed(name, &self.model.weights()[name], &axes)?;
            model.set_weight(name, weight)?;
        }
        Ok(model)
    }

    /// Takes units out: weights are sliced (sparse ones decoded first, and encoded again where that is smaller),
    /// sizes in attributes follow, shapes are inferred again and compared.
    ///
    /// The result computes what [`Groups::mask`] with the same `fold` computes, up to rounding, but for
    /// [`Cut::leftovers`]. Constants that removed channels would leave are added to the bias of the next layer.
    ///
    /// # Errors
    /// As [`Groups::mask`]; and when the smaller graph is not what the groups say, which is a fault of theirs.
    pub fn cut(&self, removed: &Removed, fold: bool) -> Result<Cut> {
        let cutter = self.cutter(removed)?;
        let decided = self.decide(&cutter, fold);
        let mut graph = self.model.graph().clone();
        let mut weights: BTreeMap<String, Weight> = self.model.weights().clone();
        for (new, node) in graph.nodes.iter_mut().zip(&self.model.graph().nodes) {
            new.op = attributes::updated(&cutter, node)?;
        }
        for (name, weight) in self.model.weights() {
            let axes = self.coupling.weight_axes(name).into_iter().enumerate();
            let kept: Vec<(usize, Vec<usize>)> = axes
                .filter_map(|(a, axis)| Some((a, cutter.kept(&axis)?)))
                .collect();
            if !kept.is_empty() {
                weights.insert(name.clone(), slice::sliced(name, weight, &kept)?);
            }
        }
        let folded = fold::fold(&cutter, &decided.reads, &mut graph, &mut weights)?;
        let mut used: HashSet<&str> = HashSet::new();
        for node in &graph.nodes {
            used.extend(node.inputs.iter().map(String::as_str));
        }
        used.extend(graph.outputs.iter().map(String::as_str));
        weights.retain(|name, _| used.contains(name.as_str()) || self.is_unused(name));
        let mut model = Model::new(graph, weights)?;
        self.compare(&cutter, &model)?;
        model.tokenizer = self.model.tokenizer.clone();
        model.text = self.model.text.clone();
        model.metadata = self.model.metadata.clone();
        Ok(Cut {
            model,
            folded,
            leftovers: decided.leftovers,
        })
    }

    /// Whether the model carries a weight that no node of it reads.
    fn is_unused(&self, weight: &str) -> bool {
        let mut nodes = self.model.graph().nodes.iter();
        !nodes.any(|n| n.inputs.iter().any(|i| i == weight))
    }

    /// Compares every shape of the smaller model with what the groups say.
    fn compare(&self, cutter: &Cutter<'_, 'm>, model: &Model) -> Result<()> {
        let shapes = infer_shapes(model.graph(), model.weights(), &Symbols::new())?;
        for node in &self.model.graph().nodes {
            let rank = self.coupling.shapes.get(&node.output).map_or(0, Vec::len);
            let wanted: Vec<Dim> = (0..rank).map(|a| cutter.size(&node.output, a)).collect();
            let found = shapes.get(&node.output);
            if found != Some(&wanted) {
                return Err(Error::Cut {
                    node: node.name.clone(),
                    what: format!("its output has shape {found:?} and not {wanted:?}"),
                });
            }
        }
        Ok(())
    }
}
