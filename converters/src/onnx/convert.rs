//! The conversion of a graph: names to values, nodes to operators.

use super::attrs::Attrs;
use super::call::Call;
use super::ints::Ints;
use super::proto::{GraphProto, NodeProto, SparseTensorProto, TensorProto};
use super::tensor::Reader;
use super::value::{Constant, Value};
use super::{activations, axes, fold, ops};
use lacuna::DType;
use lacuna::Error as ModelError;
use lacuna::model::{Dim, Graph, Input, Node, Op, Symbols, Weight, Weights, infer_shapes};
use std::collections::{HashMap, HashSet};

/// The largest size of one axis.
const MAX_SIZE: usize = 1 << 40;

/// A conversion under way.
pub(super) struct Converter<'a> {
    pub reader: Reader<'a>,
    opset: i64,
    dense: HashMap<&'a str, &'a TensorProto>,
    sparse: HashMap<&'a str, &'a SparseTensorProto>,
    values: HashMap<String, Value>,
    /// Names that nodes or the graph's outputs refer to.
    read: HashSet<&'a str>,
    outputs: HashSet<&'a str>,
    /// Every name of a value in the file or the new graph.
    taken: HashSet<String>,
    node_names: HashSet<String>,
    nodes: Vec<Node>,
    /// Axes of every value that is computed.
    ranks: HashMap<String, usize>,
    weights: Weights,
    /// The names under which constants became weights.
    weight_names: HashMap<(String, bool), String>,
    /// Matrices that have been seen in both orientations.
    matrices: HashMap<(String, bool), Weight>,
}

