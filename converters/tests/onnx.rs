//! ONNX files: those of a real exporter against its framework's answers, and graphs made by hand.

mod common;
#[path = "common/graphs.rs"]
mod graphs;
#[allow(dead_code, missing_docs, clippy::enum_variant_names)]
#[path = "../src/onnx/proto.rs"]
mod proto;

use common::{fixture, test_data};
use graphs::{bytes, float, floats, info, int, ints, longs, model, node, text, value};
use lacuna::model::file::Tensors;
use lacuna::model::{Dim, Op, Symbols};
use lacuna::{DType, Model, Session, SessionOptions, Tensor, TensorView};
use lacuna_convert::{Error, Options, open};
use proto::{ModelProto, SparseTensorProto, StringStringEntryProto, TensorProto, data_type};
use std::path::Path;

fn run(model: &Model, x: &Tensor) -> Tensor {
    let names = model.graph().inputs[0].shape.iter().zip(&x.shape);
    let symbols: Symbols = names
        .filter_map(|(dim, &n)| match dim {
            Dim::Symbol(s) => Some((s.clone(), n)),
            Dim::Fixed(_) => None,
        })
        .collect();
    let options = SessionOptions {
        threads: 1,
        symbols,
        ..SessionOptions::default()
    };
    let mut session = Session::new(model, options).unwrap();
    let view = TensorView::f32(&x.shape, &x.data);
    session.run(&[view]).unwrap().remove(0)
}

fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.shape, expected.shape, "{what}");
    let largest = expected.data.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = got.data.iter().zip(&expected.data);
    let off = off.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= 1e-5 * largest, "{what}: {off} of {largest}");
}

/// Writes and opens a model.
fn made(model: &ModelProto) -> Result<Model, Error> {
    let folder = tempfile::tempdir().unwrap();
    opened(folder.path(), model)
}

fn opened(folder: &Path, model: &ModelProto) -> Result<Model, Error> {
    let path = folder.join("made.onnx");
    std::fs::write(&path, bytes(model)).unwrap();
    open(path, &Options::default())
}

/// The message of a refusal.
fn refusal(model: &ModelProto) -> String {
    made(model).unwrap_err().to_string()
}

fn ops(model: &Model) -> Vec<&'static str> {
    model.graph().nodes.iter().map(|n| n.op.name()).collect()
}

fn counting(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor {
        shape: shape.to_vec(),
        data: (0..count).map(|i| i as f32 - count as f32 / 3.0).collect(),
    }
}

#[test]
fn exports_of_torch_give_the_answers_of_torch() {
    for name in ["view", "shuffle", "sequence", "shortcut"] {
        for opset in [10, 16] {
            let file = format!("{name}-{opset}");
            let model = open(fixture(&format!("{file}.onnx")), &Options::default()).unwrap();
            let batch = Dim::Symbol("batch".into());
            assert_eq!(model.graph().inputs[0].shape[0], batch, "{file}");
            let known = Tensors::open(fixture(&format!("{file}.safetensors"))).unwrap();
            let tensor = |name: &str| {
                let weight = known.weight(name).unwrap();
                Tensor {
                    shape: weight.shape().to_vec(),
                    data: weight.to_f32().unwrap(),
                }
            };
            assert_close(&run(&model, &tensor("x")), &tensor("y"), &file);
        }
    }
}

#[test]
fn shape_arithmetic_and_dropped_nodes_leave_no_trace() {
    let model = open(fixture("view-10.onnx"), &Options::default()).unwrap();
    let expected = [
        "Conv",
        "BatchNormalization",
        "Relu",
        "Clip",
        "HardSigmoid",
        "Mul",
        "Reshape",
        "Gemm",
        "Softmax",
    ];
    let found: Vec<&str> = ops(&model);
    assert_eq!(found, expected);
    let reshape = model.graph().nodes.iter().find_map(|n| match &n.op {
        Op::Reshape { shape } => Some(shape.clone()),
        _ => None,
    });
    assert_eq!(reshape, Some(vec![0, 64]));
    let weights: Vec<&str> = model.weights().keys().map(String::as_str).collect();
    assert!(weights.contains(&"conv.weight") && weights.contains(&"fc.bias"));
}

