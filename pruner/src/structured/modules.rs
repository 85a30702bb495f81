//! The parts of a decoder's blocks that lose heads or neurons.

use crate::groups::{Group, Groups, Role};
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::{Node, Op};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What a module is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Query heads.
    Attention,
    /// Neurons.
    Mlp,
}

/// Which heads go together where several query heads share keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadMode {
    /// Each query head for itself; keys and values go with the last of theirs. Groups become of unequal size, and an
    /// attention falls into one node for each size.
    #[default]
    Query,
    /// All query heads of a key head, and it.
    KvGroup,
    /// As many query heads of every key head.
    Equal,
}

/// Indices of an axis of a weight, for each head or neuron, or for each key head.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub weight: String,
    pub axis: usize,
    pub indices: Vec<Vec<usize>>,
    /// Parameters of one of them.
    pub parameters: usize,
}

/// An attention or an MLP of a block: what can go, and what it takes along.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    pub kind: Kind,
    /// The weight that reads the heads or neurons, `[outputs, inputs]`: that of the output projection.
    pub reader: String,
    /// The node that reads it.
    pub node: String,
    /// Heads or neurons.
    pub units: usize,
    /// Heads that go together.
    pub bundle: usize,
    /// For each head its key head, where as many of each go at a time.
    pub classes: Option<Vec<usize>>,
    /// Whether everything may go: the result is added to what went around it.
    pub optional: bool,
    /// The inputs of the reader, by head or neuron.
    pub inputs: Vec<Vec<usize>>,
    /// Other axes, by head or neuron.
    pub(super) own: Vec<Axis>,
    /// Axes by key head.
    pub(super) shared: Vec<Axis>,
    /// Query heads of a key head; 0 in an MLP.
    pub(super) per_group: usize,
    /// Values before the attention that count heads, of queries and of keys.
    pub(super) attention: Option<Attention>,
    /// Outputs of the reader.
    pub outputs: usize,
}

/// The nodes around an attention whose attributes count heads.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    /// The attention's name.
    pub node: String,
    /// Names of nodes on the way of the queries, and on those of keys and values.
    pub queries: Vec<String>,
    pub keys: Vec<String>,
}

impl Module {
    /// Heads, bundles of heads, or neurons: what goes at a time.
    pub fn atoms(&self) -> usize {
        self.units / self.bundle
    }

    /// How many atoms a level may differ by at least.
    pub fn grain(&self) -> usize {
        let classes = self.classes.as_ref().and_then(|c| c.iter().max());
        classes.map_or(1, |c| c + 1)
    }

    /// The inputs of each atom.
    pub fn atom_inputs(&self) -> Vec<Vec<usize>> {
        let atoms = self.inputs.chunks(self.bundle);
        atoms.map(|a| a.concat()).collect()
    }

    /// The heads or neurons of atoms.
    pub fn units_of(&self, atoms: &[usize]) -> Vec<usize> {
        let of = |a: &usize| a * self.bundle..(a + 1) * self.bundle;
        atoms.iter().flat_map(of).collect()
    }

    /// The key head of a query head; of an MLP the neuron itself.
    pub fn key_head(&self, unit: usize) -> usize {
        unit / self.per_group.max(1)
    }

    /// Parameters of all that can go.
    pub fn parameters(&self) -> usize {
        self.left(&(0..self.units).collect::<Vec<_>>())
    }

    /// Parameters that are left with these heads or neurons.
    pub fn left(&self, kept: &[usize]) -> usize {
        let sum = |axes: &[Axis]| axes.iter().map(|a| a.parameters).sum::<usize>();
        let own = sum(&self.own) + self.outputs * self.inputs.first().map_or(0, Vec::len);
        let groups: HashSet<usize> = match self.per_group {
            0 => HashSet::new(),
            n => kept.iter().map(|k| k / n).collect(),
        };
        own * kept.len() + sum(&self.shared) * groups.len()
    }
}

/// The modules of a model, in the order of the graph.
///
/// # Errors
/// When there is none, or an attention is of a form that cannot be cut so.
pub(crate) fn modules(model: &Model, mode: HeadMode) -> Result<Vec<Module>> {
    let groups = Groups::of(model)?;
    let mut found = Vec::new();
    for group in groups.all().iter().filter(|g| g.reason.is_none()) {
        if let Some(module) = module(model, group, mode)? {
            found.push(module);
        }
    }
    let place = |m: &Module| {
        let mut nodes = model.graph().nodes.iter();
        nodes.position(|n| n.name == m.node)
    };
    found.sort_by_key(place);
    match found.is_empty() {
        true => Err(Error::Calibration(format!(
            "`{}` has no attention and no MLP whose heads or neurons can go",
            model.graph().name
        ))),
        false => Ok(found),
    }
}

