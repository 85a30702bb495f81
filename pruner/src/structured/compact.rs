//! A model without heads and neurons: smaller matrices, and attributes that count what is left.

use super::modules::{Axis, Module, residual};
use crate::groups::sliced;
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::{Graph, Node, Op, Weight, Weights};
use std::collections::{HashMap, HashSet};

/// What is left of a module.
pub(crate) struct Left<'a> {
    pub module: &'a Module,
    /// Heads or neurons, ascending.
    pub kept: &'a [usize],
    /// The weight of the reader, its columns in their order; not used where none is left.
    pub weight: Weight,
    /// Added to its outputs.
    pub bias: Option<&'a [f32]>,
}

/// `model` with only what is left of some modules. Parts of a model will do.
///
/// # Errors
/// When the model has not the nodes and weights of a module, or nothing may be left of one that has to stay.
pub(crate) fn compact(model: &Model, left: &[Left<'_>]) -> Result<Model> {
    let mut graph = model.graph().clone();
    let mut weights = model.weights().clone();
    for one in left {
        let module = one.module;
        let fault = |what: &str| Error::Cut {
            node: module.node.clone(),
            what: what.to_owned(),
        };
        if one.kept.is_empty() {
            let node = graph.nodes.iter().find(|n| n.name == module.node);
            let node = node.ok_or_else(|| fault("is not there"))?;
            let found = residual(model, node).filter(|_| module.optional);
            let (add, other) = found.ok_or_else(|| fault("something of it must stay"))?;
            let (name, other) = (add.name.clone(), add.inputs[other].clone());
            let bias = one.bias.map(|values| {
                let name = bias_name(&module.reader);
                weights.insert(name.clone(), Weight::from_f32(&[values.len()], values));
                name
            });
            for n in graph.nodes.iter_mut().filter(|n| n.name == name) {
                (n.op, n.inputs) = match &bias {
                    Some(bias) => (Op::Add, vec![other.clone(), bias.clone()]),
                    None => (Op::Identity, vec![other.clone()]),
                };
            }
            continue;
        }
        // Key heads with as many query heads left lie side by side, the larger first.
        let per_group = module.per_group.max(1);
        let mut sizes: Vec<(usize, usize)> = Vec::new();
        for &unit in one.kept {
            match sizes.last_mut() {
                Some((group, n)) if *group == unit / per_group => *n += 1,
                _ => sizes.push((unit / per_group, 1)),
            }
        }
        if module.attention.is_some() {
            sizes.sort_by_key(|s| std::cmp::Reverse(s.1));
        }
        let place: HashMap<usize, usize> =
            (sizes.iter().enumerate()).map(|(i, s)| (s.0, i)).collect();
        let mut order: Vec<usize> = (0..one.kept.len()).collect();
        if module.attention.is_some() {
            order.sort_by_key(|&i| place[&(one.kept[i] / per_group)]);
        }
        let kept: Vec<usize> = order.iter().map(|&i| one.kept[i]).collect();
        let groups: Vec<usize> = sizes.iter().map(|s| s.0).collect();
        let width = module.inputs[0].len();
        let columns = order.iter().flat_map(|&i| i * width..(i + 1) * width);
        let reader = match order.is_sorted() {
            true => one.weight.clone(),
            false => sliced(&module.reader, &one.weight, &[(1, columns.collect())])?,
        };
        weights.insert(module.reader.clone(), reader);
        for (axes, kept) in [(&module.own, &kept), (&module.shared, &groups)] {
            for Axis {
                weight,
                axis,
                indices,
                ..
            } in axes
            {
                let old = weights
                    .get(weight)
                    .ok_or_else(|| fault("a weight is missing"))?;
                let stay = kept.iter().flat_map(|&k| indices[k].clone()).collect();
                let new = sliced(weight, old, &[(*axis, stay)])?;
                weights.insert(weight.clone(), new);
            }
        }
        if let Some(parts) = &module.attention {
            let before = [module.units, module.units / per_group];
            let after = [kept.len(), groups.len()];
            let query = module.own.first().map_or(0, |a| a.indices[0].len());
            for (names, i) in [(&parts.queries, 0), (&parts.keys, 1)] {
                for n in graph.nodes.iter_mut().filter(|n| names.contains(&n.name)) {
                    recount(n, before[i], after[i], query);
                }
            }
            let at = graph.nodes.iter().position(|n| n.name == parts.node);
            let at = at.ok_or_else(|| fault("its attention is not there"))?;
            let counts: Vec<usize> = sizes.iter().map(|s| s.1).collect();
            let node = graph.nodes[at].clone();
            let nodes = attentions(&node, &counts, query, width);
            graph.nodes.splice(at..=at, nodes);
        }
        if let Some(values) = one.bias {
            add_bias(&mut graph, &mut weights, module, values);
        }
    }
    // What nothing reads any more goes.
    let mut needed: HashSet<String> = graph.outputs.iter().cloned().collect();
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in graph.nodes.into_iter().rev() {
        if needed.contains(&node.output) {
            needed.extend(node.inputs.iter().cloned());
            nodes.push(node);
        }
    }
    nodes.reverse();
    graph.nodes = nodes;
    weights.retain(|name, _| needed.contains(name));
    rebuilt(model, graph, weights)
}

/// `model` with biases on the outputs of readers.
///
/// # Errors
/// When a bias is not of the reader's outputs.
pub(crate) fn biased<'a>(
    model: &Model,
    biases: impl Iterator<Item = (&'a Module, &'a [f32])>,
) -> Result<Model> {
    let (mut graph, mut weights) = (model.graph().clone(), model.weights().clone());
    for (module, values) in biases {
        add_bias(&mut graph, &mut weights, module, values);
    }
    rebuilt(model, graph, weights)
}

