//! Operators of detection and segmentation networks as exporters write them: transposed convolutions and their padding,
//! activations that are spelled out.

#[path = "common/graphs.rs"]
mod graphs;
#[allow(dead_code, missing_docs, clippy::enum_variant_names)]
#[path = "../src/onnx/proto.rs"]
mod proto;

use graphs::{bytes, floats, int, ints, longs, model, node, text};
use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Weight};
use lacuna_convert::{Error, Options, export_onnx, open};
use proto::{AttributeProto, NodeProto, TensorProto};

fn made(x: &[i64], weights: Vec<TensorProto>, nodes: Vec<NodeProto>) -> Result<Model, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.onnx");
    std::fs::write(&path, bytes(&model(17, x, weights, nodes))).unwrap();
    open(path, &Options::default())
}

fn ops(model: &Model) -> Vec<Op> {
    model.graph().nodes.iter().map(|n| n.op.clone()).collect()
}

/// One transposed convolution with a kernel of 3 x 2 on 5 x 7 pixels.
fn up(attributes: Vec<AttributeProto>) -> Result<Model, Error> {
    let w = floats("w", &[4, 3, 3, 2], &[0.5; 72]);
    made(
        &[1, 4, 5, 7],
        vec![w],
        vec![node("ConvTranspose", &["x", "w"], "y", attributes)],
    )
}

#[test]
fn padding_to_a_size_is_worked_out() {
    let strides = || ints("strides", &[2, 3]);
    let more = || ints("output_padding", &[1, 0]);
    for (attributes, pads, output_padding) in [
        (vec![], [0; 4], [0, 0]),
        (
            vec![ints("pads", &[1, 0, 2, 1]), strides(), more()],
            [1, 0, 2, 1],
            [1, 0],
        ),
        // The input times the stride: one row goes; the columns are two fewer than the kernel reaches.
        (
            vec![text("auto_pad", "SAME_UPPER"), strides()],
            [0, 0, 1, 0],
            [0, 0],
        ),
        (
            vec![text("auto_pad", "SAME_LOWER"), strides()],
            [1, 0, 0, 0],
            [0, 0],
        ),
        // Of 11 and 20.
        (
            vec![ints("output_shape", &[8, 21]), strides()],
            [2, 0, 1, 0],
            [0, 1],
        ),
        (
            vec![ints("output_shape", &[1, 3, 11, 20]), strides()],
            [0; 4],
            [0, 0],
        ),
    ] {
        let model = up(attributes).unwrap();
        let [
            Op::ConvTranspose {
                pads: found,
                output_padding: more,
                ..
            },
        ] = ops(&model)[..]
        else {
            panic!("{:?}", ops(&model))
        };
        assert_eq!((found, more), (pads, output_padding));
    }
}

#[test]
fn transposed_convolutions_that_do_not_fit_are_refused() {
    for (attributes, part) in [
        (vec![ints("strides", &[2])], "two spatial axes"),
        (vec![ints("kernel_shape", &[3, 3])], "kernel_shape [3, 3]"),
        (vec![int("group", 3)], "4 channels"),
        (vec![int("group", -1)], "group -1"),
        (vec![ints("output_padding", &[-1, 0])], "output_padding"),
        (vec![ints("output_padding", &[i64::MAX, 0])], "limit"),
        (vec![ints("output_shape", &[i64::MAX, 4])], "limit"),
        (vec![ints("pads", &[9, 0, 9, 0])], "leaves nothing"),
        (
            vec![
                ints("dilations", &[i64::MAX, 1]),
                text("auto_pad", "SAME_UPPER"),
            ],
            "beyond",
        ),
    ] {
        let error = up(attributes).unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains("ConvTranspose"),
            "`{part}`: {error}"
        );
    }
}

fn constants() -> Vec<TensorProto> {
    let one = |name: &str, value: f32| floats(name, &[], &[value]);
    vec![
        one("root", 2f32.sqrt()),
        one("half", 0.5),
        one("one", 1.0),
        one("two", 2.0),
        one("cubic", 0.044715),
        one("scale", (2.0 / std::f32::consts::PI).sqrt()),
        floats("wide", &[1, 1, 1, 1], &[0.5]),
        floats("three", &[], &[3.0]),
        longs("square", &[], &[2]),
    ]
}

/// Nodes from lines such as `y = Mul a b`.
fn spelled(lines: &str) -> Result<Model, Error> {
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        node(words[2], &words[3..], words[0], vec![])
    };
    let nodes = lines
        .split(';')
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(one);
    made(&[2, 3], constants(), nodes.collect())
}

