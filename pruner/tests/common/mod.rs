//! Synthetic models for the tests.

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
#[allow(dead_code)] // Each test binary uses its part.
pub fn rows(rows: &[Vec<f32>]) -> Model {
    let weight = |r: &Vec<f32>| Weight::from_f32(&[1, r.len()], r);
    linears(rows.iter().map(weight).collect())
}

/// The values of `w{i}` as f32.
#[allow(dead_code)]
pub fn values(model: &Model, i: usize) -> Vec<f32> {
    model.weights()[&format!("w{i}")].to_f32().unwrap()
}

/// Zeros of `w{i}`.
#[allow(dead_code)]
pub fn zeros(model: &Model, i: usize) -> usize {
    let weight = &model.weights()[&format!("w{i}")];
    weight.numel() - weight.count_nonzero()
}
