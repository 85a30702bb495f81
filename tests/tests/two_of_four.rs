//! Weights of which two of each four columns are stored: the file, its hostile variants, the exports, and
//! that they compute what the same weights in a bitmask compute.

mod common;

use common::{Raw, assemble, bytes, flip_every_bit, raw};
use lacuna::model::file::{self, Tensors};
use lacuna::model::{Dim, Graph, Input, Node, Op, Storage, Weights};
use lacuna::{DType, Model, Session, SessionOptions, TensorView, Weight};

const META: &str = r#"{"format":"lacuna","version":"2"}"#;
const LABEL: &str = "hostile.safetensors";

/// Groups with two, one and no non-zeros; a row ends in half a byte of the mask.
const ROWS: [[f32; 12]; 3] = [
    [1.5, 0., 0., 2., 0., 3., 0., 0., 0., 0., -4., 5.],
    [0., 0., 0., 0., 0., 6., 7., 0., 8., 0., 0., 9.],
    [0., 10., 0., 11., 12., 13., 0., 0., 0., 14., 0., 15.],
];

fn model(weight: Weight) -> Model {
    let graph = Graph {
        name: "small".into(),
        inputs: vec![Input::f32(
            "x",
            vec![Dim::Symbol("N".into()), Dim::Fixed(12)],
        )],
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "fc".into(),
            op: Op::MatMul { trans_b: true },
            inputs: vec!["x".into(), "fc.weight".into()],
            output: "y".into(),
        }],
    };
    Model::new(graph, Weights::from([("fc.weight".into(), weight)])).unwrap()
}

fn weight() -> Weight {
    let dense = Weight::from_f32(&[3, 12], ROWS.as_flattened());
    dense.encode_two_four().unwrap()
}

fn saved() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    model(weight()).save(&path).unwrap();
    bytes(&path)
}

fn parts() -> Vec<Raw> {
    let tensors = Tensors::parse("good", saved().into()).unwrap();
    let names: Vec<String> = tensors.names().map(String::from).collect();
    let part = |n: &String| {
        let t = tensors.get(n).unwrap();
        let shape: Vec<i64> = t.shape.iter().map(|&d| d as i64).collect();
        raw(n, t.dtype_name, &shape, &t.bytes)
    };
    names.iter().map(part).collect()
}

fn le(v: &[i64]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn two_of_four_stand_in_the_file_byte_for_byte_and_come_back() {
    let saved = saved();
    let file = safetensors::SafeTensors::deserialize(&saved).unwrap();
    let tensor = |name: &str| file.tensor(name).unwrap();
    assert_eq!(tensor("fc.compressed").shape(), [3, 6]);
    let values = [
        1.5f32, 2., 0., 3., -4., 5., 0., 0., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
    ];
    let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(tensor("fc.compressed").data(), values);
    assert_eq!(tensor("fc.bitmask").shape(), [3, 2]);
    assert_eq!(
        tensor("fc.bitmask").data(),
        [
            0b0011_1001,
            0b1100,
            0b0110_0011,
            0b1001,
            0b0011_1010,
            0b1010
        ]
    );
    assert_eq!(tensor("fc.shape").shape(), [2, 1]);
    assert_eq!(tensor("fc.shape").data(), le(&[3, 12]));
    assert!(file.tensor("fc.row_offsets").is_err());
    let graph = String::from_utf8_lossy(tensor("lacuna.graph").data()).into_owned();
    assert!(graph.starts_with("{\"version\":2"), "{graph}");

    let back = file::read_bytes(LABEL, saved.into()).unwrap();
    let weight = &back.weights()["fc.weight"];
    assert_eq!(weight.storage(), Storage::TwoFour);
    assert_eq!(weight.to_f32().unwrap(), ROWS.as_flattened());
    assert!(file::read_bytes(LABEL, assemble(META, &parts()).into()).is_ok());
}

#[test]
fn a_file_without_such_weights_stays_of_version_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    model(weight().store_as(Storage::Bitmask).unwrap())
        .save(&path)
        .unwrap();
    let tensors = Tensors::open(&path).unwrap();
    assert_eq!(tensors.metadata()["version"], "1");
    assert_eq!(
        Model::open(&path).unwrap().weights()["fc.weight"].storage(),
        Storage::Bitmask
    );
}

