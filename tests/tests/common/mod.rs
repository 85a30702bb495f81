//! A small model and a raw safetensors writer that can lie.
#![allow(dead_code)]

use lacuna::model::file;
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Weights};
use lacuna::{Model, Weight};
use std::path::Path;

/// The rows of the bitmask vector: 3 x 10, with an empty row.
pub const ROWS: [[f32; 10]; 3] = [
    [0., 1.5, 0., 0., -2., 0., 0., 0., 3., 0.],
    [0.; 10],
    [1., 0., 0., 0., 0., 0., 0., 4., 0., 5.],
];

/// A linear layer `fc` whose weight is the bitmask vector, sparse, behind a convolution `conv`
/// with a sparse weight of four axes.
pub fn small_model() -> Model {
    let conv: Vec<f32> = (0..10 * 2 * 3 * 3)
        .map(|i| if i % 4 == 0 { i as f32 / 8. - 9. } else { 0. })
        .collect();
    let weights = Weights::from([
        (
            "conv.weight".to_owned(),
            Weight::from_f32(&[10, 2, 3, 3], &conv).encode(),
        ),
        (
            "fc.weight".to_owned(),
            Weight::from_f32(&[3, 10], ROWS.as_flattened()).encode(),
        ),
        (
            "fc.bias".to_owned(),
            Weight::from_f32(&[3], &[0.5, -0.0, 2.]),
        ),
    ]);
    Model::new(small_graph(), weights).unwrap()
}

/// The graph of [`small_model`].
pub fn small_graph() -> Graph {
    let node = |name: &str, op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: format!("{name}.out"),
    };
    Graph {
        name: "small".into(),
        inputs: vec![Input::f32(
            "x",
            vec![
                Dim::Symbol("N".into()),
                Dim::Fixed(2),
                Dim::Fixed(5),
                Dim::Fixed(5),
            ],
        )],
        outputs: vec!["fc.out".into()],
        nodes: vec![
            node(
                "conv",
                Op::Conv {
                    strides: [1, 1],
                    padding: Padding::SameUpper,
                    dilations: [1, 1],
                    groups: 1,
                },
                &["x", "conv.weight"],
            ),
            node(
                "act",
                Op::Clip {
                    min: Some(0.1),
                    max: None,
                },
                &["conv.out"],
            ),
            node("mean", Op::GlobalAveragePool, &["act.out"]),
            node("flat", Op::Flatten { axis: 1 }, &["mean.out"]),
            node(
                "fc",
                Op::Gemm {
                    alpha: 1.,
                    beta: 1.,
                    trans_a: false,
                    trans_b: true,
                },
                &["flat.out", "fc.weight", "fc.bias"],
            ),
        ],
    }
}

/// The bytes of a file.
pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// A tensor of a file that is written by hand.
#[derive(Clone)]
pub struct Raw {
    pub name: String,
    pub dtype: String,
    pub shape: String,
    pub data: Vec<u8>,
}

/// A tensor for [`assemble`].
pub fn raw(name: &str, dtype: &str, shape: &[i64], data: &[u8]) -> Raw {
    Raw {
        name: name.into(),
        dtype: dtype.into(),
        shape: format!("{shape:?}"),
        data: data.to_vec(),
    }
}

/// A safetensors file of a header and data, whatever they say.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A safetensors file of these tensors, one after the other, and this metadata.
pub fn assemble(metadata: &str, tensors: &[Raw]) -> Vec<u8> {
    let mut header = format!("{{\"__metadata__\":{metadata}");
    let mut data = Vec::new();
    for t in tensors {
        let name = serde_json::to_string(&t.name).unwrap();
        let begin = data.len();
        data.extend_from_slice(&t.data);
        header += &format!(
            ",{name}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{begin},{}]}}",
            t.dtype,
            t.shape,
            data.len()
        );
    }
    with_header(&(header + "}"), &data)
}

/// Flips every bit of the tensors of encoded weights whose last names are `kinds`, one at a time, and says how
/// many: each file is refused with its label and one of the weight's tensors.
pub fn flip_every_bit(metadata: &str, label: &str, all: &[Raw], kinds: &[&str]) -> usize {
    let mut flips = 0;
    for (i, part) in all.iter().enumerate() {
        let Some((weight, kind)) = part.name.rsplit_once('.') else {
            continue;
        };
        if !kinds.contains(&kind) {
            continue;
        }
        for bit in 0..part.data.len() * 8 {
            let mut bad = all.to_vec();
            bad[i].data[bit / 8] ^= 1 << (bit % 8);
            let said = match file::read_bytes(label, assemble(metadata, &bad).into()) {
                Ok(_) => panic!("bit {bit} of `{}` flipped: opened", part.name),
                Err(e) => e.to_string(),
            };
            flips += 1;
            assert!(
                said.contains(label) && said.contains(&format!("`{weight}.")),
                "bit {bit} of `{}`: {said}",
                part.name
            );
        }
    }
    flips
}