#[test]
fn weights_of_linear_layers_are_stored_outputs_first_under_their_own_names() {
    let w = floats("w", &[3, 2], &[1., 2., 3., 4., 5., 6.]);
    let gemm = made(&model(
        13,
        &[-1, 3],
        vec![w.clone()],
        vec![node("Gemm", &["x", "w"], "y", vec![])],
    ))
    .unwrap();
    assert_eq!(gemm.weights()["w"].shape(), [2, 3]);
    assert_eq!(
        gemm.weights()["w"].to_f32().unwrap(),
        [1., 3., 5., 2., 4., 6.]
    );
    let x = Tensor {
        shape: vec![1, 3],
        data: vec![1., 10., 100.],
    };
    assert_eq!(run(&gemm, &x).data, [531., 642.]);

    let matmul = made(&model(
        13,
        &[-1, 3],
        vec![w],
        vec![node("MatMul", &["x", "w"], "y", vec![])],
    ))
    .unwrap();
    assert!(matches!(
        matmul.graph().nodes[0].op,
        Op::MatMul { trans_b: true }
    ));
    assert_eq!(run(&matmul, &x).data, [531., 642.]);
}

#[test]
fn a_transposed_linear_weight_comes_back_under_its_own_name_without_a_copy() {
    let transposed = made(&model(
        13,
        &[-1, 3],
        vec![floats("fc.weight", &[2, 3], &[1., 3., 5., 2., 4., 6.])],
        vec![
            node(
                "Transpose",
                &["fc.weight"],
                "t",
                vec![ints("perm", &[1, 0])],
            ),
            node("MatMul", &["x", "t"], "y", vec![]),
        ],
    ))
    .unwrap();
    assert_eq!(ops(&transposed), ["MatMul"]);
    let names: Vec<&String> = transposed.weights().keys().collect();
    assert_eq!(names, ["fc.weight"]);
    assert_eq!(
        transposed.weights()["fc.weight"].to_f32().unwrap(),
        [1., 3., 5., 2., 4., 6.]
    );
}

#[test]
fn a_weight_that_is_used_both_ways_gets_two_names() {
    let both = made(&model(
        13,
        &[2, 2],
        vec![floats("w", &[2, 2], &[1., 2., 3., 4.])],
        vec![
            node("MatMul", &["x", "w"], "a", vec![]),
            node("Add", &["a", "w"], "y", vec![]),
        ],
    ))
    .unwrap();
    assert_eq!(both.weights()["w"].to_f32().unwrap(), [1., 3., 2., 4.]);
    assert_eq!(
        both.weights()["w_transposed"].to_f32().unwrap(),
        [1., 2., 3., 4.]
    );
    let x = Tensor {
        shape: vec![2, 2],
        data: vec![1., 0., 0., 1.],
    };
    assert_eq!(run(&both, &x).data, [2., 4., 6., 8.]);
}

