//! Constants of removed channels, moved into the bias of the layer that summed over them.

use super::constants::Read;
use super::cut::Cutter;
use super::slice;
use crate::{Error, Result};
use lacuna::model::{Graph, Node, Op, Shapes, Weight};
use std::collections::{BTreeMap, HashSet};

/// The axis of its first input that a node sums over.
pub(super) fn depth_axis(node: &Node, shapes: &Shapes) -> Option<usize> {
    let rank = shapes.get(node.inputs.first()?).map_or(0, Vec::len);
    match &node.op {
        Op::Conv { .. } | Op::ConvTranspose { .. } => Some(1),
        Op::Gemm { trans_a, .. } => Some(usize::from(!trans_a)),
        Op::MatMul { .. } => rank.checked_sub(1),
        Op::LpNormalization { axis } => super::maps::wrapped(*axis, rank),
        _ => None,
    }
}

/// Adds each sum over removed channels to a bias, made where there is none. Returns the nodes.
pub(super) fn fold(
    cutter: &Cutter<'_, '_>,
    reads: &[Read],
    graph: &mut Graph,
    weights: &mut BTreeMap<String, Weight>,
) -> Result<Vec<String>> {
    let model = cutter.groups.model();
    let mut taken: HashSet<String> = weights.keys().cloned().collect();
    taken.extend(
        graph
            .nodes
            .iter()
            .flat_map(|n| [n.name.clone(), n.output.clone()]),
    );
    let mut fresh = |want: String| {
        let mut name = want.clone();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            n += 1;
            name = format!("{want}.{n}");
        }
        name
    };
    let mut folded = Vec::with_capacity(reads.len());
    let mut added: Vec<(usize, Node)> = Vec::new();
    for read in reads {
        let node = &model.graph().nodes[read.node];
        let name = &node.inputs[1];
        let fault = |what: &str| Error::Cut {
            node: node.name.clone(),
            what: what.to_owned(),
        };
        let whole = &model.weights()[name];
        // Output channels are the rows of the matrix, or its columns.
        let (rows, scale) = match &node.op {
            Op::Conv { .. } => (true, 1.0),
            Op::Gemm { trans_b, alpha, .. } => (*trans_b, f64::from(*alpha)),
            Op::MatMul { trans_b } => (*trans_b, 1.0),
            _ => return Err(fault("sums over constants that no bias takes")),
        };
        let out_axis = usize::from(!rows);
        let axes = cutter.groups.axes(name);
        let outputs = match axes.get(out_axis).and_then(|a| cutter.kept(a)) {
            Some(kept) => kept,
            None => (0..whole.shape()[out_axis]).collect(),
        };
        let columns: Vec<usize> = read.channels.iter().map(|c| c.0).collect();
        let parts = [(out_axis, outputs.clone()), (1 - out_axis, columns)];
        let part = slice::sliced(name, whole, &parts)?;
        let values = part
            .to_f32()
            .ok_or_else(|| fault("its weight is not of numbers"))?;
        let (n, depth) = (outputs.len(), read.channels.len());
        let window: usize = whole.shape()[2..].iter().product();
        let mut sums = vec![0.0f64; n];
        for (i, run) in values.chunks(window.max(1)).enumerate() {
            let (output, channel) = if rows {
                (i / depth, i % depth)
            } else {
                (i % n, i / n)
            };
            let sum: f64 = run.iter().map(|&v| f64::from(v)).sum();
            sums[output] += scale * sum * f64::from(read.channels[channel].1);
        }
        let bias = node.inputs.get(2).filter(|b| !b.is_empty());
        let new = &mut graph.nodes[read.node];
        let own = bias.map(|b| weights.get(b).and_then(Weight::to_f32));
        let takes = match (&mut new.op, &own) {
            (Op::Conv { .. }, Some(None)) => return Err(fault("its bias is computed")),
            (Op::Conv { .. }, _) => true,
            (Op::Gemm { beta, .. }, None) => {
                *beta = 1.0;
                true
            }
            (Op::Gemm { beta, .. }, Some(Some(own))) => *beta == 1.0 && own.len() == n,
            _ => false,
        };
        match takes {
            true => {
                let own = own.flatten().unwrap_or_else(|| vec![0.0; n]);
                let sum = own.iter().zip(&sums);
                let sum: Vec<f32> = sum.map(|(a, b)| (f64::from(*a) + b) as f32).collect();
                let made = fresh(format!("{}.bias", node.name));
                weights.insert(made.clone(), Weight::from_f32(&[n], &sum));
                new.inputs.truncate(2);
                new.inputs.push(made);
            }
            // The sum goes on under the old name.
            false => {
                let (made, inner) = (
                    fresh(format!("{}.shift", node.name)),
                    fresh(format!("{}.unshifted", node.output)),
                );
                let sum: Vec<f32> = sums.iter().map(|&s| s as f32).collect();
                weights.insert(made.clone(), Weight::from_f32(&[n], &sum));
                new.output = inner.clone();
                added.push((
                    read.node,
                    Node {
                        name: fresh(format!("{}.add_shift", node.name)),
                        op: Op::Add,
                        inputs: vec![inner, made],
                        output: node.output.clone(),
                    },
                ));
            }
        }
        folded.push(node.name.clone());
    }
    for (at, node) in added.into_iter().rev() {
        graph.nodes.insert(at + 1, node);
    }
    Ok(folded)
}
