//! The graph: named values joined by nodes, in an order that can be executed.

use super::Op;
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// One dimension of an input's shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A known size.
    Fixed(usize),
    /// A size that is bound when a session is made, such as the batch `N`.
    Symbol(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => n.fmt(f),
            Dim::Symbol(s) => s.fmt(f),
        }
    }
}

/// Sizes for symbolic dimensions, by name.
pub type Symbols = BTreeMap<String, usize>;

/// A graph input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The value's name.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<Dim>,
    /// Its element type: F32, or I64 for token ids and masks.
    #[serde(default = "f32_dtype", skip_serializing_if = "is_f32")]
    pub dtype: DType,
    /// The output that the next step of a sequence takes here, where the model is one step of a recurrent
    /// network; the first step takes zeros. See [`Stream`](crate::Stream).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<String>,
}

fn f32_dtype() -> DType {
    DType::F32
}

fn is_f32(dtype: &DType) -> bool {
    *dtype == DType::F32
}

impl Input {
    /// An f32 input.
    pub fn f32(name: impl Into<String>, shape: Vec<Dim>) -> Input {
        Input {
            name: name.into(),
            shape,
            dtype: DType::F32,
            carried: None,
        }
    }

    /// An f32 input that a stream takes from `output` of the step before.
    pub fn carried(name: impl Into<String>, shape: Vec<Dim>, output: impl Into<String>) -> Input {
        Input {
            carried: Some(output.into()),
            ..Input::f32(name, shape)
        }
    }

    /// An I64 input.
    pub fn i64(name: impl Into<String>, shape: Vec<Dim>) -> Input {
        Input {
            name: name.into(),
            shape,
            dtype: DType::I64,
            carried: None,
        }
    }
}

/// One operation. Its inputs are graph inputs, outputs of earlier nodes, or weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// A name for reports, unique in the graph.
    pub name: String,
    /// The operator with its attributes.
    #[serde(flatten)]
    pub op: Op,
    /// Names of the inputs in the operator's order; an optional input that is absent is `""`.
    pub inputs: Vec<String>,
    /// The name of the output.
    pub output: String,
}

/// A model's computation, without its weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// A name for reports.
    pub name: String,
    /// What a run is given.
    pub inputs: Vec<Input>,
    /// Names of the values that a run returns.
    pub outputs: Vec<String>,
    /// The nodes, each after the nodes whose outputs it reads.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Checks names, order and arity. `is_weight` tells which names are weights of the model.
    pub fn validate(&self, is_weight: impl Fn(&str) -> bool) -> Result<()> {
        let bad = |what: String| Error::Graph {
            graph: self.name.clone(),
            what,
        };
        let mut known: HashSet<&str> = HashSet::new();
        for input in &self.inputs {
            if input.name.is_empty() || is_weight(&input.name) || !known.insert(&input.name) {
                return Err(bad(format!(
                    "input name `{}` is empty or taken",
                    input.name
                )));
            }
        }
        let mut names: HashSet<&str> = HashSet::new();
        for node in &self.nodes {
            if !names.insert(&node.name) {
                return Err(bad(format!("two nodes are named `{}`", node.name)));
            }
            let (min, max) = node.op.arity();
            if node.inputs.len() < min || node.inputs.len() > max {
                return Err(Error::node(
                    node,
                    format!("{} inputs, expected {min} to {max}", node.inputs.len()),
                ));
            }
            for (i, name) in node.inputs.iter().enumerate() {
                if name.is_empty() {
                    if i < min {
                        return Err(Error::node(node, format!("input {i} is required")));
                    }
                } else if !known.contains(name.as_str()) && !is_weight(name) {
                    return Err(Error::node(
                        node,
                        format!(
                            "input {i}, `{name}`, is no input, weight or output of an earlier node"
                        ),
                    ));
                }
            }
            if node.output.is_empty() || is_weight(&node.output) || !known.insert(&node.output) {
                return Err(Error::node(
                    node,
                    format!("output name `{}` is empty or taken", node.output),
                ));
            }
        }
        if self.outputs.is_empty() {
            return Err(bad("no outputs".into()));
        }
        for output in &self.outputs {
            if !known.contains(output.as_str()) {
                return Err(bad(format!("output `{output}` is computed by no node")));
            }
        }
        let mut carried: HashSet<&str> = HashSet::new();
        for input in &self.inputs {
            let Some(output) = &input.carried else {
                continue;
            };
            if !self.outputs.contains(output) || !carried.insert(output) {
                return Err(bad(format!(
                    "input `{}` is carried from `{output}`, which is no output or taken",
                    input.name
                )));
            }
        }
        Ok(())
    }

    /// Checks that every value is of the kind that its readers take: integers for indices and masks,
    /// floating-point numbers for everything else.
    pub fn check_dtypes(&self, weight: impl Fn(&str) -> Option<DType>) -> Result<()> {
        let integers = |name: &str| {
            let input = self.inputs.iter().find(|i| i.name == name);
            match input.map(|i| i.dtype).or_else(|| weight(name)) {
                Some(dtype) => (!dtype.is_float()).then_some(dtype),
                None => None,
            }
        };
        for input in &self.inputs {
            if !matches!(input.dtype, DType::F32 | DType::I64) {
                return Err(Error::Graph {
                    graph: self.name.clone(),
                    what: format!(
                        "input `{}` is of {}, not F32 or I64",
                        input.name, input.dtype
                    ),
                });
            }
            if input.carried.is_some() && input.dtype != DType::F32 {
                return Err(Error::Graph {
                    graph: self.name.clone(),
                    what: format!("input `{}` is carried and not F32", input.name),
                });
            }
        }
        for node in &self.nodes {
            for (i, name) in node
                .inputs
                .iter()
                .enumerate()
                .filter(|(_, n)| !n.is_empty())
            {
                let what = match (integers(name), node.op.is_integer_input(i)) {
                    (None, true) => "holds no integers",
                    (Some(DType::I64), true) | (None, false) => continue,
                    (Some(_), true) => "holds integers other than I64",
                    (Some(_), false) => "must be floating point",
                };
                return Err(Error::node(node, format!("input {i}, `{name}`, {what}")));
            }
        }
        match self.outputs.iter().find(|o| integers(o).is_some()) {
            Some(output) => Err(Error::Graph {
                graph: self.name.clone(),
                what: format!("output `{output}` holds integers"),
            }),
            None => Ok(()),
        }
    }
}