#[test]
fn attributes_of_older_operator_sets_are_read() {
    let model = made(&model(
        9,
        &[-1, 2, 4, 4],
        vec![],
        vec![
            node(
                "Pad",
                &["x"],
                "a",
                vec![
                    ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1]),
                    float("value", 2.0),
                    text("mode", "constant"),
                ],
            ),
            node(
                "Slice",
                &["a"],
                "b",
                vec![
                    ints("axes", &[0, 2]),
                    ints("starts", &[0, 1]),
                    ints("ends", &[i64::MAX, -1]),
                ],
            ),
            node("Unsqueeze", &["b"], "c", vec![ints("axes", &[0])]),
            node("Squeeze", &["c"], "d", vec![ints("axes", &[0])]),
            node(
                "ReduceMean",
                &["d"],
                "e",
                vec![ints("axes", &[3]), int("keepdims", 0)],
            ),
            node(
                "Clip",
                &["e"],
                "f",
                vec![float("min", 0.0), float("max", 3.0)],
            ),
            node("Dropout", &["f"], "g", vec![float("ratio", 0.5)]),
            node("Softmax", &["g"], "h", vec![]),
            node("Identity", &["h"], "y", vec![]),
        ],
    ))
    .unwrap();
    let found = ops(&model);
    let expected = [
        "Pad",
        "Slice",
        "Unsqueeze",
        "Squeeze",
        "ReduceMean",
        "Clip",
        "Flatten",
        "Softmax",
        "Reshape",
        "Identity",
    ];
    assert_eq!(found, expected);
    assert!(matches!(&model.graph().nodes[1].op, Op::Slice { axes, .. } if axes == &[2]));
    let y = run(&model, &counting(&[2, 2, 4, 4]));
    assert_eq!(y.shape, [2, 2, 4]);
    // The softmax of operator set 9 goes over both last axes.
    for row in y.data.chunks(8) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn nodes_are_named_and_the_order_of_the_file_does_not_matter() {
    let mut first = node("Relu", &["x"], "a", vec![]);
    first.name = "act".into();
    let mut second = node("Tanh", &["a"], "b", vec![]);
    second.name = "act".into();
    let third = node("Sigmoid", &["b"], "y", vec![]);
    let model = made(&model(13, &[-1, 4], vec![], vec![third, second, first])).unwrap();
    let names: Vec<&str> = model
        .graph()
        .nodes
        .iter()
        .map(|n| n.name.as_str())
        .collect();
    assert_eq!(names, ["act", "act_2", "Sigmoid_0"]);
    assert_eq!(ops(&model), ["Relu", "Tanh", "Sigmoid"]);
}

#[test]
fn what_no_output_needs_is_dropped() {
    let unused = node("NoSuchOperator", &["x", "w"], "z", vec![]);
    let model = made(&model(
        13,
        &[-1, 4],
        vec![floats("w", &[1], &[1.0])],
        vec![unused, node("Relu", &["x"], "y", vec![])],
    ))
    .unwrap();
    assert_eq!(ops(&model), ["Relu"]);
    assert!(model.weights().is_empty());
}

#[test]
fn unnamed_batches_are_n_and_inputs_that_are_initializers_are_weights() {
    let mut proto = model(
        7,
        &[0, 4],
        vec![floats("w", &[4], &[1., 2., 3., 4.])],
        vec![node("Add", &["x", "w"], "y", vec![])],
    );
    proto.graph.as_mut().unwrap().input.push(info("w", &[4]));
    let model = made(&proto).unwrap();
    let inputs = &model.graph().inputs;
    assert_eq!(inputs.len(), 1);
    assert_eq!(inputs[0].shape, [Dim::Symbol("N".into()), Dim::Fixed(4)]);
    assert_eq!(model.weights()["w"].numel(), 4);
}

#[test]
fn weights_come_in_every_floating_point_dtype_and_field() {
    let ones: [f32; 2] = [1.0, -2.5];
    let typed = |data_type: i32| TensorProto {
        name: "w".into(),
        dims: vec![2],
        data_type,
        ..TensorProto::default()
    };
    let half = |v: f32| i32::from(half::f16::from_f32(v).to_bits());
    let brain = |v: f32| i32::from(half::bf16::from_f32(v).to_bits());
    let mut cases = vec![(floats("w", &[2], &ones), DType::F32)];
    let mut t = typed(data_type::FLOAT);
    t.float_data = ones.to_vec();
    cases.push((t, DType::F32));
    let mut t = typed(data_type::FLOAT16);
    t.int32_data = ones.map(half).to_vec();
    cases.push((t, DType::F16));
    let mut t = typed(data_type::BFLOAT16);
    t.int32_data = ones.map(brain).to_vec();
    cases.push((t, DType::BF16));
    let mut t = typed(data_type::DOUBLE);
    t.double_data = ones.map(f64::from).to_vec();
    cases.push((t, DType::F32));
    let mut t = typed(data_type::DOUBLE);
    t.raw_data = ones
        .iter()
        .flat_map(|&v| f64::from(v).to_le_bytes())
        .collect();
    cases.push((t, DType::F32));
    for (tensor, dtype) in cases {
        let add = vec![node("Add", &["x", "w"], "y", vec![])];
        let model = made(&model(13, &[-1, 2], vec![tensor], add)).unwrap();
        let weight = &model.weights()["w"];
        assert_eq!(weight.dtype(), dtype);
        assert_eq!(weight.to_f32().unwrap(), ones);
    }
}

