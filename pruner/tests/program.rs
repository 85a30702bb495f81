//! The program: recipes that replay, sidecars, exports, completions, the manual.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn prune(folder: &Path, threads: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prune"))
        .current_dir(folder)
        .env("RAYON_NUM_THREADS", threads)
        .args(args)
        .output()
        .unwrap()
}

fn works(folder: &Path, threads: &str, args: &[&str]) -> String {
    let out = prune(folder, threads, args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

fn fails(folder: &Path, args: &[&str], parts: &[&str]) {
    let out = prune(folder, "1", args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{args:?} works");
    for part in parts {
        assert!(
            error.contains(part),
            "{args:?}: `{part}` is not in: {error}"
        );
    }
}

#[test]
fn a_cause_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = prune(folder.path(), "1", &["inspect", "none.safetensors"]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(
        error.starts_with("error: none.safetensors: cannot open: "),
        "{error}"
    );
    assert_eq!(error.matches("os error").count(), 1, "{error}");
}

/// A folder with a small checkpoint, `source.safetensors`.
fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let args = [
        "convert",
        "--arch",
        "resnet-20",
        "--init-seed",
        "7",
        "-o",
        "source.safetensors",
    ];
    works(folder.path(), "2", &args);
    folder
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn an_emitted_recipe_replays_to_the_same_bytes() {
    let temporary = checkpoint();
    let folder = temporary.path();
    for (i, (verb, more)) in [
        (
            "global-mp",
            &["--min-weights", "64", "--mt-mode", "global"][..],
        ),
        (
            "global-mp",
            &["--dtype", "bf16", "--exclude", "*.conv1.weight"][..],
        ),
        ("magnitude", &["--keep-dense"][..]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut args = vec![
            verb,
            "source.safetensors",
            "--sparsity",
            "0.8",
            "-o",
            "a.safetensors",
        ];
        args.extend(["--emit-recipe", "r.toml"]);
        args.extend(more);
        works(folder, "2", &args);
        let first = bytes(folder, "a.safetensors");
        for threads in ["1", "2", "5"] {
            works(folder, threads, &["run", "r.toml", "-o", "b.safetensors"]);
            assert!(
                bytes(folder, "b.safetensors") == first,
                "{i}, {threads} threads"
            );
        }
        // The hash of the recipe is that of the file and of both sidecars.
        let sidecar = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&bytes(folder, name)).unwrap()
        };
        let (a, b) = (sidecar("a.report.json"), sidecar("b.report.json"));
        assert_eq!(a["recipe_sha256"], b["recipe_sha256"]);
        assert_eq!((&a["schema"], &a["kind"]), (&1.into(), &"prune".into()));
        let inspected = works(folder, "1", &["inspect", "b.safetensors", "--json"]);
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["recipe"], a["recipe_sha256"]);
        assert_eq!(inspected["layers"], a["layers"]);
    }
}

#[test]
fn random_weights_replay_from_their_seed() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = temporary.path();
    let args = [
        "global-mp",
        "--arch",
        "resnet-20",
        "--init-seed",
        "3",
        "--sparsity",
        "0.9",
    ];
    let args = [
        &args[..],
        &["-o", "a.safetensors", "--emit-recipe", "r.toml"],
    ]
    .concat();
    works(folder, "2", &args);
    let text = std::fs::read_to_string(folder.join("r.toml")).unwrap();
    assert!(text.contains("init_seed = 3"), "{text}");
    works(folder, "1", &["run", "r.toml", "-o", "b.safetensors"]);
    assert!(bytes(folder, "a.safetensors") == bytes(folder, "b.safetensors"));
}

