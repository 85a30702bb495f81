//! `prune demo` on the model and the data that come with the project.

use std::process::Command;

fn demo(args: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_prune");
    let output = Command::new(program).arg("demo").args(args).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The pruned model was as good as a guess.
#[test]
fn the_demo_lost_everything_at_its_default_sparsity() {
    let report: serde_json::Value = serde_json::from_str(&demo(&["--json"])).unwrap();
    let number = |key: &str| report[key].as_f64().unwrap();
    assert_eq!(number("samples"), 10_000.0);
    assert!(number("accuracy_dense") >= 0.92, "{report:#}");
    let loss = number("accuracy_dense") - number("accuracy_sparse");
    assert!(number("sparsity") >= 0.8 && loss <= 0.01, "{report:#}");
    assert!(
        number("bytes_sparse") * 4.0 < number("bytes_dense"),
        "{report:#}"
    );
    let trained = report["trained"].as_str().unwrap();
    assert!(trained.contains("60,000 training images"), "{trained}");
}

/// The demo printed where the project was built.
#[test]
fn the_demo_named_the_folder_of_its_data() {
    let said = demo(&[]);
    assert!(said.contains("t10k-images-idx3-ubyte.gz"), "{said}");
    assert!(!said.contains(env!("CARGO_MANIFEST_DIR")), "{said}");
}
