//! The library in a Java virtual machine: what it computes there is what it computes from Rust, and what cannot be done
//! is an exception.

use runtime::{Decoder, DecoderOptions, Model, Session, SessionOptions, TensorView, Tokenizer};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| {
        let program = command.get_program();
        panic!("{program:?} is needed: {e}; install a JDK")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The folder of the shared library that cargo built with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().to_path_buf();
    assert!(folder.join("liblacuna_jni.so").exists(), "{folder:?}");
    folder
}

#[test]
#[ignore = "needs a JDK"]
fn a_java_virtual_machine_computes_what_rust_does() {
    let folder = tempfile::tempdir().unwrap();
    let workspace = Path::new(ROOT).join("../../..");
    let place = |name: &str| folder.path().join(name);
    for (source, name) in [
        (
            "pruner/assets/fashion-mnist/fashion-cnn.safetensors",
            "fashion",
        ),
        ("converters/tests/fixtures/language/llama.gguf", "llama"),
    ] {
        let options = lacuna_convert::Options::default();
        let model = lacuna_convert::open(workspace.join(source), &options).unwrap();
        model.save(place(name)).unwrap();
    }
    let input: Vec<f32> = (0..784)
        .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
        .collect();
    let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(place("input"), bytes).unwrap();

    let java = Path::new(ROOT).join("../lacuna/src/main/java/dev/lacuna");
    let mut compiler = Command::new("javac");
    compiler
        .arg("-Xlint:all")
        .arg("-Werror")
        .arg("-d")
        .arg(place("classes"));
    compiler.arg(java.join("Native.java"));
    compiler.arg(java.join("LacunaException.java"));
    run(compiler.arg(Path::new(ROOT).join("tests/java/Check.java")));
    let mut machine = Command::new("java");
    machine.arg("-Xcheck:jni");
    machine.arg(format!("-Djava.library.path={}", library().display()));
    machine.arg("-cp").arg(place("classes")).arg("Check");
    machine.args([place("fashion"), place("input"), place("llama")]);
    let output = run(&mut machine);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "x [1, 1, 28, 28] -> logits [1, 10]");

    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    let model = Model::open(place("fashion")).unwrap();
    let mut session = Session::new(&model, options).unwrap();
    let expected = session
        .run(&[TensorView::f32(&[1, 1, 28, 28], &input)])
        .unwrap();
    let found = lines[1].trim_matches(['[', ']']).split(", ");
    let found: Vec<f32> = found.map(|v| v.parse().unwrap()).collect();
    assert_eq!(found, expected[0].data);

    let model = Model::open(place("llama")).unwrap();
    let tokenizer = Tokenizer::new(&model).unwrap();
    let options = DecoderOptions {
        threads: 1,
        capacity: 64,
        ..DecoderOptions::default()
    };
    let mut decoder = Decoder::new(&model, options).unwrap();
    let prompt = tokenizer.encode("hello wörld", true).unwrap();
    let mut logits = decoder.prefill(&prompt).unwrap().to_vec();
    let mut next = Vec::new();
    for _ in 0..8 {
        let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
        next.push(best as u32);
        logits = decoder.prefill(&[best as u32]).unwrap().to_vec();
    }
    assert_eq!(lines[2], format!("{prompt:?} {next:?}"));
    let decoded = tokenizer.decode(&next).unwrap();
    assert!(text.contains(&format!("{next:?}\n{decoded}\n")), "{text}");

    let refused: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("refused: "))
        .collect();
    let parts = [
        "absent.safetensors",
        "is no model",
        "-1 threads",
        "",
        "array 0 is null",
        "output `logits` has 10 elements, the array 3",
        "token -1",
        "there is no tensor 9 of 1",
        "",
        "is closed",
        "",
        "",
    ];
    assert_eq!(refused.len(), parts.len(), "{text}");
    for (line, part) in refused.iter().zip(parts) {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
    assert!(!text.contains("not refused"), "{text}");
    assert_eq!(lines.last(), Some(&"8 threads, equal"));
    assert!(
        !text.contains("FATAL") && !text.contains("WARNING"),
        "{text}"
    );
}