#[test]
fn sparse_initializers_are_read() {
    let sparse = |indices: TensorProto| {
        let mut proto = model(
            13,
            &[-1, 3],
            vec![],
            vec![node("Gemm", &["x", "w"], "y", vec![int("transB", 1)])],
        );
        let graph = proto.graph.as_mut().unwrap();
        graph.sparse_initializer.push(SparseTensorProto {
            values: Some(floats("w", &[2], &[5.0, 7.0])),
            indices: Some(indices),
            dims: vec![2, 3],
        });
        proto
    };
    for indices in [longs("", &[2], &[1, 5]), longs("", &[2, 2], &[0, 1, 1, 2])] {
        let model = made(&sparse(indices)).unwrap();
        let weight = &model.weights()["w"];
        assert_eq!(weight.to_f32().unwrap(), [0., 5., 0., 0., 0., 7.]);
    }
    assert!(refusal(&sparse(longs("", &[2], &[1, 6]))).contains("sparse index 6 of 6"));
    assert!(refusal(&sparse(longs("", &[3], &[1, 2, 3]))).contains("sparse indices of shape"));
}

#[test]
fn external_data_is_read_beside_the_model_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("model");
    std::fs::create_dir(&inner).unwrap();
    let data: Vec<u8> = [9f32, 1., 2.]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    std::fs::write(inner.join("weights.bin"), &data).unwrap();
    std::fs::write(folder.path().join("outside.bin"), &data).unwrap();
    let with = |entries: &[(&str, &str)]| {
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
            key: (*key).into(),
            value: (*value).into(),
        };
        let tensor = TensorProto {
            name: "w".into(),
            dims: vec![2],
            data_type: data_type::FLOAT,
            data_location: 1,
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        };
        let add = vec![node("Add", &["x", "w"], "y", vec![])];
        opened(&inner, &model(13, &[-1, 2], vec![tensor], add))
    };
    let good = with(&[
        ("location", "weights.bin"),
        ("offset", "4"),
        ("length", "8"),
    ])
    .unwrap();
    assert_eq!(good.weights()["w"].to_f32().unwrap(), [1., 2.]);
    let files = lacuna_convert::files(inner.join("made.onnx")).unwrap();
    assert_eq!(files, [inner.join("made.onnx"), inner.join("weights.bin")]);
    let refused = |entries: &[(&str, &str)]| with(entries).unwrap_err().to_string();
    for outside in [
        "../outside.bin",
        "/etc/hostname",
        "a/../../outside.bin",
        "..\\outside.bin",
    ] {
        let error = refused(&[("location", outside)]);
        assert!(error.contains("outside the model's folder"), "{error}");
        assert!(lacuna_convert::files(inner.join("made.onnx")).is_err());
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../outside.bin", inner.join("link.bin")).unwrap();
        let error = refused(&[("location", "link.bin")]);
        assert!(error.contains("outside the model's folder"), "{error}");
    }
    assert!(refused(&[("location", "none.bin")]).contains("none.bin"));
    assert!(refused(&[]).contains("without a location"));
    let behind = refused(&[("location", "weights.bin"), ("offset", "8")]);
    assert!(behind.contains("ends behind the 12 bytes"), "{behind}");
    let long = refused(&[("location", "weights.bin"), ("length", "12")]);
    assert!(
        long.contains("12 bytes of external data, the shape needs 8"),
        "{long}"
    );
    let no = refused(&[("location", "weights.bin"), ("offset", "-4")]);
    assert!(no.contains("offset `-4` is no number"), "{no}");
}