fn rebuilt(model: &Model, graph: Graph, weights: Weights) -> Result<Model> {
    let mut new = Model::new(graph, weights)?;
    new.tokenizer = model.tokenizer.clone();
    new.text = model.text.clone();
    new.metadata = model.metadata.clone();
    Ok(new)
}

/// As stock checkpoints name it.
fn bias_name(weight: &str) -> String {
    format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// An addition behind the node that reads a module.
fn add_bias(graph: &mut Graph, weights: &mut Weights, module: &Module, values: &[f32]) {
    let Some(at) = graph.nodes.iter().position(|n| n.name == module.node) else {
        return;
    };
    let mut bias = bias_name(&module.reader);
    while weights.contains_key(&bias) {
        bias += "+";
    }
    weights.insert(bias.clone(), Weight::from_f32(&[values.len()], values));
    let node = &mut graph.nodes[at];
    let output = node.output.clone();
    node.output += ".unbiased";
    let add = Node {
        name: format!("{}.bias", node.name),
        op: Op::Add,
        inputs: vec![node.output.clone(), bias],
        output,
    };
    graph.nodes.insert(at + 1, add);
}

/// Attributes that count heads: of `[.., heads, width]` and `[.., heads * width]`.
fn recount(node: &mut Node, old: usize, new: usize, width: usize) {
    match &mut node.op {
        Op::RotaryEmbedding { heads, .. } => *heads = new,
        Op::Reshape { shape } => match shape.as_mut_slice() {
            [.., heads, last] if (*heads, *last) == (old as i64, width as i64) => {
                *heads = new as i64;
            }
            [.., last] if *last == (old * width) as i64 => *last = (new * width) as i64,
            _ => {}
        },
        _ => {}
    }
}

/// An attention over key heads with so many query heads each, descending: one node for each size.
fn attentions(node: &Node, counts: &[usize], query: usize, value: usize) -> Vec<Node> {
    let sized = |heads: usize, kv: usize| {
        let mut op = node.op.clone();
        if let Op::Attention {
            heads: h,
            kv_heads: k,
            ..
        } = &mut op
        {
            (*h, *k) = (heads, kv);
        }
        op
    };
    let parts: Vec<&[usize]> = counts.chunk_by(|a, b| a == b).collect();
    if parts.len() == 1 {
        let mut node = node.clone();
        node.op = sized(counts.iter().sum(), counts.len());
        return vec![node];
    }
    let mut nodes = Vec::new();
    let mut outputs = Vec::new();
    let (mut head, mut group) = (0, 0);
    for (i, part) in parts.iter().enumerate() {
        let (heads, kv) = (part.iter().sum::<usize>(), part.len());
        let mut inputs = Vec::new();
        for (input, first, count, width) in [
            (0, head, heads, query),
            (1, group, kv, query),
            (2, group, kv, value),
        ] {
            let name = format!("{}.{i}.{}", node.output, ["q", "k", "v"][input]);
            let (start, end) = (first * width, (first + count) * width);
            nodes.push(Node {
                name: name.clone(),
                op: Op::Slice {
                    axes: vec![2],
                    starts: vec![start as i64],
                    ends: vec![end as i64],
                    steps: vec![1],
                },
                inputs: vec![node.inputs[input].clone()],
                output: name.clone(),
            });
            inputs.push(name);
        }
        inputs.extend(node.inputs.iter().skip(3).cloned());
        let output = format!("{}.{i}", node.output);
        nodes.push(Node {
            name: format!("{}.{i}", node.name),
            op: sized(heads, kv),
            inputs,
            output: output.clone(),
        });
        outputs.push(output);
        (head, group) = (head + heads, group + kv);
    }
    nodes.push(Node {
        name: node.name.clone(),
        op: Op::Concat { axis: 2 },
        inputs: outputs,
        output: node.output.clone(),
    });
    nodes
}
