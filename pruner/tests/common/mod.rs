//! Synthetic models for the tests.

#![allow(dead_code)] // Each test binary uses its part.

use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Weight, Weights};

/// A model of independent linear layers, `w0`, `w1`, ..., in this order.
pub fn linears(weights: Vec<Weight>) -> Model {
    let mut graph = Graph {
        name: "linears".into(),
        ..Graph::default()
    };
    let mut named = Weights::new();
    for (i, weight) in weights.into_iter().enumerate() {
        graph.inputs.push(Input::f32(
            format!("x{i}"),
            vec![Dim::Symbol("N".into()), Dim::Fixed(weight.shape()[1])],
        ));
        graph.nodes.push(Node {
            name: format!("layer{i}"),
            op: Op::MatMul { trans_b: true },
            inputs: vec![format!("x{i}"), format!("w{i}")],
            output: format!("y{i}"),
        });
        graph.outputs.push(format!("y{i}"));
        named.insert(format!("w{i}"), weight);
    }
    Model::new(graph, named).unwrap()
}

/// Linear layers of one row each with these f32 values.
pub fn rows(rows: &[Vec<f32>]) -> Model {
    let weight = |r: &Vec<f32>| Weight::from_f32(&[1, r.len()], r);
    linears(rows.iter().map(weight).collect())
}

/// The values of `w{i}` as f32.
pub fn values(model: &Model, i: usize) -> Vec<f32> {
    model.weights()[&format!("w{i}")].to_f32().unwrap()
}

/// Zeros of `w{i}`.
pub fn zeros(model: &Model, i: usize) -> usize {
    let weight = &model.weights()[&format!("w{i}")];
    weight.numel() - weight.count_nonzero()
}

/// Pseudo-random values in `(-scale, scale)`, the same every time.
pub fn spread(n: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale
        })
        .collect()
}

/// A decoder of two blocks with grouped heads: width 24, four heads on two, 40 neurons, 50 tokens.
pub fn decoder() -> Model {
    const WIDTH: usize = 24;
    let mut graph = Graph {
        name: "decoder".into(),
        inputs: vec![Input::i64(
            "ids",
            vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())],
        )],
        ..Graph::default()
    };
    let mut weights = Weights::new();
    let mut node = |op: Op, inputs: &[&str], output: String| {
        graph.nodes.push(Node {
            name: format!("node {output}"),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: output.clone(),
        });
        output
    };
    let mut seed = 0;
    let mut weight = |name: &str, shape: &[usize], scale: f32| {
        seed += 1;
        let values = spread(shape.iter().product(), scale, seed);
        weights.insert(name.to_owned(), Weight::from_f32(shape, &values));
        name.to_owned()
    };
    let linear = Op::MatMul { trans_b: true };
    let table = weight("table", &[50, WIDTH], 1.0);
    let angles = weight("angles", &[3], 1.0);
    let mut x = node(Op::Gather { axis: 0 }, &[&table, "ids"], "embedded".into());
    for b in 0..2 {
        let mut w = |name: &str, shape: &[usize]| {
            weight(
                &format!("{b}.{name}"),
                shape,
                1.5 / (shape[shape.len() - 1] as f32).sqrt(),
            )
        };
        let norm = Op::RMSNormalization { epsilon: 1e-5 };
        let scale = w("norm", &[WIDTH]);
        let n = node(norm.clone(), &[&x, &scale], format!("{b}.n"));
        let q = node(
            linear.clone(),
            &[&n, &w("q", &[24, WIDTH])],
            format!("{b}.q."),
        );
        let k = node(
            linear.clone(),
            &[&n, &w("k", &[12, WIDTH])],
            format!("{b}.k."),
        );
        let v = node(
            linear.clone(),
            &[&n, &w("v", &[12, WIDTH])],
            format!("{b}.v."),
        );
        let rotate = |heads| Op::RotaryEmbedding {
            heads,
            interleaved: false,
            scale: 1.0,
        };
        let q = node(rotate(4), &[&q, &angles], format!("{b}.qr"));
        let k = node(rotate(2), &[&k, &angles], format!("{b}.kr"));
        let attention = Op::Attention {
            heads: 4,
            kv_heads: 2,
            causal: true,
            cache: true,
            scale: None,
        };
        let a = node(attention, &[&q, &k, &v], format!("{b}.a"));
        let o = node(
            linear.clone(),
            &[&a, &w("o", &[WIDTH, 24])],
            format!("{b}.o."),
        );
        let h = node(Op::Add, &[&x, &o], format!("{b}.h"));
        let scale = w("norm2", &[WIDTH]);
        let n = node(norm, &[&h, &scale], format!("{b}.n2"));
        let gate = node(
            linear.clone(),
            &[&n, &w("gate", &[40, WIDTH])],
            format!("{b}.gate."),
        );
        let up = node(
            linear.clone(),
            &[&n, &w("up", &[40, WIDTH])],
            format!("{b}.up."),
        );
        let gate = node(Op::Swish { alpha: 1.0 }, &[&gate], format!("{b}.s"));
        let m = node(Op::Mul, &[&gate, &up], format!("{b}.m"));
        let down = node(
            linear.clone(),
            &[&m, &w("down", &[WIDTH, 40])],
            format!("{b}.down."),
        );
        x = node(Op::Add, &[&h, &down], format!("{b}.x"));
    }
    let head = weight("head", &[50, WIDTH], 0.5);
    node(linear, &[&x, &head], "logits".into());
    graph.outputs = vec!["logits".into()];
    Model::new(graph, weights).unwrap()
}
