//! Files that lie. Each must be refused with an error that names the file and what is wrong in
//! it, without a panic and without believing a number before it is checked.

mod common;
mod hostile;

use common::{assemble, bytes, flip_every_bit, raw, small_model};
use hostile::{META, headers, models, parts};
use lacuna::Model;
use lacuna::model::file;
use std::path::Path;

const LABEL: &str = "hostile.safetensors";

fn good_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    bytes(&path)
}

#[test]
fn every_hostile_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LABEL);
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, file, expected) in headers::cases().into_iter().chain(models::cases()) {
        count += 1;
        std::fs::write(&path, &file).unwrap();
        match Model::open(&path) {
            Ok(_) => wrong.push(format!("{name}: opened")),
            Err(e) => {
                let said = e.to_string();
                let misses: Vec<_> = expected.iter().filter(|e| !said.contains(**e)).collect();
                if !misses.is_empty() || !said.contains(LABEL) || said.len() > 1000 {
                    wrong.push(format!("{name}: {said}\n    misses {misses:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "of {count} cases:\n{}", wrong.join("\n"));
}

#[test]
fn the_untouched_file_opens() {
    let model = file::read_bytes(LABEL, assemble(META, &parts()).into()).unwrap();
    assert_eq!(model.weights().len(), 3);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (dir.path().to_path_buf(), "not a regular file"),
        (dir.path().join("absent"), "cannot open"),
    ] {
        let error = Model::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    #[cfg(unix)]
    {
        let error = Model::open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero"), "{error}");
    }
}

#[test]
fn unaligned_offsets_are_legal() {
    let mut all = parts();
    all.insert(0, raw("a", "U8", &[1], &[7]));
    let model = file::read_bytes(LABEL, assemble(META, &all).into()).unwrap();
    let reference = small_model();
    for (name, weight) in reference.weights() {
        assert_eq!(model.weights()[name].to_f32(), weight.to_f32(), "{name}");
    }
}

#[test]
fn unknown_metadata_json_keys_and_reserved_tensors_are_ignored() {
    let mut all = parts();
    all.push(raw("lacuna.later", "F64", &[1], &[0xff; 8]));
    for t in &mut all {
        if t.name == "lacuna.graph" {
            let json = String::from_utf8(t.data.clone()).unwrap();
            let json = json
                .replacen("{\"version\"", "{\"later\":[{}],\"version\"", 1)
                .replacen("{\"name\":\"conv\"", "{\"later\":null,\"name\":\"conv\"", 1);
            t.shape = format!("[{}]", json.len());
            t.data = json.into_bytes();
        }
    }
    let meta = r#"{"format":"lacuna","version":"1","later":"x","recipe":"r"}"#;
    let model = file::read_bytes(LABEL, assemble(meta, &all).into()).unwrap();
    assert_eq!(model.metadata.recipe.as_deref(), Some("r"));
    assert_eq!(model.weights().len(), 3);
}

#[test]
fn every_truncation_is_refused() {
    let file = good_file();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let boundaries = (0..header.min(600))
        .chain((header - 20)..(header + 20))
        .chain((header..file.len()).step_by(37))
        .chain(file.len() - 9..file.len());
    for n in boundaries {
        let error = file::read_bytes(LABEL, file[..n].to_vec().into())
            .err()
            .unwrap_or_else(|| panic!("the first {n} of {} bytes open", file.len()));
        let said = error.to_string();
        assert!(said.contains(LABEL), "{said}");
        // Behind the header the cut goes through a tensor, or leaves one outside.
        if n >= header {
            let places = format!("do not lie in the {} bytes", n - header);
            assert!(
                said.contains("tensor `") && said.contains(&places),
                "{said}"
            );
        } else if n >= 8 {
            assert!(said.contains(&format!("a file of {n} bytes")), "{said}");
        }
    }
}

/// Every bit of the sparse weights' masks, sizes and row offsets flipped: an error that names one of
/// the weight's tensors. A flip in a value is a value, unless it is not finite.
#[test]
fn every_bit_flip_of_a_mask_a_size_or_an_offset_is_refused_by_tensor() {
    let kinds = ["bitmask", "shape", "row_offsets"];
    let flips = flip_every_bit(META, LABEL, &parts(), &kinds);
    assert!(flips > 1000, "{flips}");
}

/// Every bit of the header flipped: an error that names the file, or a model that is whole.
#[test]
fn every_bit_flip_of_the_header_is_refused_or_harmless() {
    let file = good_file();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for bit in 0..header * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match file::read_bytes(LABEL, bad.into()) {
            Ok(model) => assert_eq!(model.weights().len(), 3, "bit {bit}"),
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains(LABEL), "bit {bit}: {e}");
            }
        }
    }
    // What is left are the padding, letters of metadata and of names that no one reads.
    assert!(refused * 10 > header * 8 * 7, "{refused} of {}", header * 8);
}
