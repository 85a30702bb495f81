//! Writing: what comes back is what was written, equal models are equal bytes, and a failed write
//! leaves what was there.

mod common;

use common::{bytes, small_graph, small_model};
use half::{bf16, f16};
use lacuna::model::{Encoding, Graph, Node, Op, PadMode, Weights, file};
use lacuna::{DType, Model, Weight};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The small model and these weights, which its graph does not use.
fn with_weights(extra: impl IntoIterator<Item = (String, Weight)>) -> Model {
    let mut weights = small_model().weights().clone();
    weights.extend(extra);
    Model::new(small_graph(), weights).unwrap()
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn equal_models_are_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..3).map(|i| dir.path().join(format!("{i}"))).collect();
    small_model().save(&paths[0]).unwrap();
    small_model().save(&paths[1]).unwrap();
    Model::open(&paths[0]).unwrap().save(&paths[2]).unwrap();
    assert_eq!(bytes(&paths[0]), bytes(&paths[1]));
    assert_eq!(bytes(&paths[0]), bytes(&paths[2]));

    let mut other = small_model();
    other
        .set_weight("fc.bias", Weight::from_f32(&[3], &[1., 2., 3.]))
        .unwrap();
    other.save(&paths[1]).unwrap();
    assert_ne!(bytes(&paths[0]), bytes(&paths[1]));
}

#[test]
fn data_are_aligned_as_far_as_lengths_allow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let large = Weight::from_f32(&[16], &[1.; 16]);
    with_weights([
        ("large".into(), large),
        ("odd".into(), Weight::from_f32(&[1], &[1.])),
    ])
    .save(&path)
    .unwrap();
    let file = bytes(&path);
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(header % 64, 0);
    let parsed: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&file[8..header]).unwrap();
    let json = std::str::from_utf8(&file[8..header]).unwrap();
    let mut last = 0;
    for name in parsed.keys() {
        let at = json.find(&format!("{}:", serde_json::json!(name))).unwrap();
        assert!(at > last, "`{name}` is out of order");
        last = at;
    }
    for (name, entry) in parsed.iter().filter(|(n, _)| *n != "__metadata__") {
        let offsets = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
        let keeps = 1usize << ((offsets[1] - offsets[0]) | 64).trailing_zeros();
        assert_eq!(offsets[0] % keeps, 0, "{name} at {offsets:?}");
        let element = DType::from_name(entry["dtype"].as_str().unwrap())
            .unwrap()
            .size();
        assert_eq!(offsets[0] % element, 0, "{name}");
    }
}

#[test]
fn infinite_limits_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut graph = small_graph();
    graph.nodes[1].op = Op::Clip {
        min: Some(f32::NEG_INFINITY),
        max: Some(f32::INFINITY),
    };
    graph.nodes.push(Node {
        name: "pad".into(),
        op: Op::Pad {
            pads: vec![0, 1, 0, 1],
            mode: PadMode::Constant(f32::NEG_INFINITY),
        },
        inputs: vec!["fc.out".into()],
        output: "pad.out".into(),
    });
    let model = Model::new(graph, small_model().weights().clone()).unwrap();
    model.save(&path).unwrap();
    assert_eq!(Model::open(&path).unwrap().graph(), model.graph());
}

