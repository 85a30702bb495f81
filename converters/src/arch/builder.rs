//! Builds a graph layer by layer, over modules named as in the state dict.

use super::is_counter;
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Weight, Weights, Window};
use std::collections::BTreeSet;

/// The epsilon of every batch normalisation.
const EPSILON: f32 = 1e-5;

/// A value of the graph and its channels.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub name: String,
    /// 0 where a missing tensor leaves it open.
    pub channels: usize,
}

/// A graph under construction. Missing tensors are collected and reported together at the end.
pub(super) struct Builder<'a> {
    tensors: &'a Weights,
    shape: Option<&'a [Dim]>,
    used: BTreeSet<String>,
    missing: Vec<String>,
    graph: Graph,
}

impl<'a> Builder<'a> {
    pub fn new(tensors: &'a Weights, shape: Option<&'a [Dim]>) -> Builder<'a> {
        Builder {
            tensors,
            shape,
            used: BTreeSet::new(),
            missing: Vec::new(),
            graph: Graph::default(),
        }
    }

    /// Whether the state dict has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How many of `prefix.0.`, `prefix.1.`, ... there are tensors for.
    pub fn count(&self, prefix: &str) -> usize {
        (0..)
            .take_while(|i| {
                let head = format!("{prefix}.{i}.");
                let next = self.tensors.range(head.clone()..).next();
                next.is_some_and(|(name, _)| name.starts_with(&head))
            })
            .count()
    }

    /// Size `axis` of a tensor, 0 when there is none.
    pub fn size(&self, name: &str, axis: usize) -> usize {
        let shape = self.tensors.get(name).map(Weight::shape);
        shape.and_then(|s| s.get(axis)).copied().unwrap_or(0)
    }

    /// The input `x [N, channels, size, size]`, where the channels are those of a convolution.
    pub fn input(&mut self, conv: &str, size: usize) -> Value {
        let channels = self.size(&format!("{conv}.weight"), 1);
        let fixed = [channels, size, size].map(Dim::Fixed);
        let batch = Dim::Symbol("N".into());
        let own = std::iter::once(batch).chain(fixed).collect();
        self.takes(Input::f32("x", own));
        Value {
            name: "x".into(),
            channels,
        }
    }

    /// An input, of the shape that the caller asked for if there is one.
    pub fn takes(&mut self, input: Input) {
        let shape = self.shape.map_or(input.shape, <[Dim]>::to_vec);
        self.graph.inputs.push(Input { shape, ..input });
    }

    /// An input of this shape, whatever the caller asked for.
    pub fn takes_own(&mut self, input: Input) {
        self.graph.inputs.push(input);
    }

    /// An output of the graph.
    pub fn returns(&mut self, value: &str) {
        self.graph.outputs.push(value.to_owned());
    }

    /// The output of the last node, `value`, under another name.
    pub fn rename_output(&mut self, value: &str, name: &str) {
        if let Some(last) = self.graph.nodes.last_mut()
            && last.output == value
        {
            last.output = name.to_owned();
        }
    }

    /// A node named `name` over values and tensors by their names.
    pub fn over(&mut self, name: &str, op: Op, values: &[&str], tensors: &[&str]) -> String {
        for tensor in tensors {
            self.uses(tensor);
        }
        let inputs = values.iter().chain(tensors);
        self.graph.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs: inputs.map(|n| n.to_string()).collect(),
            output: name.to_owned(),
        });
        name.to_owned()
    }

    /// Notes that the network has this tensor.
    fn uses(&mut self, tensor: &str) {
        if !self.has(tensor) && !self.missing.iter().any(|m| m == tensor) {
            self.missing.push(tensor.to_owned());
        }
        self.used.insert(tensor.to_owned());
    }

    /// A node named `name` over values and the tensors `weights` of the module of that name.
    fn node(&mut self, name: &str, op: Op, inputs: &[&Value], weights: &[&str]) -> String {
        let values: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        let tensors: Vec<String> = weights.iter().map(|p| format!("{name}.{p}")).collect();
        let tensors: Vec<&str> = tensors.iter().map(String::as_str).collect();
        self.over(name, op, &values, &tensors)
    }

    /// A module without tensors that keeps the channels.
    pub fn apply(&mut self, name: &str, op: Op, x: &Value) -> Value {
        Value {
            name: self.node(name, op, &[x], &[]),
            channels: x.channels,
        }
    }

    /// A square convolution; kernel, channels, groups and whether there is a bias come from the
    /// tensors.
    pub fn conv(&mut self, name: &str, x: &Value, stride: usize, pad: usize) -> Value {
        let weight = format!("{name}.weight");
        let per_group = self.size(&weight, 1);
        let op = Op::Conv {
            strides: [stride; 2],
            padding: Padding::Explicit([pad; 4]),
            dilations: [1; 2],
            groups: x.channels.checked_div(per_group).unwrap_or(1).max(1),
        };
        let parts = self.parts(name);
        Value {
            name: self.node(name, op, &[x], parts),
            channels: self.size(&weight, 0),
        }
    }

    /// Batch normalisation.
    pub fn norm(&mut self, name: &str, x: &Value) -> Value {
        let op = Op::BatchNormalization { epsilon: EPSILON };
        let parts = ["weight", "bias", "running_mean", "running_var"];
        Value {
            name: self.node(name, op, &[x], &parts),
            channels: x.channels,
        }
    }

    /// `a + b`.
    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        Value {
            name: self.node(name, Op::Add, &[a, b], &[]),
            channels: a.channels,
        }
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, name: &str, x: &Value) -> Value {
        self.apply(name, Op::Relu, x)
    }

    /// The largest element of square windows.
    pub fn max_pool(
        &mut self,
        name: &str,
        x: &Value,
        size: usize,
        stride: usize,
        pad: usize,
    ) -> Value {
        let window = Window {
            kernel: [size; 2],
            strides: [stride; 2],
            padding: Padding::Explicit([pad; 4]),
            dilations: [1; 2],
            ceil_mode: false,
        };
        self.apply(name, Op::MaxPool(window), x)
    }

    /// The mean of each plane, flattened, and a linear layer, whose result is the output `logits`.
    pub fn classify(&mut self, linear: &str, x: &Value) {
        let x = self.apply("avgpool", Op::GlobalAveragePool, x);
        let x = self.apply("flatten", Op::Flatten { axis: 1 }, &x);
        self.linear(linear, &x.name);
    }

    /// A linear layer on `x`, whose result is the output `logits`.
    pub fn linear(&mut self, name: &str, x: &str) {
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        let x = Value {
            name: x.to_owned(),
            channels: 0,
        };
        let parts = self.parts(name);
        let y = self.node(name, op, &[&x], parts);
        self.rename_output(&y, "logits");
        self.returns("logits");
    }

    /// The tensors of a module with a weight and perhaps a bias.
    fn parts(&self, name: &str) -> &'static [&'static str] {
        if self.has(&format!("{name}.bias")) {
            &["weight", "bias"]
        } else {
            &["weight"]
        }
    }

    /// The graph, once every tensor is used and none is missing.
    pub fn finish(self, name: String) -> Result<Graph, String> {
        if !self.missing.is_empty() {
            return Err(format!("missing tensors: {}", list(&self.missing)));
        }
        let left: Vec<String> = self
            .tensors
            .keys()
            .filter(|name| !self.used.contains(*name) && !is_counter(name))
            .cloned()
            .collect();
        if !left.is_empty() {
            return Err(format!("tensors without a use: {}", list(&left)));
        }
        for name in &self.used {
            let dtype = self.tensors[name].dtype();
            if !dtype.is_float() {
                return Err(format!("`{name}` is {dtype}; weights are F32, F16 or BF16"));
            }
        }
        Ok(Graph { name, ..self.graph })
    }
}

/// The first names, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let head = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => head,
        more => format!("{head} and {more} more"),
    }
}