#[test]
fn hostile_files_are_refused_with_tensor_and_value() {
    type Change = fn(&mut Raw);
    let cases: [(&str, &str, Change, &[&str]); 12] = [
        (
            "three of four",
            "fc.bitmask",
            |t| t.data[2] |= 4,
            &["row 1 keeps 3 of columns 0 to 3"],
        ),
        (
            "one of four",
            "fc.bitmask",
            |t| t.data[5] = 2,
            &["row 2 keeps 1 of columns 8 to 11"],
        ),
        (
            "three and one",
            "fc.bitmask",
            |t| t.data[0] = 0b0111_0001,
            &["row 0 keeps 1 of columns 0 to 3"],
        ),
        (
            "behind the last column",
            "fc.bitmask",
            |t| t.data[1] |= 16,
            &["row 0", "behind column 12"],
        ),
        (
            "a mask too short",
            "fc.bitmask",
            |t| {
                t.data.truncate(3);
                t.shape = "[3,1]".into();
            },
            &["`fc.bitmask`", "[3, 1]", "[3, 2]"],
        ),
        (
            "a value too few",
            "fc.compressed",
            |t| {
                t.data.truncate(60);
                t.shape = "[3,5]".into();
            },
            &["`fc.compressed`", "[3, 5]", "[3, 6]"],
        ),
        (
            "a flat list",
            "fc.compressed",
            |t| t.shape = "[18]".into(),
            &["`fc.row_offsets`", "no such tensor"],
        ),
        (
            "a mask of another dtype",
            "fc.bitmask",
            |t| t.dtype = "I8".into(),
            &["`fc.bitmask`", "I8"],
        ),
        (
            "values of another dtype",
            "fc.compressed",
            |t| t.dtype = "I32".into(),
            &["`fc.compressed`", "I32"],
        ),
        (
            "no infinity",
            "fc.compressed",
            |t| t.data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
            &["fc.weight", "flat index 0 is inf"],
        ),
        (
            "a negative size",
            "fc.shape",
            |t| t.data = le(&[3, -12]),
            &["`fc.shape`", "-12"],
        ),
        (
            "sizes that overflow",
            "fc.shape",
            |t| t.data = le(&[i64::MAX, i64::MAX]),
            &["`fc.shape`", "overflows"],
        ),
    ];
    for (what, name, change, expected) in cases {
        let mut all = parts();
        change(all.iter_mut().find(|t| t.name == name).unwrap());
        refused(what, META, &all, expected);
    }
    // Rows without columns, which no tensor bounds, and columns that are no groups.
    for (shape, values, mask) in [
        (
            [1 << 60, 0],
            "[1152921504606846976,0]",
            "[1152921504606846976,0]",
        ),
        ([3, 10], "[3,5]", "[3,2]"),
    ] {
        let mut all = parts();
        for t in &mut all {
            match t.name.as_str() {
                "fc.shape" => t.data = le(&shape),
                "fc.compressed" => {
                    t.shape = values.into();
                    t.data.truncate(if shape[1] == 0 { 0 } else { 60 });
                }
                "fc.bitmask" => {
                    t.shape = mask.into();
                    t.data.truncate(if shape[1] == 0 { 0 } else { 6 });
                }
                _ => {}
            }
        }
        refused("no groups", META, &all, &["columns are no groups of 4"]);
    }
    let graph = |from: &str, to: &str| {
        let mut all = parts();
        let graph = all.iter_mut().find(|t| t.name == "lacuna.graph").unwrap();
        let json = String::from_utf8(graph.data.clone()).unwrap();
        graph.data = json.replacen(from, to, 1).into_bytes();
        all
    };
    let first = graph("\"version\":2", "\"version\":1");
    let version = r#"{"format":"lacuna","version":"1"}"#;
    refused(
        "version 1",
        version,
        &first,
        &["`fc.compressed`", "2:4", "version 1"],
    );
    let third = graph("\"version\":2", "\"version\":3");
    refused("version 3", META, &third, &["version 3", "1 and 2"]);
}

fn refused(what: &str, meta: &str, all: &[Raw], expected: &[&str]) {
    let said = match file::read_bytes(LABEL, assemble(meta, all).into()) {
        Ok(_) => panic!("{what}: opened"),
        Err(e) => e.to_string(),
    };
    for part in expected.iter().chain(&[LABEL]) {
        assert!(said.contains(part), "{what}: `{part}` is not in: {said}");
    }
}

#[test]
fn every_truncation_and_every_bit_flip_of_mask_and_shape_is_refused() {
    let file = saved();
    for n in 0..file.len() {
        let error = file::read_bytes(LABEL, file[..n].to_vec().into());
        assert!(error.unwrap_err().to_string().contains(LABEL), "{n}");
    }
    let flips = flip_every_bit(META, LABEL, &parts(), &["bitmask", "shape"]);
    assert_eq!(flips, 6 * 8 + 16 * 8);
}

#[test]
fn exports_decode_them() {
    let dir = tempfile::tempdir().unwrap();
    let (dense, onnx) = (dir.path().join("d.safetensors"), dir.path().join("m.onnx"));
    let model = model(weight());
    file::write_dense(&model, &dense).unwrap();
    let read = Tensors::open(&dense).unwrap();
    let back = read.weight("fc.weight").unwrap();
    assert_eq!(back.to_f32().unwrap(), ROWS.as_flattened());
    lacuna_convert::export_onnx(&model, &onnx).unwrap();
    let back = lacuna_convert::open(&onnx, &lacuna_convert::Options::default()).unwrap();
    let x: Vec<f32> = (0..24).map(|i| i as f32 / 8.0 - 1.0).collect();
    assert_eq!(outputs(&back, &x), outputs(&model, &x));
}

fn outputs(model: &Model, x: &[f32]) -> Vec<f32> {
    let symbols = [("N".to_owned(), x.len() / 12)].into();
    let options = SessionOptions {
        symbols,
        ..SessionOptions::default()
    };
    let mut session = Session::new(model, options).unwrap();
    let shape = [x.len() / 12, 12];
    session.run(&[TensorView::f32(&shape, x)]).unwrap()[0]
        .data
        .clone()
}

#[test]
fn dtypes_and_storages_compute_the_same() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let stored = weight().to_dtype(dtype).unwrap();
        for rows in [1, 3, 20] {
            let x: Vec<f32> = (0..rows * 12)
                .map(|i| (i % 31) as f32 / 8.0 - 2.0)
                .collect();
            let want = outputs(&model(stored.decode()), &x);
            for storage in [Storage::Bitmask, Storage::TwoFour] {
                let got = outputs(&model(stored.store_as(storage).unwrap()), &x);
                for (got, want) in got.iter().zip(&want) {
                    let error = (got - want).abs();
                    assert!(
                        error <= 1e-6 * (1.0 + want.abs()),
                        "{dtype} {storage:?}: {got} {want}"
                    );
                }
            }
        }
    }
}