#[test]
fn refusals_name_the_node_the_operator_and_what_is_supported() {
    let relu = |x: &[i64]| model(13, x, vec![], vec![node("Relu", &["x"], "y", vec![])]);
    let one = |n| {
        model(
            13,
            &[1, 2, 4, 4],
            vec![floats("w", &[2], &[1., 2.])],
            vec![n],
        )
    };
    let pool = |a| node("MaxPool", &["x"], "y", a);
    let mut other_domain = node("Gelu", &["x"], "y", vec![]);
    other_domain.domain = "com.microsoft".into();
    let mut named = node("Celu", &["x"], "y", vec![]);
    named.name = "my celu".into();
    let mut no_opset = relu(&[1]);
    no_opset.opset_import[0].version = 6;
    let mut shapeless = relu(&[1]);
    shapeless.graph.as_mut().unwrap().input[0]
        .r#type
        .as_mut()
        .unwrap()
        .tensor_type
        .as_mut()
        .unwrap()
        .shape = None;
    let mut double = relu(&[1]);
    double.graph.as_mut().unwrap().input[0]
        .r#type
        .as_mut()
        .unwrap()
        .tensor_type
        .as_mut()
        .unwrap()
        .elem_type = data_type::DOUBLE;
    let mut indices = node("MaxPool", &["x"], "y", vec![ints("kernel_shape", &[2, 2])]);
    indices.output.push("where".into());
    let mut with_indices = one(indices);
    with_indices
        .graph
        .as_mut()
        .unwrap()
        .output
        .push(info("where", &[]));
    let text_weight = TensorProto {
        name: "w".into(),
        dims: vec![2],
        data_type: 8,
        ..TensorProto::default()
    };
    let add_w = || vec![node("Add", &["x", "w"], "y", vec![])];
    let cases: Vec<(ModelProto, &[&str])> = vec![
        (
            one(named),
            &[
                "`my celu` (Celu)",
                "not supported; supported: Add, Attention, AveragePool",
            ],
        ),
        (
            one(other_domain),
            &["`Gelu_0` (Gelu)", "domain `com.microsoft`"],
        ),
        (no_opset, &["operator set 6; supported: 7 to 28"]),
        (shapeless, &["input `x` has no shape"]),
        (double, &["input `x` has dtype DOUBLE"]),
        (with_indices, &["output 1, `where`, is used"]),
        (
            one(pool(vec![])),
            &["`MaxPool_0`", "`kernel_shape` is missing"],
        ),
        (
            one(pool(vec![ints("kernel_shape", &[2])])),
            &["only two spatial axes"],
        ),
        (
            one(pool(vec![ints("kernel_shape", &[2, 2]), int("kernel", 1)])),
            &["attribute `kernel` is not supported; supported:", "strides"],
        ),
        (
            one(pool(vec![int("kernel_shape", 2)])),
            &["attribute `kernel_shape` has type 2, expected 7"],
        ),
        (
            one(pool(vec![
                ints("kernel_shape", &[2, 2]),
                text("auto_pad", "FULL"),
            ])),
            &["auto_pad `FULL`; supported: NOTSET, VALID"],
        ),
        (
            one(pool(vec![
                ints("kernel_shape", &[2, 2]),
                ints("pads", &[-1, 0, 0, 0]),
            ])),
            &["negative pads"],
        ),
        (
            one(node("Conv", &["x", "x"], "y", vec![])),
            &["`x`, is computed at run time; Conv takes a constant"],
        ),
        (
            one(node("Conv", &["x", "w"], "y", vec![])),
            &["a weight of shape [2]; only convolutions over two"],
        ),
        (
            one(node("Conv", &["x"], "y", vec![])),
            &["input 1 is missing"],
        ),
        (
            one(node("Relu", &["x", "x"], "y", vec![])),
            &["2 inputs; at most 1"],
        ),
        (
            one(node("Relu", &["w"], "y", vec![])),
            &["every input is a constant"],
        ),
        (
            one(node("Relu", &["nowhere"], "y", vec![])),
            &["`nowhere` is no input, initializer or output"],
        ),
        (
            one(node("Gather", &["x", "w"], "y", vec![])),
            &["indices that are no integers"],
        ),
        (
            one(node("Cast", &["x"], "y", vec![int("to", 7)])),
            &["a run-time value to INT64"],
        ),
        (
            one(node(
                "BatchNormalization",
                &["x", "w", "w", "w", "w"],
                "y",
                vec![int("training_mode", 1)],
            )),
            &["only inference"],
        ),
        (
            one(node("Identity", &["w"], "y", vec![])),
            &["every input is a constant"],
        ),
        (
            model(13, &[1, 2], vec![text_weight], add_w()),
            &["initializer `w`", "dtype STRING; supported: FLOAT"],
        ),
        (
            model(13, &[1, 2], vec![longs("w", &[2], &[1, 2])], add_w()),
            &["input 1 holds integers"],
        ),
        (
            model(13, &[1, 2], vec![floats("w", &[3], &[1., 2., 3.])], add_w()),
            &["do not broadcast"],
        ),
    ];
    for (proto, expected) in cases {
        let error = refusal(&proto);
        assert!(error.contains("made.onnx"), "{error}");
        for part in expected {
            assert!(error.contains(part), "`{error}` lacks `{part}`");
        }
    }
}

