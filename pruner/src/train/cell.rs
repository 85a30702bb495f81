//! Where a graph of one step is recurrent: the cell and the product with its state.

use super::compile::Kind;
use super::dense::Dense;
use super::prepare::{at, refuse};
use super::recurrent::Recurrent;
use crate::Result;
use lacuna::Model;
use lacuna::model::{Graph, Node, Op};
use std::collections::HashSet;

/// The one cell of a graph. A sequence's loss is that of its last step.
#[derive(Debug)]
pub(super) struct Cell<'m> {
    /// The cell's node.
    pub node: &'m Node,
    /// What the inputs of a step come to, without the state.
    pub projected: &'m str,
    /// The products with the state, in the order of their use.
    pub factors: Vec<&'m Node>,
    /// Outputs of the nodes that the cell stands for: those of the products and of the sum.
    pub inside: HashSet<&'m str>,
    /// Outputs of nodes that come after the last step.
    pub after: HashSet<&'m str>,
}

/// Whether a model is one step of a recurrent network: training and measuring take sequences then.
pub fn is_recurrent(model: &Model) -> bool {
    model.graph().inputs.iter().any(|i| i.carried.is_some())
}

/// The cell of a recurrent graph.
pub(super) fn find(graph: &Graph) -> Result<Cell<'_>> {
    let cells: Vec<&Node> = (graph.nodes.iter())
        .filter(|n| n.op == Op::FastGRNN)
        .collect();
    let carried: Vec<_> = (graph.inputs.iter())
        .filter_map(|i| Some((i.name.as_str(), i.carried.as_deref()?)))
        .collect();
    let (&[node], &[(state, from)]) = (&cells[..], &carried[..]) else {
        return Err(refuse(format!(
            "{} FastGRNN cells and {} carried inputs; sequences are learned by one cell with its state",
            cells.len(),
            carried.len()
        )));
    };
    if node.inputs[1] != state || node.output != from {
        return Err(at(node, format!("`{state}` is not its state")));
    }
    let made_by = |name: &str| graph.nodes.iter().find(|n| n.output == name);
    let readers = |name: &str| {
        let nodes = graph.nodes.iter().flat_map(|n| &n.inputs);
        nodes.chain(&graph.outputs).filter(|i| *i == name).count()
    };
    let sum = made_by(&node.inputs[0]).filter(|n| n.op == Op::Add);
    let sum = sum.ok_or_else(|| at(node, "its products are not a sum of two"))?;
    // From the sum back to the state, by products with weights.
    let chain = |end: &'_ str| -> Option<Vec<&Node>> {
        let mut factors = Vec::new();
        let mut name = end;
        while name != state {
            let node = made_by(name).filter(|n| matches!(n.op, Op::MatMul { .. }))?;
            if readers(name) != 1 {
                return None;
            }
            factors.push(node);
            name = &node.inputs[0];
        }
        factors.reverse();
        (!factors.is_empty()).then_some(factors)
    };
    let found = [(0, 1), (1, 0)]
        .into_iter()
        .find_map(|(own, other)| Some((chain(&sum.inputs[own])?, sum.inputs[other].as_str())));
    let Some((factors, projected)) = found else {
        return Err(at(
            sum,
            "no operand of it is a product of the state with weights alone",
        ));
    };
    if readers(state) != 2 || readers(&sum.output) != 1 {
        return Err(at(node, "its state or products are read elsewhere too"));
    }
    let inside = factors.iter().chain([&sum]).map(|n| n.output.as_str());
    let mut after = HashSet::new();
    for later in &graph.nodes {
        if later
            .inputs
            .iter()
            .any(|i| *i == node.output || after.contains(i.as_str()))
        {
            after.insert(later.output.as_str());
        }
    }
    Ok(Cell {
        node,
        projected,
        inside: inside.collect(),
        factors,
        after,
    })
}

impl Cell<'_> {
    /// What the step of the tape takes: the inputs of every step, the vectors, the matrices of the products.
    pub fn order(&self) -> Vec<&str> {
        let vectors = self.node.inputs[2..].iter().map(String::as_str);
        let matrices = self.factors.iter().map(|f| f.inputs[1].as_str());
        [self.projected]
            .into_iter()
            .chain(vectors)
            .chain(matrices)
            .collect()
    }

    /// The step of the tape for `batch` sequences of `time` steps, with the shapes of values and weights.
    pub fn kind(
        &self,
        shape: &dyn Fn(&str) -> Result<Vec<usize>>,
        [sequences, time]: [usize; 2],
        is_parameter: &[bool],
    ) -> Result<Kind> {
        let parameters = &self.order()[1..];
        if (1..parameters.len()).any(|i| parameters[..i].contains(&parameters[i])) {
            return Err(at(self.node, "it reads a weight twice"));
        }
        if is_parameter[0] || !is_parameter[1..].iter().all(|p| *p) {
            return Err(at(
                self.node,
                "its weights are computed, or its products are not",
            ));
        }
        let factors: Result<Vec<Dense>> = (self.factors.iter())
            .map(|node| {
                let transposed = node.op == Op::MatMul { trans_b: true };
                let (first, second) = match shape(&node.inputs[1])?[..] {
                    [first, second] => (first, second),
                    _ => return Err(at(node, "its weight has other than two axes")),
                };
                let (inputs, outputs) = match transposed {
                    true => (second, first),
                    false => (first, second),
                };
                Ok(Dense {
                    rows: sequences * time,
                    inputs,
                    outputs,
                    transposed,
                    alpha: 1.0,
                    beta: 1.0,
                })
            })
            .collect();
        Ok(Kind::Recurrent(Recurrent {
            sequences,
            time,
            width: shape(&self.node.output)?[1],
            factors: factors?,
        }))
    }
}
