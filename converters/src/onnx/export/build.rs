//! The graph: inputs, outputs, initializers, and the nodes that [`nodes`](super::nodes) makes.

use super::super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use super::nodes;
use lacuna::model::{Dim, Node, Op, Shapes, Symbols, Weight, infer_shapes};
use lacuna::{DType, Model};
use std::collections::{BTreeSet, HashSet};

/// The earliest operator set that is written.
const OPSET: i64 = 18;

/// Why a model has no form in ONNX.
pub enum Fault {
    Node {
        node: String,
        op: &'static str,
        what: String,
    },
    Graph(String),
    Model(Box<lacuna::Error>),
}

/// A graph under construction.
pub struct Builder<'m> {
    pub model: &'m Model,
    pub shapes: Shapes,
    /// Matrices that are stored `[inputs, outputs]`.
    transposed: BTreeSet<&'m str>,
    names: HashSet<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    opset: i64,
}

/// The graph of a model and the operator set that it needs.
pub fn graph(model: &Model) -> Result<(GraphProto, i64), Fault> {
    let graph = model.graph();
    let shapes = infer_shapes(graph, model.weights(), &Symbols::new());
    let shapes = shapes.map_err(|e| Fault::Model(Box::new(e)))?;
    let mut names: HashSet<String> = model.weights().keys().cloned().collect();
    names.extend(graph.inputs.iter().map(|i| i.name.clone()));
    names.extend(graph.nodes.iter().map(|n| n.output.clone()));
    let mut builder = Builder {
        model,
        transposed: transposed(model),
        shapes,
        names,
        nodes: Vec::new(),
        initializers: Vec::new(),
        opset: OPSET,
    };
    let used: BTreeSet<&str> = (graph.nodes.iter())
        .flat_map(|n| n.inputs.iter().map(String::as_str))
        .chain(graph.outputs.iter().map(String::as_str))
        .collect();
    for (name, weight) in model.weights() {
        if used.contains(name.as_str()) {
            let tensor = tensor(name, weight, builder.transposed.contains(name.as_str()));
            builder.initializers.push(tensor.map_err(Fault::Graph)?);
        }
    }
    for node in &graph.nodes {
        nodes::convert(&mut builder, node).map_err(|what| Fault::Node {
            node: node.name.clone(),
            op: node.op.name(),
            what,
        })?;
    }
    // What a node had folded is read no more.
    let read: HashSet<&String> = builder.nodes.iter().flat_map(|n| &n.input).collect();
    let stays = |t: &TensorProto| read.contains(&t.name) || graph.outputs.contains(&t.name);
    builder.initializers.retain(stays);
    let output = |name: &String| {
        let shape = builder.shapes.get(name).map(Vec::as_slice);
        info(name, DType::F32, shape.unwrap_or_default())
    };
    let proto = GraphProto {
        name: match graph.name.is_empty() {
            true => "graph".into(),
            false => graph.name.clone(),
        },
        input: (graph.inputs.iter())
            .map(|i| info(&i.name, i.dtype, &i.shape))
            .collect(),
        output: graph.outputs.iter().map(output).collect(),
        node: builder.nodes,
        initializer: builder.initializers,
        ..GraphProto::default()
    };
    Ok((proto, builder.opset))
}

/// The matrices of which every reader is a `MatMul` that wants them the other way round.
fn transposed(model: &Model) -> BTreeSet<&str> {
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    let mut otherwise: BTreeSet<&str> = BTreeSet::new();
    for node in &model.graph().nodes {
        for (i, input) in node.inputs.iter().enumerate() {
            let Some((name, weight)) = model.weights().get_key_value(input) else {
                continue;
            };
            let turns = matches!(node.op, Op::MatMul { trans_b: true }) && i == 1;
            match turns && weight.shape().len() == 2 {
                true => wanted.insert(name),
                false => otherwise.insert(name),
            };
        }
    }
    wanted.difference(&otherwise).copied().collect()
}

