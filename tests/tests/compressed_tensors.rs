//! Checkpoints that releases of compressed-tensors wrote, and ours under their names.
//!
//! From 0.9.0 to 0.14.0 every release tried writes the same bytes: `fixtures/compressed_tensors/make.py`.

mod common;

use lacuna::model::file::{Tensors, decode_bitmask_tensors};
use lacuna::model::{Encoding, Storage};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/compressed_tensors")
        .join(name)
}

fn loads_with_equal_dense_values(name: &str, dense: &str, matrices: &[&str]) {
    let dense = Tensors::open(fixture(dense)).unwrap();
    let read = Tensors::open(fixture(name)).unwrap();
    assert!(read.contains("fc.compressed") || read.contains("fc.weight.compressed"));
    let weights = decode_bitmask_tensors(&read).unwrap();
    let names: Vec<&str> = weights.keys().map(String::as_str).collect();
    assert_eq!(names, dense.names().collect::<Vec<_>>());
    for (name, weight) in &weights {
        let expected = dense.weight(name).unwrap();
        assert_eq!(weight.shape(), expected.shape(), "{name}");
        assert_eq!(weight.dtype(), expected.dtype(), "{name}");
        assert_eq!(weight.to_f32(), expected.to_f32(), "{name}");
        if weight.to_f32().is_none() {
            let integers = [weight, &expected].map(|w| match w.encoding() {
                Encoding::Dense(bytes) => bytes.to_vec(),
                Encoding::Bitmask(_) => panic!("`{name}` is sparse"),
            });
            assert_eq!(integers[0], integers[1], "{name}");
        }
    }
    for matrix in matrices {
        assert!(weights[*matrix].is_sparse(), "{matrix} was decoded");
    }
}

fn tensors_load(name: &str) {
    let matrices = ["fc.weight", "half.weight", "head.weight"];
    loads_with_equal_dense_values(name, "dense.safetensors", &matrices);
}

#[test]
fn release_0_8_1_with_whole_names_loads() {
    tensors_load("bitmask-0.8.1.safetensors");
}

#[test]
fn release_0_9_4_loads() {
    tensors_load("bitmask-0.9.4.safetensors");
}

#[test]
fn release_0_14_0_loads() {
    tensors_load("bitmask-0.14.0.safetensors");
}

/// Convolution, normalisation with its buffers, and linear layer, through `ModelCompressor`.
#[test]
fn a_torch_module_of_release_0_14_0_loads() {
    let name = "module-0.14.0.safetensors";
    loads_with_equal_dense_values(name, "module-dense.safetensors", &["fc.weight"]);
}

#[test]
fn a_checkpoint_is_no_model_and_the_error_says_what_it_is() {
    let error = lacuna::Model::open(fixture("bitmask-0.9.4.safetensors")).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("bitmask-0.9.4.safetensors") && error.contains("compressed-tensors"),
        "{error}"
    );
}

/// By the format's definition; no release is installed here that wrote it.
#[test]
fn two_of_four_sparse_weights_load() {
    let le = |v: &[i64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let values = [1.0f32, -2.0, 0.0, 3.0, 4.0, 5.0, -6.0, 0.0];
    let half = values.map(half::f16::from_f32);
    let half: Vec<u8> = half.iter().flat_map(|v| v.to_le_bytes()).collect();
    let file = |shape: &[i64]| {
        common::assemble(
            "{}",
            &[
                common::raw("fc.compressed", "F16", &[2, 4], &half),
                common::raw("fc.bitmask", "U8", &[2, 1], &[0b1001_0101, 0b0110_1010]),
                common::raw("fc.shape", "I64", shape, &le(&[2, 8])),
            ],
        )
    };
    for shape in [&[2, 1][..], &[2]] {
        let tensors = Tensors::parse("two-of-four", file(shape).into()).unwrap();
        let weights = decode_bitmask_tensors(&tensors).unwrap();
        let weight = &weights["fc.weight"];
        assert_eq!(weights.len(), 1);
        assert_eq!(weight.storage(), Storage::TwoFour);
        let rows = [
            [1., 0., -2., 0., 0., 0., 0., 3.],
            [0., 4., 0., 5., 0., -6., 0., 0.],
        ];
        assert_eq!(weight.to_f32().unwrap(), rows.as_flattened());
    }
}

/// What the format's decoder does: it reads bitmask, shape and values, by the names that it knows.
#[test]
fn the_decoder_of_the_format_takes_our_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let model = common::small_model();
    model.save(&path).unwrap();
    let weights = decode_bitmask_tensors(&Tensors::open(&path).unwrap()).unwrap();
    let conv = &weights["conv.weight"];
    assert_eq!(conv.shape(), [10, 18]);
    assert_eq!(conv.to_f32(), model.weights()["conv.weight"].to_f32());
}