#[test]
fn an_input_shape_binds_what_the_file_leaves_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("open.onnx");
    let w = floats("w", &[1, 1, 3, 3], &[1.0; 9]);
    let conv = vec![node("Conv", &["x", "w"], "y", vec![])];
    std::fs::write(&path, bytes(&model(13, &[0, 1, 0, 0], vec![w], conv))).unwrap();
    let error = open(&path, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("the size of `x_2` must be bound"), "{error}");
    let options = Options {
        input: Some(vec![
            Dim::Symbol("N".into()),
            Dim::Fixed(1),
            Dim::Fixed(5),
            Dim::Fixed(4),
        ]),
        ..Options::default()
    };
    let model = open(&path, &options).unwrap();
    assert_eq!(run(&model, &counting(&[2, 1, 5, 4])).shape, [2, 1, 3, 2]);
    let arch = Options {
        arch: Some("resnet".into()),
        ..Options::default()
    };
    let error = open(&path, &arch).unwrap_err().to_string();
    assert!(error.contains("have a graph of their own"), "{error}");
}

#[test]
fn constants_are_folded_where_they_stand() {
    let one = floats("", &[1], &[0.5]);
    let model = made(&model(
        13,
        &[-1, 2, 3],
        vec![
            floats("c", &[2, 3], &[1., 2., 3., 4., 5., 6.]),
            longs("shape", &[2], &[3, 2]),
            longs("which", &[], &[1]),
        ],
        vec![
            node("Reshape", &["c", "shape"], "r", vec![]),
            node("Transpose", &["r"], "t", vec![ints("perm", &[1, 0])]),
            node("ConstantOfShape", &["shape"], "half", vec![value(one)]),
            node("Transpose", &["half"], "half_t", vec![]),
            node("Mul", &["t", "half_t"], "m", vec![]),
            node("Gather", &["m", "which"], "row", vec![int("axis", 0)]),
            node("Concat", &["row", "row"], "two", vec![int("axis", 0)]),
            node("Shape", &["x"], "s", vec![int("start", 1)]),
            node("Reshape", &["two", "s"], "back", vec![]),
            node("Sum", &["x", "back", "back"], "y", vec![]),
        ],
    ))
    .unwrap();
    assert_eq!(ops(&model), ["Add", "Add"]);
    let x = Tensor::zeros(&[1, 2, 3]);
    assert_eq!(run(&model, &x).data, [2., 4., 6., 2., 4., 6.]);
}

