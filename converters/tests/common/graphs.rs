//! ONNX files made by hand.

#![allow(dead_code)]

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use prost::Message;

/// A node without a name.
pub fn node(op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: vec![output.into()],
        attribute: attributes,
        ..NodeProto::default()
    }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: kind,
        ..AttributeProto::default()
    }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    let mut a = attribute(name, 1);
    a.f = f;
    a
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    let mut a = attribute(name, 2);
    a.i = i;
    a
}

pub fn text(name: &str, s: &str) -> AttributeProto {
    let mut a = attribute(name, 3);
    a.s = s.as_bytes().to_vec().into();
    a
}

pub fn ints(name: &str, list: &[i64]) -> AttributeProto {
    let mut a = attribute(name, 7);
    a.ints = list.to_vec();
    a
}

pub fn value(tensor: TensorProto) -> AttributeProto {
    let mut a = attribute("value", 4);
    a.t = Some(tensor);
    a
}

/// An f32 tensor.
pub fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: data_type::FLOAT,
        raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// An int64 tensor in its typed field.
pub fn longs(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: data_type::INT64,
        int64_data: data.to_vec(),
        ..TensorProto::default()
    }
}

/// A graph input or output; `0` stands for an unnamed symbol, a negative size for the symbol `B`.
pub fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&d| DimensionProto {
        dim_value: (d > 0).then_some(d),
        dim_param: (d < 0).then(|| "B".to_owned()),
    });
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type::FLOAT,
                shape: Some(TensorShapeProto { dim: dim.collect() }),
            }),
        }),
    }
}

/// A model over the input `x` with the output `y`.
pub fn model(
    opset: i64,
    x: &[i64],
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> ModelProto {
    ModelProto {
        graph: Some(GraphProto {
            node,
            name: "made".into(),
            initializer,
            input: vec![info("x", x)],
            output: vec![info("y", &[])],
            ..GraphProto::default()
        }),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: opset,
        }],
    }
}

/// The bytes of a file. `decode` writes no `ir_version`, which real files start with; the graph
/// comes first then, as the format allows.
pub fn bytes(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}
