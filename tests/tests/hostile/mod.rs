//! The table of hostile files.

pub mod headers;
mod language;
pub mod models;

use crate::common::{Raw, raw, small_model};
use lacuna::model::file::Tensors;

/// The metadata of a sound file.
pub const META: &str = r#"{"format":"lacuna","version":"1"}"#;

/// A case: what it is, the file, and what its error must say.
pub type Case = (&'static str, Vec<u8>, &'static [&'static str]);

/// The tensors of the small model's file.
pub fn parts() -> Vec<Raw> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    let tensors = Tensors::open(&path).unwrap();
    let names: Vec<String> = tensors.names().map(String::from).collect();
    names
        .iter()
        .map(|n| {
            let t = tensors.get(n).unwrap();
            let shape: Vec<i64> = t.shape.iter().map(|&d| d as i64).collect();
            raw(n, t.dtype_name, &shape, &t.bytes)
        })
        .collect()
}