impl<'a> Converter<'a> {
    pub fn new(graph: &'a GraphProto, opset: i64, reader: Reader<'a>) -> Converter<'a> {
        let sparse = graph.sparse_initializer.iter();
        let sparse = sparse.filter(|s| s.values.is_some());
        let node_names = graph.node.iter().flat_map(|n| n.output.iter());
        let inputs = graph.node.iter().flat_map(|n| n.input.iter());
        let outputs = graph.output.iter().map(|o| o.name.as_str());
        Converter {
            reader,
            opset,
            dense: graph
                .initializer
                .iter()
                .map(|t| (t.name.as_str(), t))
                .collect(),
            sparse: sparse_names(graph)
                .map(String::as_str)
                .zip(sparse)
                .collect(),
            values: HashMap::new(),
            read: inputs.map(String::as_str).chain(outputs.clone()).collect(),
            outputs: outputs.collect(),
            taken: node_names
                .chain(graph.input.iter().map(|i| &i.name))
                .chain(graph.initializer.iter().map(|t| &t.name))
                .chain(sparse_names(graph))
                .cloned()
                .collect(),
            node_names: HashSet::new(),
            nodes: Vec::new(),
            ranks: HashMap::new(),
            weights: Weights::new(),
            weight_names: HashMap::new(),
            matrices: HashMap::new(),
        }
    }

    /// Whether the file has a constant of this name.
    pub fn is_initializer(&self, name: &str) -> bool {
        self.dense.contains_key(name) || self.sparse.contains_key(name)
    }

    /// Makes an input known.
    pub fn input(&mut self, input: &Input) -> Result<(), String> {
        check_sizes(&input.shape)?;
        self.ranks.insert(input.name.clone(), input.shape.len());
        let value = Value::Tensor {
            name: input.name.clone(),
            shape: input.shape.clone(),
        };
        self.values.insert(input.name.clone(), value);
        Ok(())
    }

    /// The value of a name; constants of the file are read when they are first needed.
    fn value(&mut self, name: &str) -> Result<Value, String> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let value = match (self.dense.get(name), self.sparse.get(name)) {
            (Some(tensor), _) => self.reader.dense(name, tensor),
            (None, Some(sparse)) => self.reader.sparse(name, sparse),
            (None, None) => {
                return Err(format!(
                    "`{name}` is no input, initializer or output of a node"
                ));
            }
        };
        let value = value.map_err(|what| format!("initializer `{name}`: {what}"))?;
        self.values.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    /// Converts the node at `index` of the file.
    pub fn node(&mut self, index: usize, node: &'a NodeProto) -> Result<(), String> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            return Err(format!(
                "operators of the domain `{}` are not supported; supported of ai.onnx: {}",
                node.domain,
                super::supported_ops().join(", ")
            ));
        }
        if node.op_type == "Split" {
            return self.split(index, node);
        }
        let output = match node.output.first() {
            Some(name) if !name.is_empty() => name.as_str(),
            _ => return Err("the first output has no name".into()),
        };
        let second = node.output[1..].iter().enumerate();
        if let Some((i, name)) = second
            .filter(|(_, name)| !name.is_empty())
            .find(|(_, name)| self.read.contains(name.as_str()))
        {
            return Err(format!(
                "output {}, `{name}`, is used; only the first output is supported",
                i + 1
            ));
        }
        let mut call = self.call(index, node, output)?;
        let value = ops::convert(self, &mut call)?;
        call.attrs.finish()?;
        self.define(&call, value)
    }

    /// `Split`: a slice for each output that something reads.
    fn split(&mut self, index: usize, node: &'a NodeProto) -> Result<(), String> {
        let mut call = self.call(index, node, "")?;
        let (axis, sizes) = axes::parts(&mut call, node.output.len())?;
        call.attrs.finish()?;
        let mut start = 0;
        for (i, (output, size)) in node.output.iter().zip(sizes).enumerate() {
            let end = start + size;
            if self.read.contains(output.as_str()) {
                let part = Call {
                    name: unique(&mut self.node_names, &format!("{}_{i}", call.name)),
                    op: call.op,
                    inputs: call.inputs.clone(),
                    attrs: Attrs::new(node),
                    output,
                    opset: call.opset,
                };
                let value = axes::part(self, &part, axis, start, end)?;
                self.define(&part, value)?;
            }
            start = end;
        }
        Ok(())
    }

    /// A node with its inputs resolved.
    fn call(
        &mut self,
        index: usize,
        node: &'a NodeProto,
        output: &'a str,
    ) -> Result<Call<'a>, String> {
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(if name.is_empty() {
                None
            } else {
                Some(self.value(name)?)
            });
        }
        Ok(Call {
            name: self.node_name(index, node),
            op: &node.op_type,
            inputs,
            attrs: Attrs::new(node),
            output,
            opset: self.opset,
        })
    }

    /// Makes the output of a call known; an output of the graph is always computed.
    fn define(&mut self, call: &Call<'_>, mut value: Value) -> Result<(), String> {
        let output = call.output;
        if self.outputs.contains(output)
            && !matches!(&value, Value::Tensor { name, .. } if name == output)
        {
            value = self.emit(call, Op::Identity, &[&value])?;
        }
        self.values.insert(output.to_owned(), value);
        Ok(())
    }

    /// The node's name, made unique; `<Op>_<index>` where the file has none.
    fn node_name(&mut self, index: usize, node: &NodeProto) -> String {
        let wanted = if node.name.is_empty() {
            format!("{}_{index}", node.op_type)
        } else {
            node.name.clone()
        };
        unique(&mut self.node_names, &wanted)
    }

    /// Adds the node of a call to the graph.
    pub fn emit(&mut self, call: &Call<'_>, op: Op, inputs: &[&Value]) -> Result<Value, String> {
        self.push(call.name.clone(), op, inputs, call.output.to_owned())
    }

    /// Adds a node that the file does not have: a step of `call` before its last one.
    pub fn emit_step(
        &mut self,
        call: &Call<'_>,
        step: &str,
        op: Op,
        inputs: &[&Value],
    ) -> Result<Value, String> {
        let name = unique(&mut self.node_names, &format!("{}_{step}", call.name));
        let output = self.fresh(&format!("{}_{step}", call.output));
        self.push(name, op, inputs, output)
    }

    /// A name for a value that the file does not have.
    pub fn fresh(&mut self, base: &str) -> String {
        unique(&mut self.taken, base)
    }

    fn push(
        &mut self,
        name: String,
        op: Op,
        inputs: &[&Value],
        output: String,
    ) -> Result<Value, String> {
        if inputs.iter().all(|v| v.is_constant()) {
            return Err("every input is a constant; this operator is not folded".into());
        }
        let shapes: Vec<Vec<Dim>> = inputs.iter().map(|v| v.shape()).collect();
        let shape = infer(&op, &shapes)?;
        self.ranks.insert(output.clone(), shape.len());
        let mut names = Vec::with_capacity(inputs.len());
        for (i, value) in inputs.iter().enumerate() {
            names.push(match value {
                Value::Tensor { name, .. } => name.clone(),
                Value::Weight(c) => self.weight_name(c),
                Value::Ints(ints) if op.is_integer_input(i) => self.indices(&output, ints)?,
                Value::Ints(_) => {
                    return Err(format!("input {i} holds integers; a run computes in f32"));
                }
            });
        }
        self.nodes.push(Node {
            name,
            op,
            inputs: names,
            output: output.clone(),
        });
        Ok(Value::Tensor {
            name: output,
            shape,
        })
    }

    /// The name of a constant as a weight of the model, which it becomes now.
    fn weight_name(&mut self, constant: &Constant) -> String {
        let key = (constant.name.clone(), constant.transposed);
        if let Some(name) = self.weight_names.get(&key) {
            return name.clone();
        }
        let name = if self.weights.contains_key(&constant.name) {
            unique(&mut self.taken, &format!("{}_transposed", constant.name))
        } else {
            constant.name.clone()
        };
        self.weights.insert(name.clone(), constant.weight.clone());
        self.weight_names.insert(key, name.clone());
        name
    }

    /// Integers as a weight of the model, for the node that computes `output`.
    fn indices(&mut self, output: &str, ints: &Ints) -> Result<String, String> {
        let known = ints.known().ok_or("indices that are symbolic")?;
        self.reader.budget.spend(known.len(), DType::I64.size())?;
        let bytes: Vec<u8> = known.iter().flat_map(|i| i.to_le_bytes()).collect();
        let weight = Weight::dense(ints.shape.clone(), DType::I64, bytes.into())?;
        let name = self.fresh(&format!("{output}_indices"));
        self.weights.insert(name.clone(), weight);
        Ok(name)
    }

    /// A matrix with its axes swapped, under the name that it has.
    pub fn transposed(&mut self, constant: &Constant) -> Result<Constant, String> {
        let key = (constant.name.clone(), !constant.transposed);
        let weight = match self.matrices.get(&key) {
            Some(weight) => weight.clone(),
            None => {
                let value = Value::Weight(constant.clone());
                let swapped = fold::transpose("", &value, &[1, 0], &mut self.reader.budget)?;
                let Value::Weight(swapped) = swapped else {
                    return Err("a matrix of integers".into());
                };
                self.matrices.insert(
                    (constant.name.clone(), constant.transposed),
                    constant.weight.clone(),
                );
                self.matrices.insert(key, swapped.weight.clone());
                swapped.weight
            }
        };
        Ok(Constant {
            name: constant.name.clone(),
            weight,
            transposed: !constant.transposed,
        })
    }

    /// The graph and its weights, without nodes and weights that no output needs.
    pub fn finish(
        mut self,
        name: String,
        inputs: Vec<Input>,
        outputs: Vec<String>,
    ) -> Result<(Graph, Weights, Reader<'a>), String> {
        for output in &outputs {
            match self.values.get(output) {
                Some(Value::Tensor { .. }) => {}
                Some(_) => return Err(format!("output `{output}` is a constant")),
                None => return Err(format!("output `{output}` is computed by no node")),
            }
        }
        activations::fuse(&mut self.nodes, &self.weights, &self.ranks);
        let mut needed: HashSet<String> = outputs.iter().cloned().collect();
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.into_iter().rev() {
            if needed.contains(&node.output) {
                needed.extend(node.inputs.iter().cloned());
                nodes.push(node);
            }
        }
        nodes.reverse();
        self.weights.retain(|name, _| needed.contains(name));
        let graph = Graph {
            name,
            inputs,
            outputs,
            nodes,
        };
        Ok((graph, self.weights, self.reader))
    }
}

