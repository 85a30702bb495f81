//! The benchmark end to end on a small model: the library's report and the program's output.

use lacuna::model::{Dim, Graph, Input, Node, Op, Padding};
use lacuna::{Model, Weight};
use lacuna_bench::{Config, Measured, Report, normal};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Two convolutions; the second has one weight in ten. Batch is symbolic.
fn model() -> Model {
    let conv = |name: &str, input: &str, output: &str| Node {
        name: name.into(),
        op: Op::Conv {
            strides: [1; 2],
            padding: Padding::Explicit([1; 4]),
            dilations: [1; 2],
            groups: 1,
        },
        inputs: vec![input.into(), format!("{name}.weight")],
        output: output.into(),
    };
    let graph = Graph {
        name: "small".into(),
        inputs: vec![Input::f32(
            "x",
            vec![
                Dim::Symbol("N".into()),
                Dim::Fixed(3),
                Dim::Fixed(16),
                Dim::Fixed(16),
            ],
        )],
        outputs: vec!["y".into()],
        nodes: vec![conv("first", "x", "a"), conv("second", "a", "y")],
    };
    let first = Weight::from_f32(&[32, 3, 3, 3], &normal(32 * 27, 1));
    let mut values = normal(48 * 32 * 9, 2);
    for (i, v) in values.iter_mut().enumerate() {
        if i % 10 != 0 {
            *v = 0.0;
        }
    }
    let second = Weight::from_f32(&[48, 32, 3, 3], &values);
    let weights = BTreeMap::from([
        ("first.weight".into(), first),
        ("second.weight".into(), second),
    ]);
    Model::new(graph, weights).unwrap()
}

fn saved(folder: &Path) -> PathBuf {
    let path = folder.join("small.safetensors");
    model().save(&path).unwrap();
    path
}

fn config(path: PathBuf) -> Config {
    Config {
        path,
        shown_as: None,
        threads: 1,
        isa: None,
        dense: false,
        round_inputs: None,
        batch: 1,
        warmup: 1,
        min_time: Duration::from_millis(20),
        layers: true,
        profile: None,
        tuned: None,
        costs: lacuna::plan::Costs::default(),
        pack_cache: None,
        prompt: 8,
        generate: 4,
        depth: 0,
    }
}

fn measure(config: &Config) -> Report {
    match lacuna_bench::run(config, |_| {}).unwrap() {
        Measured::Whole(report) => *report,
        Measured::Decoder(_) => panic!("convolutions generate no text"),
    }
}

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna-bench"))
        .args(args)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert_eq!(error, "", "progress without a terminal");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_report_counts_the_model_and_every_layer() {
    let folder = tempfile::tempdir().unwrap();
    let report = measure(&config(saved(folder.path())));
    assert_eq!(report.facts.parameters, 32 * 27 + 48 * 32 * 9);
    let kept = (48 * 32 * 9usize).div_ceil(10);
    assert_eq!(report.facts.nonzeros, 32 * 27 + kept);
    assert_eq!(report.sparse_weights, 1, "encoded on the fly");
    assert_eq!(report.outputs, [("y".to_owned(), vec![1, 48, 16, 16])]);

    let names: Vec<&str> = report.layers.iter().map(|l| l.node.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let second = &report.layers[1];
    assert_eq!(second.dense_macs, 48 * 32 * 9 * 256);
    assert!((second.density - 0.1).abs() < 1e-3);
    let dense_kernel = second.dense_kernel.as_deref().unwrap();
    assert!(dense_kernel.contains("dense"), "{dense_kernel}");
    for layer in &report.layers {
        assert!(layer.ms > 0.0 && layer.dense_ms.unwrap() > 0.0);
        assert!(layer.of_limit.unwrap() > 0.0);
    }
    let shares: f64 = report.layers.iter().map(|l| l.share).sum();
    assert!((shares - 1.0).abs() < 1e-9);

    let s = report.steady;
    assert!(s.n >= 20 && s.min <= s.p50 && s.p50 <= s.p90, "{s:?}");
    assert!(report.speedup.unwrap() > 0.0);
    assert!(report.first_ms > 0.0 && report.load_ms > 0.0);
}

#[test]
fn dense_runs_only_dense_and_a_batch_is_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(saved(folder.path()));
    config.dense = true;
    config.batch = 2;
    let report = measure(&config);
    assert_eq!(report.outputs[0].1, [2, 48, 16, 16]);
    assert!(report.dense_steady.is_none() && report.sparse_weights == 0);
    for layer in &report.layers {
        assert!(layer.kernel.contains("dense"), "{}", layer.kernel);
        assert_eq!(layer.macs, layer.dense_macs);
    }
}

