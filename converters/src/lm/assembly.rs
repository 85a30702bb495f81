//! A graph under construction over named tensors. Missing tensors are collected and reported
//! together.

use lacuna::model::{Dim, Graph, Input, Node, Op, Weight, Weights};
use std::collections::BTreeSet;

pub(super) struct Assembly {
    weights: Weights,
    used: BTreeSet<String>,
    missing: Vec<String>,
    graph: Graph,
}

impl Assembly {
    pub fn new(weights: Weights) -> Assembly {
        Assembly {
            weights,
            used: BTreeSet::new(),
            missing: Vec::new(),
            graph: Graph::default(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// How many of `prefix.0.`, `prefix.1.`, ... there are tensors for.
    pub fn count(&self, prefix: &str) -> usize {
        let any = |i: &usize| {
            let head = format!("{prefix}.{i}.");
            let next = self.weights.range(head.clone()..).next();
            next.is_some_and(|(name, _)| name.starts_with(&head))
        };
        (0..).take_while(any).count()
    }

    /// Adds a tensor that no file holds.
    pub fn insert(&mut self, name: &str, weight: Weight) {
        self.weights.insert(name.to_owned(), weight);
    }

    /// Drops a tensor that the graph has no use for.
    pub fn discard(&mut self, name: &str) {
        self.weights.remove(name);
    }

    /// An I64 input.
    pub fn tokens(&mut self, name: &str, shape: &[Dim]) -> String {
        self.graph.inputs.push(Input::i64(name, shape.to_vec()));
        name.to_owned()
    }

    /// The name of a tensor, which is from now on used.
    pub fn weight(&mut self, name: impl Into<String>) -> String {
        let name = name.into();
        if !self.has(&name) && !self.missing.contains(&name) {
            self.missing.push(name.clone());
        }
        self.used.insert(name.clone());
        name
    }

    /// A node; its value has its name.
    pub fn node(&mut self, name: impl Into<String>, op: Op, inputs: &[&str]) -> String {
        let name = name.into();
        self.graph.nodes.push(Node {
            name: name.clone(),
            op,
            inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: name.clone(),
        });
        name
    }

    /// A module with a weight and perhaps a bias, both inputs of one node.
    pub fn module(&mut self, name: &str, op: Op, x: &str) -> String {
        let weight = self.weight(format!("{name}.weight"));
        let bias = format!("{name}.bias");
        if self.has(&bias) {
            let bias = self.weight(bias);
            self.node(name, op, &[x, &weight, &bias])
        } else {
            self.node(name, op, &[x, &weight])
        }
    }

    /// A linear layer: a product with its weight `[O, I]` and, where there is one, its bias.
    pub fn linear(&mut self, name: &str, x: &str) -> String {
        let weight = self.weight(format!("{name}.weight"));
        let y = self.node(name, Op::MatMul { trans_b: true }, &[x, &weight]);
        let bias = format!("{name}.bias");
        if !self.has(&bias) {
            return y;
        }
        let bias = self.weight(bias);
        self.node(format!("{name}.add_bias"), Op::Add, &[&y, &bias])
    }

    /// How many heads of `size` rows the weight of a linear layer has; 1 where it is missing.
    pub fn heads(&self, linear: &str, size: usize) -> Result<usize, String> {
        let name = format!("{linear}.weight");
        let rows = match self.weights.get(&name).map(Weight::shape) {
            Some([rows, _]) => *rows,
            Some(shape) => return Err(format!("`{name}` has shape {shape:?}, not a matrix's")),
            None => return Ok(1),
        };
        if size == 0 || rows == 0 || !rows.is_multiple_of(size) {
            return Err(format!(
                "`{name}` has {rows} rows, which are no heads of {size}"
            ));
        }
        Ok(rows / size)
    }

    /// Calls the value of the last node `name` and returns it from every run.
    pub fn output(&mut self, name: &str) {
        if let Some(last) = self.graph.nodes.last_mut() {
            last.output = name.to_owned();
        }
        self.graph.outputs.push(name.to_owned());
    }

    /// The graph and its weights, once every tensor is used and none is missing. Sparse weights
    /// stay so where a product reads them, and only there.
    pub fn finish(mut self, name: &str) -> Result<(Graph, Weights), String> {
        if !self.missing.is_empty() {
            return Err(format!("missing tensors: {}", list(&self.missing)));
        }
        let left: Vec<String> = self
            .weights
            .keys()
            .filter(|name| !self.used.contains(*name))
            .cloned()
            .collect();
        if !left.is_empty() {
            return Err(format!("tensors without a use: {}", list(&left)));
        }
        for node in &self.graph.nodes {
            for (i, input) in node.inputs.iter().enumerate() {
                if node.op.weight_input() != Some(i)
                    && let Some(weight) = self.weights.get_mut(input)
                    && weight.is_sparse()
                {
                    *weight = weight.decode();
                }
            }
        }
        self.graph.name = name.to_owned();
        Ok((self.graph, self.weights))
    }
}

/// The first names, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let head: Vec<String> = names.iter().take(SHOWN).map(|n| shown(n)).collect();
    let head = head.join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => head,
        more => format!("{head} and {more} more"),
    }
}

/// A name from a file, cut where it is long.
fn shown(text: &str) -> String {
    crate::source::shown(text)
}