#[test]
fn token_ids_tables_of_angles_and_attention_are_understood() {
    let frequencies = [1.0f64, 0.03];
    let table = |f: fn(f64) -> f64| -> Vec<f32> {
        let angles = (0..8).flat_map(|p| frequencies.map(|w| f64::from(p) * w));
        angles.map(|a| f(a) as f32).collect()
    };
    let made_with = |sin: Vec<f32>, ids: &[&str]| {
        let vector = |name: &str| floats(name, &[8], &[1., 2., 3., 4., 5., 6., 7., 8.]);
        let rows: Vec<f32> = (0..80).map(|i| (i as f32 * 0.7).sin()).collect();
        let heads = || vec![int("num_heads", 2)];
        let attributes = vec![
            int("q_num_heads", 2),
            int("kv_num_heads", 2),
            int("is_causal", 1),
        ];
        let turned = [&["e", "cos", "sin"], ids].concat();
        let shape: &[i64] = if ids.is_empty() { &[1, 8, 2] } else { &[8, 2] };
        let mut proto = model(
            24,
            &[-1, 8],
            vec![
                floats("words", &[10, 8], &rows),
                floats("cos", shape, &table(f64::cos)),
                floats("sin", shape, &sin),
                vector("scale"),
                longs("places", &[1, 8], &[0, 1, 2, 3, 4, 5, 6, 7]),
                longs("last", &[1], &[-1]),
            ],
            vec![
                node("Gather", &["words", "x"], "e", vec![]),
                node("RotaryEmbedding", &turned, "q", heads()),
                node("Attention", &["q", "q", "e"], "a", attributes),
                node("LayerNormalization", &["a", "scale"], "n", vec![]),
                node("Gelu", &["n"], "g", vec![text("approximate", "tanh")]),
                node("Gather", &["g", "last"], "y", vec![int("axis", 1)]),
            ],
        );
        let info = &mut proto.graph.as_mut().unwrap().input[0];
        let tensor = info.r#type.as_mut().unwrap().tensor_type.as_mut();
        tensor.unwrap().elem_type = proto::data_type::INT64;
        proto
    };
    for ids in [&[][..], &["places"]] {
        let model = made(&made_with(table(f64::sin), ids)).unwrap();
        assert_eq!(
            ops(&model),
            [
                "Gather",
                "RotaryEmbedding",
                "Attention",
                "LayerNormalization",
                "Gelu",
                "Gather"
            ]
        );
        assert_eq!(model.graph().inputs[0].dtype, DType::I64);
        let name = &model.graph().nodes[1].inputs[1];
        let found = model.weights()[name].to_f32().unwrap();
        for (found, f) in found.iter().zip(frequencies) {
            assert!((f64::from(*found) - f).abs() < 1e-6, "{found} for {f}");
        }
        let mut session = lacuna::Session::new(&model, Default::default()).unwrap();
        let ids = [3i64, 1, 4, 1, 5, 9, 2, 6];
        let view = lacuna::TensorView::i64(&[1, 8], &ids);
        let y = session.run(&[view]).unwrap().remove(0);
        assert_eq!(y.shape, [1, 1, 8]);
        assert!(y.data.iter().all(|v| v.is_finite()) && y.data.iter().any(|v| *v != 0.0));
    }
    let mut wrong = table(f64::sin);
    wrong[9] += 0.1;
    let error = refusal(&made_with(wrong, &[]));
    assert!(error.contains("no multiples of frequencies"), "{error}");
}

#[test]
fn real_cnns_open() {
    for (name, output) in [("resnet50_s80_1.onnx", 122), ("mobilenetv1_s80_1.onnx", 57)] {
        let Some(path) = test_data(name) else { return };
        let model = open(path, &Options::default()).unwrap();
        assert_eq!(model.graph().nodes.len(), output, "{name}");
    }
}
