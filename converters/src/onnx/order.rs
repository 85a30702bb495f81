//! Which nodes of a graph are needed, and in what order.

use super::proto::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// The nodes that the graph's outputs depend on, by index, each after those that it reads from; as
/// close to the order of the file as that allows.
pub(super) fn needed(graph: &GraphProto) -> Result<Vec<usize>, String> {
    let taken: HashSet<&str> = graph
        .input
        .iter()
        .map(|i| i.name.as_str())
        .chain(graph.initializer.iter().map(|t| t.name.as_str()))
        .collect();
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if taken.contains(output.as_str()) || producer.insert(output, i).is_some() {
                return Err(format!("two values are named `{output}`"));
            }
        }
    }
    let sources = |node: &NodeProto| -> HashSet<usize> {
        let inputs = node.input.iter();
        inputs
            .filter_map(|name| producer.get(name.as_str()).copied())
            .collect()
    };
    let mut open: Vec<usize> = graph
        .output
        .iter()
        .filter_map(|o| producer.get(o.name.as_str()).copied())
        .collect();
    let mut waits_for: HashMap<usize, usize> = HashMap::new();
    let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
    while let Some(i) = open.pop() {
        if waits_for.contains_key(&i) {
            continue;
        }
        let sources = sources(&graph.node[i]);
        waits_for.insert(i, sources.len());
        for s in sources {
            readers.entry(s).or_default().push(i);
            open.push(s);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = waits_for
        .iter()
        .filter(|(_, n)| **n == 0)
        .map(|(i, _)| Reverse(*i))
        .collect();
    let mut order = Vec::with_capacity(waits_for.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for reader in readers.remove(&i).into_iter().flatten() {
            if let Some(left) = waits_for.get_mut(&reader) {
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse(reader));
                }
            }
        }
    }
    if order.len() == waits_for.len() {
        return Ok(order);
    }
    let stuck = waits_for.iter().filter(|(_, n)| **n > 0).map(|(i, _)| *i);
    let first = stuck.min().map(|i| &graph.node[i]);
    let shown = first.map_or(String::new(), |n| format!("`{}` ({})", n.name, n.op_type));
    Err(format!(
        "the graph has a cycle, which holds up node {shown}"
    ))
}