#[test]
fn json_ends_with_one_flat_object() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let path = path.to_str().unwrap();
    let flat = |line: &str| -> Map<String, Value> { serde_json::from_str(line).unwrap() };

    let text = stdout(&bench(&[
        path,
        "--threads",
        "1",
        "--min-time-ms",
        "20",
        "--json",
    ]));
    assert_eq!(text.lines().count(), 1);
    let object = flat(&text);
    assert!(object.values().all(|v| !v.is_array() && !v.is_object()));
    let number = |key: &str| object[key].as_f64().unwrap();
    assert!(number("min_ms") > 0.0 && number("min_ms") <= number("median_ms"));
    assert_eq!(number("threads"), 1.0);
    let bytes = std::fs::metadata(path).unwrap().len();
    assert_eq!(number("file_bytes"), bytes as f64);
    assert!(
        !object.contains_key("dense_median_ms"),
        "steady latency only"
    );

    let text = stdout(&bench(&[path, "--min-time-ms", "20", "--json", "--layers"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(flat(lines[0])["layers"].as_array().unwrap().len(), 2);
    assert!(flat(lines[1])["dense_median_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn files_are_written_and_a_profile_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut profile = lacuna_targets::Profile::detect();
    profile.measure(Duration::from_millis(10), 1).unwrap();
    profile.limits[0].fma_gflops = 4321.0;
    profile.save(file("device.toml")).unwrap();

    let (csv, html, device) = (file("l.csv"), file("l.html"), file("device.toml"));
    let args = [
        path.to_str().unwrap(),
        "--threads",
        "1",
        "--min-time-ms",
        "20",
        "--csv",
        &csv,
        "--html",
        &html,
        "--profile",
        &device,
    ];
    let text = stdout(&bench(&args));
    assert!(text.contains("4321 GFLOP/s"), "{text}");
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("sparse vs dense: "),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 3);
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
}

#[test]
fn costs_of_a_profile_change_what_the_plan_chooses() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let device = folder.path().join("device.toml");
    let kernel = |profile: &lacuna_targets::Profile| {
        profile.save(&device).unwrap();
        let args = ["--threads", "1", "--min-time-ms", "5", "--json", "--layers"];
        let files = [
            path.to_str().unwrap(),
            "--profile",
            device.to_str().unwrap(),
        ];
        let text = stdout(&bench(&[&files[..], &args].concat()));
        let value: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        value["layers"][1]["kernel"].as_str().unwrap().to_owned()
    };
    let mut profile = lacuna_targets::Profile::detect();
    profile.measure(Duration::from_millis(10), 1).unwrap();
    let usual = kernel(&profile);
    assert!(!usual.contains("dense"), "{usual}");
    // A machine on which loads cost as much as a hundred products.
    profile.costs = [("load".into(), 100.0), ("far_load".into(), 100.0)].into();
    let other = kernel(&profile);
    assert!(other.contains("dense"), "{other}");
    profile.costs = [("lode".into(), 100.0)].into();
    profile.save(&device).unwrap();
    let output = bench(&[
        path.to_str().unwrap(),
        "--profile",
        device.to_str().unwrap(),
    ]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("profile `") && error.contains("`lode`"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let path = path.to_str().unwrap();
    for (args, part) in [
        (&["absent.onnx"][..], "absent.onnx"),
        (&[path, "--isa", "abacus"], "abacus"),
        (&[path, "--profile", "absent.toml"], "absent.toml"),
        (&[path, "--min-time-ms", "NaN"], "NaN"),
        (&[path, "--csv", "a", "--no-layers"], "--no-layers"),
        (&[], "MODEL"),
    ] {
        let output = bench(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(error.contains(part), "{args:?}: {error}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_language_model_has_its_prefill_and_decode_measured_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decoder.safetensors");
    let model = lacuna_tests::language::decoder();
    lacuna_tests::language::sparse(&model).save(&path).unwrap();
    let Measured::Decoder(report) = lacuna_bench::run(&config(path.clone()), |_| {}).unwrap()
    else {
        panic!("a decoder generates text");
    };
    assert_eq!(report.sparse_weights, 14);
    // A model that fits the caches is decoded once, and then not executed from the file as well.
    assert!(report.packed_bytes > 0);
    assert!(report.prefill_tps() > 0.0 && report.decode_tps() > 0.0);
    let beside = report.beside.as_ref().unwrap();
    assert!(beside.decode_speedup > 0.0 && beside.prefill_speedup > 0.0);
    for layers in &report.layers {
        let down = layers.iter().find(|l| l.node == "layers.0.down_proj");
        let down = down.unwrap();
        assert!(down.dense_ms.is_some());
        let shares: f64 = layers.iter().map(|l| l.share).sum();
        assert!((shares - 1.0).abs() < 1e-9);
    }

    let path = path.to_str().unwrap();
    let args = ["--prompt", "8", "--generate", "4", "--min-time-ms", "10"];
    let out = bench(&[&[path, "--json"][..], &args].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let last: Map<String, Value> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    for key in ["prefill_tps", "decode_tps", "median_ms", "token_bytes"] {
        assert!(last[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let out = bench(&[&[path][..], &args].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("layers.*.gate_proj") && text.contains("prefill, one chunk"),
        "{text}"
    );
    let out = bench(&[path, "--prompt", "1"]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(
        !out.status.success() && error.contains("1 prompt tokens"),
        "{error}"
    );
}

#[test]
fn an_audit_times_every_form_and_what_it_found_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let table = folder.path().join("tuned.json");
    let (model, table) = (path.to_str().unwrap(), table.to_str().unwrap());
    let common = [model, "--threads", "1", "--min-time-ms", "20"];
    let output = bench(&[&common[..], &["--tune", table, "--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let layers = value["audit"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    let forms = layers[1]["forms"].as_array().unwrap();
    let is_sparse = |f: &&Value| {
        let form = f["form"].as_str().unwrap();
        form.starts_with("stream") || form.starts_with("pair")
    };
    let sparse = forms.iter().filter(is_sparse);
    assert!(
        sparse.count() >= 2 && forms.iter().any(|f| f["form"] == "dense-panel"),
        "{text}"
    );
    assert!(
        forms.iter().all(|f| f["ms"].as_f64().unwrap() > 0.0),
        "{text}"
    );
    assert!(value["audit"]["whole"][0]["dense_ms"].as_f64().unwrap() > 0.0);

    let output = bench(&[&common[..], &["--tuned", table]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines()
            .any(|l| l.starts_with("second") && l.contains("measured")),
        "{text}"
    );
    // The audit of a small model on a busy machine may find anything; it ends with 0 or 2.
    let output = bench(&[&common[..], &["--audit"]].concat());
    assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("whole run")
    );

    std::fs::write(table, "{}").unwrap();
    for flag in ["--tune", "--tuned"] {
        let output = bench(&[&common[..], &[flag, table]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("tuned.json"),
            "{output:?}"
        );
    }
}

#[test]
fn packed_weights_are_found_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let packs = folder.path().join("packs");
    let args = [
        path.to_str().unwrap(),
        "--json",
        "--min-time-ms",
        "5",
        "--pack-cache",
    ];
    for (found, kept) in [(0, 2), (2, 0)] {
        let output = bench(&[&args[..], &[packs.to_str().unwrap()]].concat());
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&value["packs_found"], &value["packs_kept"]),
            (&found.into(), &kept.into())
        );
    }
}

#[test]
fn completions_and_manual_know_the_flags() {
    let bench = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna-bench"));
        let output = command.args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.success(),
            text(output.stdout) + &text(output.stderr),
        )
    };
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (ok, text) = bench(&["completions", shell]);
        for word in ["min-time-ms", "round-inputs", "completions"] {
            assert!(ok && text.contains(word), "{shell}: {word}");
        }
    }
    let (ok, page) = bench(&["man"]);
    assert!(
        ok && page.contains(".TH lacuna-bench 1") && page.contains("min\\-time\\-ms"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("pages");
    let (ok, text) = bench(&["man", "-o", pages.to_str().unwrap()]);
    assert!(ok && pages.join("lacuna-bench.1").exists(), "{text}");
    let (ok, text) = bench(&["completions", "tcsh"]);
    assert!(
        !ok && text.contains("tcsh") && text.contains("bash"),
        "{text}"
    );
    // Without a verb a model is still needed.
    let (ok, text) = bench(&["--json"]);
    assert!(!ok && text.contains("MODEL"), "{text}");
}

#[test]
fn a_table_has_every_layer_at_widths_up_to_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let config = Config {
        min_time: Duration::from_millis(1),
        threads: 1,
        ..config(path)
    };
    let table = lacuna_bench::table(&config, |_| {}).unwrap();
    let weights: Vec<&str> = table.layers.iter().map(|l| l.weight.as_str()).collect();
    assert_eq!(weights, ["first.weight", "second.weight"]);
    let second = &table.layers[1];
    assert_eq!(second.first, [6, 12, 18, 24, 36, 48]);
    assert_eq!(second.second, [4, 8, 12, 16, 24, 32]);
    assert_eq!(table.layers[0].second, [1, 2, 3]);
    for layer in &table.layers {
        assert_eq!(layer.ms.len(), layer.first.len());
        let all = layer.ms.iter().flatten();
        assert!(all.clone().all(|ms| *ms > 0.0 && ms.is_finite()));
        assert_eq!(all.count(), layer.first.len() * layer.second.len());
    }
}

#[test]
fn the_table_of_a_decoder_has_tokens_prompts_and_attentions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decoder.safetensors");
    let model = lacuna_tests::language::decoder();
    model.save(&path).unwrap();
    let config = Config {
        min_time: Duration::from_millis(1),
        threads: 1,
        prompt: 6,
        generate: 3,
        depth: 4,
        ..config(path)
    };
    let table = lacuna_bench::table(&config, |_| {}).unwrap();
    assert_eq!((table.prompt, table.depth), (Some(6), Some(4)));
    assert!(table.whole_ms.unwrap().iter().all(|ms| *ms > 0.0));
    // Every linear layer of the blocks, not the output layer.
    let names = |n: &(&str, &Node)| (n.0 != "embed.weight").then(|| n.0.to_owned());
    let wanted: Vec<String> = model.prunable().iter().filter_map(names).collect();
    let found: Vec<String> = table.layers.iter().map(|l| l.weight.clone()).collect();
    assert_eq!(found, wanted);
    assert_eq!(table.attentions.len(), 2);
    // Six query heads on two key heads, and three on three.
    assert_eq!(
        (
            &table.attentions[0].keys[..],
            &table.attentions[0].queries[..]
        ),
        (&[1, 2][..], &[1, 2, 3][..])
    );
    assert_eq!(
        (
            &table.attentions[1].keys[..],
            &table.attentions[1].queries[..]
        ),
        (&[1, 2, 3][..], &[1][..])
    );
    for layer in &table.layers {
        let shape = model.weights()[&layer.weight].shape();
        assert_eq!(
            [layer.first.last(), layer.second.last()],
            [Some(&shape[0]), Some(&shape[1])]
        );
        for ms in [&layer.ms, &layer.prompt_ms] {
            assert_eq!(ms.len(), layer.first.len());
            assert!(ms.iter().all(|row| row.len() == layer.second.len()));
            assert!(ms.iter().flatten().all(|ms| *ms > 0.0 && ms.is_finite()));
        }
    }
    for one in &table.attentions {
        for ms in [&one.ms, &one.prompt_ms] {
            assert_eq!((ms.len(), ms[0].len()), (one.keys.len(), one.queries.len()));
            assert!(ms.iter().flatten().all(|ms| *ms > 0.0));
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_missed_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let path = path.to_str().unwrap();
    for model in [path, "no-such-file.safetensors"] {
        let output = bench(&[model, "--device", "cuda:4321"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(text.contains("no CUDA device"), "{text}");
    }
    let output = bench(&[path, "--device", "gpu"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("expected cpu, cuda or cuda:N"), "{text}");
}