/// A model that cannot be written, and what its error must say.
fn refused() -> Vec<(&'static str, Model, Vec<&'static str>)> {
    let sparse = || Weight::from_f32(&[1, 2], &[0., 1.]).encode();
    let dense = || Weight::from_f32(&[1], &[1.]);
    let byte = || Weight::dense(vec![1], DType::U8, vec![1].into()).unwrap();
    let of =
        |list: Vec<(&str, Weight)>| with_weights(list.into_iter().map(|(n, w)| (n.to_owned(), w)));
    let attribute = {
        let mut graph = small_graph();
        graph.nodes[1].op = Op::LeakyRelu { alpha: f32::NAN };
        Model::new(graph, small_model().weights().clone()).unwrap()
    };
    vec![
        (
            "two sparse weights, one place",
            of(vec![("fc", sparse())]),
            vec!["`fc.weight`", "`fc`", "`fc.compressed`"],
        ),
        (
            "a dense weight where a part stands",
            of(vec![("fc.shape", dense())]),
            vec!["`fc.weight`", "`fc.shape`"],
        ),
        (
            "dense weights that look like an encoded one",
            of(vec![("a.compressed", dense()), ("a.bitmask", byte())]),
            vec!["`a.compressed`", "`a.bitmask`"],
        ),
        (
            "a reserved name",
            of(vec![("lacuna.graph", dense())]),
            vec!["`lacuna.graph`"],
        ),
        (
            "the metadata's name",
            of(vec![("__metadata__", dense())]),
            vec!["`__metadata__`"],
        ),
        (
            "NaN",
            of(vec![(
                "bad",
                Weight::from_f32(&[2, 2], &[0., 0., 0., f32::NAN]).encode(),
            )]),
            vec!["`bad`", "flat index 3", "NaN"],
        ),
        (
            "an attribute that is not a number",
            attribute,
            vec!["`act`", "LeakyRelu"],
        ),
    ]
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    let old = bytes(&path);
    for (name, model, expected) in refused() {
        let error = model.save(&path).unwrap_err().to_string();
        for e in expected {
            assert!(error.contains(e), "{name}: {error}");
        }
        assert_eq!(bytes(&path), old, "{name}");
        assert_eq!(files_in(dir.path()), 1, "{name}: a temporary file stayed");
    }
}

#[test]
fn a_folder_is_no_target() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("taken");
    std::fs::create_dir(&inner).unwrap();
    for write in [file::write, file::write_dense] {
        let error = write(&small_model(), &inner).unwrap_err().to_string();
        assert!(
            error.contains("taken") && error.contains("folder"),
            "{error}"
        );
    }
    let error = small_model()
        .save(dir.path().join("absent/m"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("absent/m") && error.contains("cannot create"),
        "{error}"
    );
    assert_eq!(files_in(dir.path()), 1);
    assert_eq!(files_in(&inner), 0);
}

#[test]
fn the_file_that_the_model_is_mapped_from_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    small_model().save(&path).unwrap();
    let old = bytes(&path);
    let model = Model::open(&path).unwrap();
    let roundabout = dir.path().join(".").join("m");
    let hard = dir.path().join("hard");
    std::fs::hard_link(&path, &hard).unwrap();
    for target in [&path, &roundabout, &hard] {
        for write in [file::write, file::write_dense] {
            let error = write(&model.decoded(), target).unwrap_err().to_string();
            assert!(error.contains("mapped from"), "{error}");
        }
    }
    assert_eq!(bytes(&path), old);
    assert_eq!(files_in(dir.path()), 2);
}

/// An open model keeps its values when its file is replaced, as every write of ours does.
#[test]
fn an_open_model_survives_the_replacement_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    small_model().save(&path).unwrap();
    let open = Model::open(&path).unwrap();
    let mut other = small_model();
    other
        .set_weight("fc.bias", Weight::from_f32(&[3], &[7.; 3]))
        .unwrap();
    other.save(&path).unwrap();
    assert_eq!(open.weights()["fc.bias"].to_f32().unwrap(), [0.5, 0., 2.]);
    let reopened = Model::open(&path).unwrap();
    assert_eq!(reopened.weights()["fc.bias"].to_f32().unwrap(), [7.; 3]);
}

#[cfg(unix)]
#[test]
fn a_link_keeps_pointing_and_its_target_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("m"), dir.path().join("link"));
    std::fs::write(&path, "old").unwrap();
    std::os::unix::fs::symlink("m", &link).unwrap();
    small_model().save(&link).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(Model::open(&path).unwrap().weights().len(), 3);
}

