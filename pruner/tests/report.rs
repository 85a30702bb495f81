//! The figures of a model against figures counted by hand.

use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Symbols, Weight, Weights};
use lacuna_prune::report::report;

fn node(name: &str, op: Op, inputs: &[&str]) -> Node {
    Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: format!("{name}.y"),
    }
}

/// A grouped convolution of stride 2, a tied convolution, and a linear layer.
fn model() -> Model {
    let conv = |strides| Op::Conv {
        strides,
        padding: Padding::Explicit([1; 4]),
        dilations: [1, 1],
        groups: 2,
    };
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let graph = Graph {
        name: "small".into(),
        inputs: vec![Input::f32(
            "x",
            vec![
                Dim::Symbol("N".into()),
                Dim::Fixed(4),
                Dim::Fixed(9),
                Dim::Fixed(8),
            ],
        )],
        outputs: vec!["fc.y".into()],
        nodes: vec![
            node("a", conv([2, 2]), &["x", "a.weight", "a.bias"]),
            node("b", conv([1, 1]), &["a.y", "a.weight"]),
            node("pool", Op::GlobalAveragePool, &["b.y"]),
            node("flat", Op::Flatten { axis: 1 }, &["pool.y"]),
            node("fc", gemm, &["flat.y", "fc.weight"]),
        ],
    };
    let mut half = vec![1.0; 40];
    half[..30].fill(0.0);
    let weights: Weights = [
        ("a.weight", Weight::from_f32(&[4, 2, 3, 3], &[1.0; 72])),
        ("a.bias", Weight::from_f32(&[4], &[0.0, 1.0, 0.0, 0.0])),
        ("fc.weight", Weight::from_f32(&[10, 4], &half).encode()),
    ]
    .map(|(n, w)| (n.to_string(), w))
    .into();
    Model::new(graph, weights).unwrap()
}

#[test]
fn macs_count_groups_strides_and_every_reader() {
    let r = report(&model(), &Symbols::new()).unwrap();
    assert_eq!(r.inputs, ["x [1, 4, 9, 8]"]);
    assert_eq!(r.outputs, ["fc.y [1, 10]"]);
    let [conv, fc] = r.layers.as_slice() else {
        panic!("{:?}", r.layers)
    };
    // Outputs of 4 x 5 x 4 twice, each a sum of 2 * 3 * 3 products.
    assert_eq!(conv.dense_macs, 2 * 80 * 18);
    assert_eq!(conv.sparse_macs, conv.dense_macs);
    assert_eq!((fc.dense_macs, fc.sparse_macs), (40, 10));
    assert_eq!((fc.nonzeros, fc.encoding), (10, "bitmask"));
    assert_eq!(fc.bytes, 10 * 4 + 10 + 10 * 8);
    let t = r.totals;
    assert_eq!((t.prunable, t.prunable_zeros), (112, 30));
    assert_eq!((t.parameters, t.parameter_zeros), (116, 33));
    assert_eq!(t.weight_bytes, 72 * 4 + 16 + fc.bytes);
}

#[test]
fn macs_scale_with_the_batch() {
    let one = report(&model(), &Symbols::new()).unwrap();
    let three = report(&model(), &Symbols::from([("N".to_string(), 3)])).unwrap();
    assert_eq!(three.totals.dense_macs, 3 * one.totals.dense_macs);
}