/// The names of the sparse initializers.
fn sparse_names(graph: &GraphProto) -> impl Iterator<Item = &String> {
    let values = graph.sparse_initializer.iter();
    values.filter_map(|s| s.values.as_ref().map(|v| &v.name))
}

/// The wanted name, or the first of `wanted_2`, `wanted_3`, ... that is free; it is taken then.
fn unique(taken: &mut HashSet<String>, wanted: &str) -> String {
    let mut name = wanted.to_owned();
    let mut n = 1u64;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{wanted}_{n}");
    }
    name
}

/// The shape of what `op` makes of inputs of these shapes.
pub(super) fn infer(op: &Op, shapes: &[Vec<Dim>]) -> Result<Vec<Dim>, String> {
    const OUTPUT: &str = "out";
    let names: Vec<String> = (0..shapes.len()).map(|i| i.to_string()).collect();
    let inputs = names
        .iter()
        .zip(shapes)
        .map(|(name, shape)| Input::f32(name.clone(), shape.clone()));
    let graph = Graph {
        name: String::new(),
        inputs: inputs.collect(),
        outputs: vec![OUTPUT.into()],
        nodes: vec![Node {
            name: String::new(),
            op: op.clone(),
            inputs: names,
            output: OUTPUT.into(),
        }],
    };
    let mut shapes =
        infer_shapes(&graph, &Weights::new(), &Symbols::new()).map_err(|e| match e {
            ModelError::Node { what, .. } => what,
            other => other.to_string(),
        })?;
    let shape = shapes.remove(OUTPUT).unwrap_or_default();
    check_sizes(&shape)?;
    Ok(shape)
}

fn check_sizes(shape: &[Dim]) -> Result<(), String> {
    let too_large = |d: &&Dim| matches!(d, Dim::Fixed(n) if *n > MAX_SIZE);
    match shape.iter().find(too_large) {
        Some(d) => Err(format!("an axis of size {d}; at most {MAX_SIZE}")),
        None => Ok(()),
    }
}
