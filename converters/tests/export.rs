//! Models as ONNX, and back.

use lacuna::model::{Dim, Graph, Input, Node, Op, PadMode, Padding, Weight, Weights, Window};
use lacuna::{DType, Model, Session, SessionOptions, TensorView};
use lacuna_convert::{Options, export_onnx, open, untrained};
use std::path::Path;

fn network(arch: &str, shape: [usize; 4]) -> Model {
    let options = Options {
        arch: Some(arch.into()),
        input: Some(shape.map(Dim::Fixed).to_vec()),
        ..Options::default()
    };
    untrained(&options, 5).unwrap()
}

/// The model with about two of three weights zero, in the bitmask encoding.
fn sparse(model: &Model) -> Model {
    let mut model = model.clone();
    let names: Vec<String> = (model.product_weights().iter())
        .map(|(n, _)| n.to_string())
        .collect();
    for name in names {
        let weight = model.weights()[&name].clone();
        let mut values = weight.to_f32().unwrap();
        let keep = |i: usize| (i * 7919).is_multiple_of(3);
        (values.iter_mut().enumerate()).for_each(|(i, v)| *v = if keep(i) { *v } else { 0.0 });
        let weight = Weight::from_f32(weight.shape(), &values);
        model.set_weight(&name, weight).unwrap();
    }
    model.encoded()
}

fn run(model: &Model, shape: &[usize]) -> Vec<f32> {
    let options = SessionOptions {
        threads: 1,
        symbols: [("N".to_owned(), shape[0])].into(),
        ..SessionOptions::default()
    };
    let x: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let mut session = Session::new(model, options).unwrap();
    session
        .run(&[TensorView::f32(shape, &x)])
        .unwrap()
        .remove(0)
        .data
}

#[test]
fn networks_come_back_with_the_same_weights_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    for (arch, shape) in [
        ("resnet-20", [2, 3, 32, 32]),
        ("mobilenet-v2", [1, 3, 64, 64]),
    ] {
        let path = folder.path().join(format!("{arch}.onnx"));
        let model = sparse(&network(arch, shape));
        export_onnx(&model, &path).unwrap();
        let back = open(&path, &Options::default()).unwrap();
        for (name, weight) in model.weights() {
            let theirs = &back.weights()[name];
            assert_eq!(weight.shape(), theirs.shape(), "{arch} {name}");
            assert_eq!(weight.to_f32(), theirs.to_f32(), "{arch} {name}");
        }
        let (ours, theirs) = (run(&model, &shape), run(&back.encoded(), &shape));
        let largest = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() <= 1e-5 * largest, "{arch}: {a} {b}");
        }
    }
}

fn node(name: &str, op: Op, inputs: &[&str]) -> Node {
    Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: format!("{name}.y"),
    }
}

/// Operators that need constants of their own, or another operator.
fn odd() -> Model {
    let window = Window {
        kernel: [3, 3],
        strides: [2, 2],
        padding: Padding::SameUpper,
        dilations: [1, 1],
        ceil_mode: false,
    };
    let average = Op::AveragePool {
        window: Window {
            padding: Padding::Explicit([1, 0, 0, 1]),
            strides: [1, 1],
            ..window
        },
        count_include_pad: true,
    };
    let pad = Op::Pad {
        pads: vec![0, 0, 1, 2, 0, 0, 0, 1],
        mode: PadMode::Constant(0.25),
    };
    let slice = Op::Slice {
        axes: vec![2],
        starts: vec![1],
        ends: vec![i64::MAX],
        steps: vec![2],
    };
    let mean = Op::ReduceMean {
        axes: vec![2, 3],
        keepdims: false,
    };
    let clip = |min, max| Op::Clip { min, max };
    let graph = Graph {
        name: String::new(),
        inputs: vec![Input::f32(
            "x",
            vec![
                Dim::Symbol("N".into()),
                Dim::Fixed(4),
                Dim::Fixed(9),
                Dim::Fixed(8),
            ],
        )],
        outputs: vec!["out.y".into(), "soft.y".into()],
        nodes: vec![
            node("pad", pad, &["x"]),
            node("slice", slice, &["pad.y"]),
            node("max", Op::MaxPool(window), &["slice.y"]),
            node("average", average, &["max.y"]),
            node("low", clip(Some(-0.5), None), &["average.y"]),
            node("high", clip(None, Some(0.75)), &["low.y"]),
            node("swish", Op::Swish { alpha: 1.5 }, &["high.y"]),
            node("silu", Op::Swish { alpha: 1.0 }, &["swish.y"]),
            node("gelu", Op::Gelu { approximate: false }, &["silu.y"]),
            node("mean", mean, &["gelu.y"]),
            node(
                "norm",
                Op::LayerNormalization { epsilon: 1e-5 },
                &["mean.y", "g", "b"],
            ),
            node("a", Op::MatMul { trans_b: true }, &["norm.y", "w"]),
            // The same matrix the other way round: it is turned in the graph.
            node("b", Op::MatMul { trans_b: true }, &["a.y", "v"]),
            node("c", Op::MatMul { trans_b: false }, &["b.y", "v"]),
            node("wide", Op::Unsqueeze { axes: vec![1] }, &["c.y"]),
            node("flat", Op::Reshape { shape: vec![0, -1] }, &["wide.y"]),
            node("out", Op::LpNormalization { axis: -1 }, &["flat.y"]),
            node("soft", Op::Softmax { axis: -1 }, &["flat.y"]),
        ],
    };
    let ramp = |n: usize| (0..n).map(|i| (i as f32 * 1.7).cos()).collect::<Vec<f32>>();
    let weights: Weights = [
        ("g", Weight::from_f32(&[4], &ramp(4))),
        ("b", Weight::from_f32(&[4], &ramp(4))),
        ("w", Weight::from_f32(&[5, 4], &ramp(20))),
        ("v", Weight::from_f32(&[6, 5], &ramp(30))),
    ]
    .map(|(n, w)| (n.to_string(), w))
    .into();
    Model::new(graph, weights).unwrap()
}