/// Bytes of values in a dtype.
fn values(dtype: DType, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&v| match dtype {
            DType::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        })
        .collect()
}

/// A weight of random shape, dtype, density and encoding, with rows that may be empty.
fn weight() -> impl Strategy<Value = Weight> {
    let shape = prop_oneof![
        Just(vec![]),
        prop::collection::vec(0usize..20, 1..3),
        prop::collection::vec(1usize..6, 3..5),
    ];
    let dtype = prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]);
    (shape, dtype, 0u32..=100, any::<bool>(), any::<u64>()).prop_map(
        |(shape, dtype, percent, sparse, seed)| {
            let n: usize = shape.iter().product();
            let row = shape.iter().skip(1).product::<usize>().max(1);
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let all: Vec<f32> = (0..n)
                .map(|i| {
                    let keep = (next() >> 20) % 100 < u64::from(percent);
                    let empty = (i / row) % 5 == (seed % 7) as usize;
                    let value = ((next() >> 20) % 4001) as f32 / 64. - 30.;
                    if keep && !empty { value } else { 0. }
                })
                .collect();
            let dense = Weight::dense(shape, dtype, values(dtype, &all).into()).unwrap();
            match (sparse, dense.is_two_four()) {
                (false, _) => dense,
                (true, false) => dense.encode(),
                (true, true) => dense.encode_two_four().unwrap(),
            }
        },
    )
}

fn same(a: &Weight, b: &Weight) -> bool {
    let bytes = |w: &Weight| match w.encoding() {
        Encoding::Dense(d) => vec![d.to_vec()],
        Encoding::Bitmask(b) => {
            let offsets = b.row_offsets.as_deref().unwrap_or_default();
            vec![b.values.to_vec(), b.mask.to_vec(), offsets.to_vec()]
        }
    };
    a.storage() == b.storage()
        && a.shape() == b.shape()
        && a.dtype() == b.dtype()
        && bytes(a) == bytes(b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any weights come back bit for bit, the safetensors crate reads the file, and the dense
    /// export has the same values.
    #[test]
    fn weights_come_back_bit_for_bit(
        weights in prop::collection::btree_map("w[a-zé\"\\\\]{0,3}(\\.weight)?", weight(), 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, dense) = (dir.path().join("m"), dir.path().join("d"));
        // Names that would meet in one place are refused elsewhere.
        let weights: BTreeMap<String, Weight> = weights
            .iter()
            .filter(|(n, _)| n.ends_with(".weight") || !weights.contains_key(&format!("{n}.weight")))
            .map(|(n, w)| (n.clone(), w.clone()))
            .collect();
        let model = with_weights(weights);
        model.save(&path).unwrap();
        let back = Model::open(&path).unwrap();
        prop_assert_eq!(back.weights().len(), model.weights().len());
        for (name, weight) in model.weights() {
            prop_assert!(same(weight, &back.weights()[name]), "{}", name);
        }
        let file = bytes(&path);
        prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok());

        file::write_dense(&model, &dense).unwrap();
        let file = bytes(&dense);
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(read.len(), model.weights().len());
        for (name, weight) in model.weights() {
            let Encoding::Dense(expected) = weight.decode().encoding().clone() else {
                panic!("decode leaves a weight sparse")
            };
            let tensor = read.tensor(name).unwrap();
            prop_assert_eq!(tensor.data(), &expected[..]);
            prop_assert_eq!(tensor.shape(), weight.shape());
        }
    }
}

#[test]
fn a_model_of_nothing_but_a_graph_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let mut graph = Graph {
        outputs: vec!["act.out".into()],
        ..small_graph()
    };
    graph.nodes.drain(2..);
    graph.nodes.remove(0);
    graph.nodes[0].inputs = vec!["x".into()];
    let model = Model::new(graph, Weights::new()).unwrap();
    model.save(&path).unwrap();
    assert_eq!(Model::open(&path).unwrap().graph(), model.graph());
}