#[test]
fn activations_that_are_spelled_out_are_one_operator() {
    let erf = "d = Div x root; e = Erf d; g = Add e one;";
    let tanh = "c = Pow x three; k = Mul cubic c; s = Add k x; i = Mul s scale; t = Tanh i; g = Add one t;";
    let gelu = |approximate| Op::Gelu { approximate };
    let swish = |alpha| Op::Swish { alpha };
    for (lines, expected) in [
        (format!("{erf} m = Mul x g; y = Mul m half"), gelu(false)),
        (format!("{erf} m = Mul half x; y = Mul g m"), gelu(false)),
        (format!("{erf} m = Div g two; y = Mul x m"), gelu(false)),
        (format!("{tanh} m = Mul x half; y = Mul m g"), gelu(true)),
        (format!("{tanh} m = Mul half g; y = Mul m x"), gelu(true)),
        ("a = Pow x square; b = Mul a x; k = Mul b cubic; s = Add x k; i = Mul scale s; t = Tanh i; g = Add t one; m = Mul x g; \
          y = Mul half m".into(), gelu(true)),
        ("s = Sigmoid x; y = Mul x s".into(), swish(1.0)),
        ("a = Mul two x; s = Sigmoid a; y = Mul s x".into(), swish(2.0)),
    ] {
        assert_eq!(ops(&spelled(&lines).unwrap()), [expected], "{lines}");
    }
    // The function of a sum, and of a product.
    let model = spelled("a = Add x x; s = Sigmoid a; y = Mul a s").unwrap();
    assert_eq!(ops(&model), [Op::Add, swish(1.0)]);
    let model = spelled(
        "a = Mul x x; d = Div a root; e = Erf d; g = Add e one; m = Mul a g; y = Mul m half",
    )
    .unwrap();
    assert_eq!(ops(&model), [Op::Mul, gelu(false)]);
}

#[test]
fn what_only_looks_like_an_activation_stays_as_it_is() {
    for (lines, count) in [
        // Another factor, another power, another constant, a gate of something else, a shape that grows.
        (
            "d = Div x root; e = Erf d; g = Add e one; m = Mul x g; y = Mul m two",
            5,
        ),
        (
            "d = Div x two; e = Erf d; g = Add e one; m = Mul x g; y = Mul m half",
            5,
        ),
        (
            "d = Div x root; e = Erf d; g = Add e two; m = Mul x g; y = Mul m half",
            5,
        ),
        (
            "d = Div x root; e = Erf d; g = Add e one; m = Mul x g; y = Mul m wide",
            5,
        ),
        (
            "i = Mul x scale; t = Tanh i; g = Add t one; m = Mul x g; y = Mul m half",
            5,
        ),
        ("a = Mul x x; s = Sigmoid a; y = Mul x s", 3),
        ("a = Add x one; s = Sigmoid x; y = Mul a s", 3),
        ("s = Sigmoid x; y = Mul s s", 2),
        ("y = Erf x", 1),
    ] {
        assert_eq!(ops(&spelled(lines).unwrap()).len(), count, "{lines}");
    }
    // What is read elsewhere stays too.
    let model = spelled("s = Sigmoid x; m = Mul x s; y = Add m s").unwrap();
    assert_eq!(
        ops(&model),
        [Op::Sigmoid, Op::Swish { alpha: 1.0 }, Op::Add]
    );
    for (lines, part) in [
        ("y = Pow x half", "a power of 0.5"),
        ("y = Pow x x", "computed at run time"),
    ] {
        let error = spelled(lines).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("Pow"), "{error}");
    }
}

#[test]
fn what_is_exported_comes_back() {
    let of = |name: &str, op: Op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: name.into(),
    };
    let transposed = Op::ConvTranspose {
        strides: [2, 1],
        pads: [1, 0, 0, 2],
        output_padding: [1, 0],
        dilations: [1, 2],
        groups: 2,
    };
    let graph = Graph {
        name: "g".into(),
        inputs: vec![Input::f32("x", [1, 4, 5, 6].map(Dim::Fixed).to_vec())],
        outputs: vec!["d".into()],
        nodes: vec![
            of("a", transposed, &["x", "w", "b"]),
            of("b2", Op::Gelu { approximate: false }, &["a"]),
            of("c", Op::Gelu { approximate: true }, &["b2"]),
            of("d", Op::Erf, &["c"]),
        ],
    };
    let weights = [
        (
            "w".to_owned(),
            Weight::from_f32(&[4, 3, 3, 3], &[0.25; 108]),
        ),
        ("b".to_owned(), Weight::from_f32(&[6], &[0.5; 6])),
    ];
    let model = Model::new(graph, weights.into()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    export_onnx(&model, &path).unwrap();
    let back = open(&path, &Options::default()).unwrap();
    assert_eq!(ops(&back), ops(&model));
}