#[test]
fn operators_that_need_more_than_their_name_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.onnx");
    let model = odd();
    export_onnx(&model, &path).unwrap();
    let back = open(&path, &Options::default()).unwrap();
    let (ours, theirs) = (run(&model, &[3, 4, 9, 8]), run(&back, &[3, 4, 9, 8]));
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() <= 1e-5, "{a} {b}");
    }
    // For the comparison with ONNX Runtime, tests/compare/onnx_export.py.
    if let Some(keep) = std::env::var_os("LACUNA_KEEP_ONNX") {
        std::fs::copy(&path, keep).unwrap();
    }
}

fn refused(model: &Model, path: &Path, parts: &[&str]) {
    let e = export_onnx(model, path).unwrap_err().to_string();
    for part in parts {
        assert!(e.contains(part), "`{part}` is not in: {e}");
    }
}

#[test]
fn what_has_no_form_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let graph = Graph {
        inputs: vec![Input::f32(
            "x",
            vec![Dim::Fixed(1), Dim::Fixed(2), Dim::Fixed(4)],
        )],
        outputs: vec!["p.y".into()],
        nodes: vec![node("p", Op::PositionEmbedding, &["x", "t"])],
        ..Graph::default()
    };
    let weights: Weights = [("t".to_owned(), Weight::from_f32(&[8, 4], &[0.5; 32]))].into();
    let model = Model::new(graph, weights).unwrap();
    refused(
        &model,
        &path,
        &["m.onnx", "`p`", "PositionEmbedding", "--dense"],
    );
    refused(&odd(), folder.path(), &["folder"]);
    refused(&odd(), &folder.path().join("none/m.onnx"), &["none/m.onnx"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Positions, attention and a mean under a mask over three tokens at most.
fn encoder(causal: bool, cache: bool) -> Model {
    let tokens = || vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())];
    let mut shape = tokens();
    shape.push(Dim::Fixed(4));
    let mut mask = Input::f32("mask", tokens());
    mask.dtype = DType::I64;
    let attention = Op::Attention {
        heads: 2,
        kv_heads: 2,
        causal,
        cache,
        scale: None,
    };
    let graph = Graph {
        inputs: vec![Input::f32("x", shape), mask],
        outputs: vec!["m.y".into()],
        nodes: vec![
            node("p", Op::PositionEmbedding, &["x", "t"]),
            node("a", attention, &["p.y", "p.y", "p.y", "mask"]),
            node("m", Op::MaskedMean, &["a.y", "mask"]),
        ],
        ..Graph::default()
    };
    let weights: Weights = [("t".to_owned(), Weight::from_f32(&[3, 4], &[0.5; 12]))].into();
    Model::new(graph, weights).unwrap()
}

/// What it computes is compared with ours by tests/compare/onnx_export.py.
#[test]
fn encoders_are_written_from_operators_of_other_runtimes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    export_onnx(&encoder(false, false), &path).unwrap();
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    for op in ["Softmax", "Where", "ReduceSum", "Slice"] {
        assert!(text.contains(op), "{op}");
    }
    for op in ["Attention", "MaskedMean", "PositionEmbedding"] {
        assert!(!text.contains(op), "{op}");
    }
    for model in [encoder(false, true), encoder(true, false)] {
        refused(&model, &folder.path().join("x"), &["--dense"]);
    }
}