#[test]
fn recipes_of_another_model_and_unknown_keys_are_refused() {
    let temporary = checkpoint();
    let folder = temporary.path();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let head = "schema = 1\nallocator = \"uniform\"\nsparsity = 0.5\n";
    let run = ["run", "r.toml", "-o", "out.safetensors"];
    for (text, parts) in [
        ("typo = 1\n", &["r.toml", "line 4", "typo"][..]),
        (
            "[model]\nfile = \"source.safetensors\"\nspeed = 2\n",
            &["line 6", "speed"],
        ),
        (
            "[model]\nfile = \"nowhere.safetensors\"\n",
            &["nowhere.safetensors"],
        ),
        ("", &["no model", "[model]"]),
        (
            "[model]\nfile = \"source.safetensors\"\nsha256 = \"00\"\n",
            &["source.safetensors", "made for 00"],
        ),
    ] {
        write("r.toml", &format!("{head}{text}"));
        fails(folder, &run, parts);
    }
    write(
        "r.toml",
        &format!("{head}[model]\nfile = \"source.safetensors\"\n"),
    );
    fails(
        folder,
        &["run", "r.toml", "-o", "source.safetensors"],
        &["is what is read"],
    );
    assert!(!folder.join("out.safetensors").exists());
    assert!(!folder.join("out.report.json").exists());
}

#[test]
fn exports_are_dense_and_do_not_overwrite_their_source() {
    let temporary = checkpoint();
    let folder = temporary.path();
    let args = [
        "global-mp",
        "source.safetensors",
        "--sparsity",
        "0.9",
        "-o",
        "p.safetensors",
    ];
    works(folder, "2", &args);
    works(
        folder,
        "2",
        &["export", "p.safetensors", "--dense", "-o", "d.safetensors"],
    );
    works(
        folder,
        "2",
        &["export", "p.safetensors", "--onnx", "-o", "p.onnx"],
    );
    for name in ["d.safetensors", "p.onnx"] {
        let text = works(folder, "1", &["inspect", name, "--json"]);
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = works(folder, "1", &["inspect", "p.safetensors", "--json"]);
        let wanted: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            found["totals"]["prunable_zeros"],
            wanted["totals"]["prunable_zeros"]
        );
        assert_eq!(found["macs"], wanted["macs"]);
        assert!(found["layers"][0]["encoding"] == "dense");
    }
    // Under the names of a checkpoint, with what the model does not have.
    let original = lacuna_convert::state_dict(folder.join("d.safetensors")).unwrap();
    let mut named: lacuna::model::Weights = original
        .iter()
        .map(|(name, w)| (format!("module.{name}"), w.clone()))
        .collect();
    let counter = lacuna::Weight::dense(vec![1], lacuna::DType::I64, vec![9; 8].into()).unwrap();
    named.insert("module.bn1.num_batches_tracked".into(), counter);
    let like = folder.join("like.safetensors");
    lacuna::model::file::write_weights(&named, &like).unwrap();
    let args = [
        "export",
        "p.safetensors",
        "--dense",
        "--like",
        "like.safetensors",
        "-o",
    ];
    works(folder, "1", &[&args[..], &["named.safetensors"]].concat());
    assert!(bytes(folder, "named.safetensors") == bytes(folder, "like.safetensors"));
    fails(
        folder,
        &[&args[..], &["like.safetensors"]].concat(),
        &["is what is read"],
    );
    named.remove("module.conv1.weight");
    lacuna::model::file::write_weights(&named, &like).unwrap();
    fails(
        folder,
        &[&args[..], &["x.safetensors"]].concat(),
        &["conv1.weight", "not the checkpoint"],
    );
    for format in ["--dense", "--onnx"] {
        let args = ["export", "p.safetensors", format, "-o", "p.safetensors"];
        fails(folder, &args, &["is what is read"]);
    }
    fails(
        folder,
        &["export", "p.safetensors", "-o", "x"],
        &["--dense|--onnx"],
    );
    assert!(!folder.join("x").exists());
}

#[test]
fn completions_and_manual_know_every_verb() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = temporary.path();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = works(folder, "1", &["completions", shell]);
        for word in ["global-mp", "emit-recipe", "report"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let page = works(folder, "1", &["man"]);
    assert!(
        page.contains(".TH prune 1") && page.contains("global\\-mp"),
        "{page}"
    );
    works(folder, "1", &["man", "-o", "pages"]);
    let text = std::fs::read_to_string(folder.join("pages/prune-global-mp.1")).unwrap();
    assert!(text.contains("emit\\-recipe"), "{text}");
    fails(folder, &["completions", "tcsh"], &["tcsh", "bash"]);
    let script: PathBuf = folder.join("prune.bash");
    std::fs::write(&script, works(folder, "1", &["completions", "bash"])).unwrap();
    if let Ok(out) = Command::new("bash").arg("-n").arg(&script).output() {
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
