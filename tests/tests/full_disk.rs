//! A write that the system ends in the middle leaves the old file and nothing else. A limit on the size of files
//! stands for the full disk; it holds for a process, so this test runs itself.
#![cfg(unix)]

mod common;

use common::{bytes, small_graph, small_model};
use lacuna::{Model, Weight};
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "LACUNA_TEST_TARGET";

/// What runs under the limit: a model beyond it, over the file that [`TARGET`] names.
#[test]
fn under_the_limit() {
    let Some(path) = std::env::var_os(TARGET).map(PathBuf::from) else {
        return;
    };
    let mut weights = small_model().weights().clone();
    let large = Weight::from_f32(&[1 << 20], &vec![1.5; 1 << 20]);
    weights.insert("large".into(), large);
    let model = Model::new(small_graph(), weights).unwrap();
    let said = model.save(&path).unwrap_err().to_string();
    assert!(
        said.contains(path.to_str().unwrap()) && said.contains("cannot write"),
        "{said}"
    );
}

#[test]
fn a_write_that_ends_in_the_middle_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    small_model().save(&path).unwrap();
    let old = bytes(&path);
    // The signal is ignored, so that the write itself fails, as on a full disk.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --exact under_the_limit",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(TARGET, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    assert_eq!(bytes(&path), old);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