fn module(model: &Model, group: &Group, mode: HeadMode) -> Result<Option<Module>> {
    let nodes = &model.graph().nodes;
    let mut readers = group.members.iter().filter(|m| m.role == Role::Input);
    let (Some(member), None) = (readers.next(), readers.next()) else {
        return Ok(None);
    };
    let reads =
        |n: &&Node| n.op.weight_input().and_then(|i| n.inputs.get(i)) == Some(&member.weight);
    let mut users = nodes.iter().filter(reads);
    let (Some(node), None) = (users.next(), users.next()) else {
        return Ok(None);
    };
    let straight = match node.op {
        Op::MatMul { trans_b } => trans_b,
        Op::Gemm {
            trans_a, trans_b, ..
        } => trans_b && !trans_a,
        _ => false,
    };
    if !straight || member.axis != 1 {
        return Ok(None);
    }
    let made = |value: &str| nodes.iter().find(|n| n.output == value);
    let attention = made(&node.inputs[0]).and_then(|n| match n.op {
        Op::Attention {
            heads, kv_heads, ..
        } => Some((n, heads, kv_heads)),
        _ => None,
    });
    let shape = |name: &str| model.weights()[name].shape();
    let outputs = shape(&member.weight)[0];
    let optional = node.inputs.len() == 2 && residual(model, node).is_some();
    let (units, per_group, parts) = match attention {
        None if member.per_unit == 1 => (group.units, 0, None),
        None => return Ok(None),
        Some((node, heads, kv_heads)) => {
            if group.units != kv_heads || kv_heads == 0 {
                return Ok(None);
            }
            let chain = |input: usize| chain(model, &node.inputs[input]);
            let queries = chain(0).map_err(|what| refuse(node, what))?;
            let mut keys = chain(1).map_err(|what| refuse(node, what))?;
            keys.extend(chain(2).map_err(|what| refuse(node, what))?);
            let parts = Attention {
                node: node.name.clone(),
                queries,
                keys,
            };
            (heads, heads / kv_heads, Some(parts))
        }
    };
    // Weights on the way of keys and values belong to key heads, all others to query heads.
    let read_by = |names: &[String], weight: &str| {
        let mut named = nodes.iter().filter(|n| names.contains(&n.name));
        named.any(|n| n.inputs.iter().any(|i| i == weight))
    };
    let split = |member: &crate::groups::Member, parts: usize| -> Vec<Vec<usize>> {
        let units = (0..group.units).flat_map(|u| {
            let all = member.indices(u);
            all.chunks(member.per_unit / parts.max(1))
                .map(<[u32]>::to_vec)
        });
        units
            .map(|i| i.into_iter().map(|i| i as usize).collect())
            .collect()
    };
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    for other in group.members.iter().filter(|m| m.weight != member.weight) {
        let keys = parts
            .as_ref()
            .is_some_and(|p| read_by(&p.keys, &other.weight));
        let indices = split(other, if keys { 1 } else { per_group.max(1) });
        let across =
            shape(&other.weight).iter().product::<usize>() / shape(&other.weight)[other.axis];
        let axis = Axis {
            weight: other.weight.clone(),
            axis: other.axis,
            parameters: across * indices[0].len(),
            indices,
        };
        match keys {
            true => shared.push(axis),
            false => own.push(axis),
        }
    }
    let attends = per_group > 0;
    let bundle = match mode {
        HeadMode::KvGroup if attends => per_group,
        _ => 1,
    };
    let equal = mode == HeadMode::Equal && attends;
    Ok(Some(Module {
        kind: if attends { Kind::Attention } else { Kind::Mlp },
        reader: member.weight.clone(),
        node: node.name.clone(),
        units,
        bundle,
        classes: equal.then(|| (0..units).map(|h| h / per_group).collect()),
        optional,
        inputs: split(member, per_group.max(1)),
        own,
        shared,
        per_group,
        attention: parts,
        outputs,
    }))
}

fn refuse(node: &Node, what: String) -> Error {
    Error::Calibration(format!("attention `{}`: {what}", node.name))
}

/// The names of the nodes that make queries, keys or values from what the block reads, the product included.
fn chain(model: &Model, value: &str) -> Result<Vec<String>, String> {
    let mut value = value;
    let mut names = Vec::new();
    loop {
        let made = model.graph().nodes.iter().find(|n| n.output == value);
        let node = made.ok_or_else(|| format!("`{value}` is no product of a weight"))?;
        names.push(node.name.clone());
        match node.op {
            Op::MatMul { .. } | Op::Gemm { .. } => return Ok(names),
            Op::RotaryEmbedding { .. } | Op::RMSNormalization { .. } | Op::Identity => {}
            Op::Reshape { .. } => {}
            Op::Add if model.weights().contains_key(&node.inputs[1]) => {}
            _ => {
                return Err(format!(
                    "its heads come through {} `{}`; heads of such are cut by `prune channels`",
                    node.op.name(),
                    node.name
                ));
            }
        }
        value = &node.inputs[0];
    }
}

/// The addition that alone reads the output of `node`, and the index of the other summand.
pub(super) fn residual<'m>(model: &'m Model, node: &Node) -> Option<(&'m Node, usize)> {
    let graph = model.graph();
    let reads = |n: &&Node| n.inputs.contains(&node.output);
    let mut users = graph.nodes.iter().filter(reads);
    let (Some(add), None) = (users.next(), users.next()) else {
        return None;
    };
    let other = usize::from(add.inputs[0] == node.output);
    let computed = !model.weights().contains_key(add.inputs.get(other)?);
    let alone = !graph.outputs.contains(&node.output) && add.inputs[other] != node.output;
    (matches!(add.op, Op::Add) && computed && alone).then_some((add, other))
}