fn info(name: &str, dtype: DType, shape: &[Dim]) -> ValueInfoProto {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => DimensionProto {
            dim_value: Some(*n as i64),
            dim_param: None,
        },
        Dim::Symbol(s) => DimensionProto {
            dim_value: None,
            dim_param: Some(s.clone()),
        },
    };
    let tensor = TensorTypeProto {
        elem_type: match dtype {
            DType::I64 => data_type::INT64,
            _ => data_type::FLOAT,
        },
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

/// An initializer: floats widened to f32, I64 as it is.
fn tensor(name: &str, weight: &Weight, transposed: bool) -> Result<TensorProto, String> {
    let mut dims: Vec<i64> = weight.shape().iter().map(|&d| d as i64).collect();
    let (data_type, raw) = match (weight.to_i64(), weight.to_f32()) {
        (Some(values), _) => (
            data_type::INT64,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ),
        (None, Some(values)) => {
            let mut raw = Vec::with_capacity(values.len() * 4);
            match (transposed, weight.shape()) {
                (true, &[rows, cols]) => {
                    dims.swap(0, 1);
                    for c in 0..cols {
                        let column = values[c..].iter().step_by(cols).take(rows);
                        raw.extend(column.flat_map(|v| v.to_le_bytes()));
                    }
                }
                _ => raw.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            }
            (data_type::FLOAT, raw)
        }
        (None, None) => {
            return Err(format!(
                "weight `{name}` is {}, which is not exported; F32, F16, BF16 and I64 are",
                weight.dtype()
            ));
        }
    };
    Ok(TensorProto {
        dims,
        data_type,
        name: name.to_owned(),
        raw_data: raw.into(),
        ..TensorProto::default()
    })
}

impl Builder<'_> {
    /// Needs at least this operator set.
    pub fn needs(&mut self, opset: i64) {
        self.opset = self.opset.max(opset);
    }

    /// A name that nothing else has.
    fn fresh(&mut self, node: &Node, what: &str) -> String {
        let mut name = format!("{}/{what}", node.output);
        while !self.names.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// A new constant of integers with one axis.
    pub fn ints(&mut self, node: &Node, what: &str, values: &[i64]) -> String {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let dims = vec![values.len() as i64];
        self.constant(node, what, data_type::INT64, dims, raw)
    }

    /// A new constant of floating-point numbers with one axis.
    pub fn floats(&mut self, node: &Node, what: &str, values: &[f32]) -> String {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let dims = vec![values.len() as i64];
        self.constant(node, what, data_type::FLOAT, dims, raw)
    }

    /// A new scalar.
    pub fn scalar(&mut self, node: &Node, what: &str, value: f32) -> String {
        let raw = value.to_le_bytes().to_vec();
        self.constant(node, what, data_type::FLOAT, Vec::new(), raw)
    }

    fn constant(
        &mut self,
        node: &Node,
        what: &str,
        data_type: i32,
        dims: Vec<i64>,
        raw: Vec<u8>,
    ) -> String {
        let name = self.fresh(node, what);
        self.initializers.push(TensorProto {
            dims,
            data_type,
            name: name.clone(),
            raw_data: raw.into(),
            ..TensorProto::default()
        });
        name
    }

    /// A node before the last of `node`, and the name of its result.
    pub fn inner(
        &mut self,
        node: &Node,
        op: &str,
        inputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) -> String {
        let name = self.fresh(node, op);
        self.push(name.clone(), op, inputs, name.clone(), attribute);
        name
    }

    /// The node that gives the result of `node`.
    pub fn last(
        &mut self,
        node: &Node,
        op: &str,
        inputs: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        let (name, output) = (node.name.clone(), node.output.clone());
        self.push(name, op, inputs, output, attribute);
    }

    fn push(
        &mut self,
        name: String,
        op: &str,
        input: Vec<String>,
        output: String,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            input,
            output: vec![output],
            name,
            op_type: op.to_owned(),
            attribute,
            domain: String::new(),
        });
    }

    /// Whether a matrix is stored `[inputs, outputs]`.
    pub fn is_transposed(&self, name: &str) -> bool {
        self.transposed.contains(name)
    }
}
