//! Directories of Hugging Face and language models of every format: what they become, what they
//! compute, and what is refused.

mod common;

use common::{fixture, test_data};
use lacuna::model::file::Tensors;
use lacuna::model::{Encoding, Op, Symbols};
use lacuna::{DType, Decoder, DecoderOptions, Model, Session, SessionOptions, TensorView};
use lacuna_convert::{Format, Options, export_hf, open};
use serde_json::{Value, json};
use std::path::Path;

fn language(name: &str) -> std::path::PathBuf {
    fixture("language").join(name)
}

fn longs(bytes: &[u8]) -> Vec<i64> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|c| i64::from_le_bytes(*c)).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|c| f32::from_le_bytes(*c)).collect()
}

/// The largest difference as a share of the largest expected value.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let pairs = got.iter().zip(expected);
    pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// Runs every input of a reference file through the model and compares every output of it.
fn check(model: &Model, reference: &Path) {
    let reference = Tensors::open(reference).unwrap();
    let tensor = |name: &str| reference.require(name).unwrap();
    let [n, t] = tensor("input_ids").shape[..] else {
        panic!("ids of one axis")
    };
    let mut session = Session::new(
        model,
        SessionOptions {
            symbols: Symbols::from([("N".into(), n), ("T".into(), t)]),
            ..SessionOptions::default()
        },
    )
    .unwrap();
    let data: Vec<Vec<i64>> = session
        .inputs()
        .iter()
        .map(|(name, _)| longs(&tensor(name).bytes))
        .collect();
    let shape = [n, t];
    let views = data.iter().map(|d| TensorView::i64(&shape, d));
    let inputs: Vec<TensorView<'_>> = views.collect();
    let outputs = session.run(&inputs).unwrap();
    for ((name, shape), output) in session.outputs().iter().zip(&outputs) {
        let expected = tensor(name);
        assert_eq!(shape, expected.shape, "{name}");
        let e = error(&output.data, &floats(&expected.bytes));
        assert!(e < 1e-5, "{name}: {e}");
    }
}

/// Saves, opens again and checks the copy too.
fn check_twice(model: &Model, reference: &Path) {
    check(model, reference);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    model.save(&path).unwrap();
    let back = Model::open(&path).unwrap();
    assert_eq!(back.text, model.text);
    assert_eq!(back.tokenizer.as_deref(), model.tokenizer.as_deref());
    check(&back, reference);
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for (name, reference) in [
        ("llama", "llama"),
        ("mistral", "mistral"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("bert", "bert"),
        ("bitmask-0.8.1", "bitmask"),
        ("bitmask-0.9.4", "bitmask"),
        ("llama.gguf", "gguf"),
    ] {
        println!("{name}");
        let model = open(language(name), &Options::default()).unwrap();
        check_twice(
            &model,
            &language(&format!("{reference}.expected.safetensors")),
        );
    }
}

#[test]
fn exported_folders_are_read_as_the_model_that_they_are_of() {
    let dir = tempfile::tempdir().unwrap();
    for (name, reference) in [
        ("mistral", "mistral"),
        ("bitmask-0.9.4", "bitmask"),
        ("llama", "llama"),
    ] {
        let model = open(language(name), &Options::default()).unwrap();
        let folder = dir.path().join(name);
        export_hf(&model, &folder).unwrap();
        let back = open(&folder, &Options::default()).unwrap();
        check(
            &back,
            &language(&format!("{reference}.expected.safetensors")),
        );
        for (name, weight) in model
            .weights()
            .iter()
            .filter(|w| !w.0.ends_with("inv_freq"))
        {
            assert_eq!(back.weights()[name].to_f32(), weight.to_f32(), "{name}");
            assert!(!back.weights()[name].is_sparse());
        }
        let (a, b) = (model.text.unwrap(), back.text.unwrap());
        assert_eq!((a.context, a.bos, &a.eos), (b.context, b.bos, &b.eos));
        assert_eq!(model.tokenizer.as_deref(), back.tokenizer.as_deref());
    }
}

/// Qwen2 has biases of queries, keys and values alone.
#[test]
fn biases_that_a_llama_has_and_the_model_has_not_are_exported_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    for file in std::fs::read_dir(language("qwen2")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), plain.join(file.file_name())).unwrap();
    }
    let read = |folder: &str| -> Value {
        let text = std::fs::read(dir.path().join(folder).join("config.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let mut config = read("plain");
    config.as_object_mut().unwrap().remove("rope_scaling");
    std::fs::write(plain.join("config.json"), config.to_string()).unwrap();
    let model = open(&plain, &Options::default()).unwrap();
    export_hf(&model, &dir.path().join("qwen2")).unwrap();
    let back = open(dir.path().join("qwen2"), &Options::default()).unwrap();
    let projections = model.weights().iter().filter(|w| w.0.contains("proj"));
    for (name, weight) in projections {
        assert_eq!(back.weights()[name].to_f32(), weight.to_f32(), "{name}");
    }
    let config = read("qwen2");
    assert_eq!(
        (&config["attention_bias"], &config["mlp_bias"]),
        (&json!(true), &json!(false))
    );
    let file = Tensors::open(dir.path().join("qwen2/model.safetensors")).unwrap();
    let bias = floats(
        &file
            .require("model.layers.0.self_attn.o_proj.bias")
            .unwrap()
            .bytes,
    );
    assert!(!bias.is_empty() && bias.iter().all(|b| *b == 0.0));
}

#[test]
fn what_is_no_llama_is_not_exported_as_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, word) in [
        ("qwen3", "k_norm"),
        ("qwen2", "rotary"),
        ("bert", "embed_tokens"),
    ] {
        let model = open(language(name), &Options::default()).unwrap();
        let e = export_hf(&model, &dir.path().join("out"))
            .unwrap_err()
            .to_string();
        assert!(e.contains(word), "{name}: {e}");
    }
    let mut cut = open(language("bitmask-0.9.4"), &Options::default()).unwrap();
    let name = cut
        .weights()
        .keys()
        .find(|n| n.contains("1.mlp.down_proj.weight"));
    let name = name.unwrap().clone();
    let shape = cut.weights()[&name].shape().to_vec();
    let mut weights = cut.weights().clone();
    for (name, shape) in [
        (name.clone(), [shape[0], shape[1] - 1]),
        (name.replace("down", "up"), [shape[1] - 1, shape[0]]),
        (name.replace("down", "gate"), [shape[1] - 1, shape[0]]),
    ] {
        let values = vec![0.5; shape[0] * shape[1]];
        weights.insert(name, lacuna::Weight::from_f32(&shape, &values));
    }
    cut = Model::new(cut.graph().clone(), weights).unwrap();
    let e = export_hf(&cut, &dir.path().join("out"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("layers.1.mlp") && e.contains("--masked"), "{e}");
}

/// Token by token, keys and values kept.
#[test]
fn a_decoder_computes_what_a_whole_sequence_computes() {
    let model = open(language("llama.gguf"), &Options::default()).unwrap();
    let reference = Tensors::open(language("gguf.expected.safetensors")).unwrap();
    let ids = longs(&reference.require("input_ids").unwrap().bytes);
    let logits = floats(&reference.require("logits").unwrap().bytes);
    // Some of its weights are bfloat16, and so would their inputs be.
    let options = DecoderOptions {
        round_inputs: Some(false),
        ..DecoderOptions::default()
    };
    let mut decoder = Decoder::new(&model, options).unwrap();
    assert_eq!(decoder.capacity(), 128);
    for (id, expected) in ids.iter().zip(logits.chunks(logits.len() / ids.len())) {
        let e = error(decoder.step(*id as u32).unwrap(), expected);
        assert!(e < 1e-5, "{e}");
    }
}

/// Against `tests/compare/llm_logits.py` on 256 tokens of a novel.
#[test]
fn the_real_decoder_computes_what_numpy_computes() {
    let (Some(path), Some(reference)) = (
        test_data("SmolLM2-135M-Instruct.Q4_1.gguf"),
        test_data("smollm2.f64.safetensors"),
    ) else {
        return;
    };
    let model = open(path, &Options::default()).unwrap();
    let reference = Tensors::open(reference).unwrap();
    let ids = longs(&reference.require("input_ids").unwrap().bytes);
    let logits = floats(&reference.require("logits").unwrap().bytes);
    let width = logits.len() / ids.len();
    let options = DecoderOptions {
        all_logits: true,
        round_inputs: Some(false),
        ..DecoderOptions::default()
    };
    let mut decoder = Decoder::new(&model, options).unwrap();
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let mut got = Vec::new();
    decoder
        .score(&ids, |_, l| got.extend_from_slice(l))
        .unwrap();
    let best = |l: &[f32]| (0..l.len()).max_by(|&a, &b| l[a].total_cmp(&l[b]));
    let rows = got.chunks(width).zip(logits.chunks(width));
    let same = rows.filter(|(a, b)| best(a) == best(b)).count();
    let e = error(&got, &logits);
    println!("error {e}, argmax agrees on {same} of {}", ids.len());
    assert!(e < 1e-4, "{e}");
    assert_eq!(same, ids.len());
}

#[test]
fn the_real_encoder_computes_what_sentence_transformers_computes() {
    let (Some(folder), Some(reference)) = (
        test_data("all-MiniLM-L6-v2"),
        test_data("minilm.f64.safetensors"),
    ) else {
        return;
    };
    check(&open(folder, &Options::default()).unwrap(), &reference);
}

#[test]
fn weights_stay_in_their_files() {
    for name in ["llama", "mistral", "bert", "bitmask-0.9.4"] {
        let model = open(language(name), &Options::default()).unwrap();
        for (weight, w) in model.weights() {
            let mapped = match w.encoding() {
                Encoding::Dense(data) => data.is_mapped(),
                Encoding::Bitmask(b) => b.values.is_mapped() && b.mask.is_mapped(),
            };
            assert!(mapped || weight.ends_with("inv_freq"), "{name}: {weight}");
        }
        assert_eq!(model.tokenizer.is_some(), name != "bitmask-0.9.4");
    }
}

#[test]
fn bitmask_weights_stay_sparse_where_products_read_them() {
    for name in ["bitmask-0.8.1", "bitmask-0.9.4"] {
        let model = open(language(name), &Options::default()).unwrap();
        let sparse: Vec<&str> = model
            .weights()
            .iter()
            .filter(|(_, w)| w.is_sparse())
            .map(|(n, _)| n.as_str())
            .collect();
        assert_eq!(sparse.len(), 14, "{name}: {sparse:?}");
        assert!(sparse.iter().all(|n| n.ends_with("_proj.weight")));
    }
}

#[test]
fn facts_about_text_come_from_every_file_that_has_them() {
    let text = |name: &str| {
        let model = open(language(name), &Options::default()).unwrap();
        model.text.unwrap()
    };
    let llama = text("llama");
    assert_eq!(
        (llama.context, llama.bos, llama.add_bos),
        (64, Some(1), true)
    );
    assert_eq!(llama.eos, [2, 3]);
    assert_eq!(llama.chat_template.as_deref(), Some("{{ new }}\n"));
    let mistral = text("mistral");
    // The window, and `add_bos_token` against what the tokenizer would do.
    assert_eq!((mistral.context, mistral.add_bos), (16, false));
    assert_eq!(mistral.chat_template.as_deref(), Some("{{ plain }}"));
    assert_eq!(text("qwen3").context, 64);
    let bert = text("bert");
    assert_eq!((bert.context, bert.bos, bert.eos.len()), (32, None, 0));
}

#[test]
fn a_folder_is_told_by_its_config() {
    assert_eq!(
        Format::of_file(&language("llama")).unwrap(),
        Format::HuggingFace
    );
    let error = open(fixture("language"), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn a_bare_encoder_needs_its_number_of_heads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(language("bert/model.safetensors"), &path).unwrap();
    let error = open(&path, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("number of heads"), "{error}");
    let options = Options {
        heads: Some(4),
        sentence: true,
        ..Options::default()
    };
    let model = open(&path, &options).unwrap();
    check(&model, &language("bert.expected.safetensors"));
    // With its configuration beside it, a file is what its directory is.
    let beside = open(language("bert/model.safetensors"), &Options::default()).unwrap();
    check(&beside, &language("bert.expected.safetensors"));
}

#[test]
fn a_bare_decoder_needs_its_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::copy(language("mistral/model.safetensors"), &path).unwrap();
    let error = open(&path, &Options::default()).unwrap_err().to_string();
    assert!(error.contains("put its config.json beside it"), "{error}");
}

/// Copies a fixture and lets `change` spoil it.
fn spoiled(name: &str, change: impl Fn(&Path)) -> Result<Model, String> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(name);
    copy(&language(name), &folder);
    change(&folder);
    let opened = open(&folder, &Options::default()).map_err(|e| e.to_string());
    if let Err(e) = &opened {
        assert!(e.contains(folder.to_str().unwrap()), "no path: {e}");
        assert!(e.len() < 1500, "{e}");
    }
    opened
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(path, to.join(name)).unwrap();
        }
    }
}

/// Sets a key of a JSON file.
fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// A key of `config.json`, what is put there, and what the error must say.
#[rustfmt::skip]
fn configs() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    vec![
        ("llama", "model_type", json!("gemma"), "supported: llama, mistral, qwen2, qwen3, bert"),
        ("llama", "model_type", json!(null), "`model_type` is missing"),
        ("llama", "model_type", json!(7), "`model_type` is 7, expected text"),
        ("llama", "hidden_size", json!("16"), "`hidden_size` is \"16\", expected a whole number"),
        ("llama", "hidden_size", json!(-16), "`hidden_size` is -16"),
        ("llama", "hidden_size", json!(1e30), "`hidden_size` is 1e+30"),
        ("llama", "hidden_size", json!(null), "`hidden_size` is missing"),
        ("llama", "num_hidden_layers", json!(3), "3 layers, of which 2"),
        ("llama", "num_hidden_layers", json!(u64::MAX), "layers, of which 2"),
        ("llama", "num_attention_heads", json!(0), "0 heads"),
        ("qwen2", "num_attention_heads", json!(u64::MAX), "heads of 32 elements"),
        ("llama", "head_dim", json!(0), "0 rotated elements"),
        ("llama", "head_dim", json!(3), "3 rotated elements"),
        ("llama", "head_dim", json!(1u64 << 60), "1152921504606846976 rotated"),
        ("llama", "head_dim", json!(12), "no heads of 12"),
        ("llama", "rms_norm_eps", json!("x"), "`rms_norm_eps` is \"x\""),
        ("llama", "rms_norm_eps", json!(-1), "`rms_norm_eps` is -1"),
        ("llama", "rope_theta", json!(0), "base of 0"),
        ("llama", "rope_scaling", json!([]), "`rope_scaling` is [], expected an object"),
        ("llama", "rope_scaling", json!({"rope_type": "longrope"}), "`longrope`; supported"),
        ("llama", "rope_scaling", json!({"rope_type": "linear"}), "`rope_scaling.factor` is missing"),
        ("llama", "rope_scaling", json!({"type": "linear", "factor": -2}), "factor of -2"),
        ("llama", "hidden_act", json!("mish"), "activation `mish`; supported: silu"),
        ("llama", "tie_word_embeddings", json!(1), "`tie_word_embeddings` is 1"),
        ("llama", "tie_word_embeddings", json!(false), "missing tensors: lm_head.weight"),
        ("llama", "max_position_embeddings", json!(null), "`max_position_embeddings` is missing"),
        ("llama", "partial_rotary_factor", json!(2), "`partial_rotary_factor` is 2"),
        ("llama", "quantization_config", json!({"quant_method": "gptq"}), "quantised by `gptq`"),
        ("llama", "quantization_config",
            json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}),
            "quantised weights of compressed-tensors"),
        ("llama", "quantization_config", json!({"sparsity_config": {"format": "sparse-48-bitmask"}}),
            "`sparse-48-bitmask`; supported: dense, sparse-bitmask, sparse-24-bitmask"),
        ("llama", "eos_token_id", json!("x"), ""),
        ("mistral", "eos_token_id", json!("x"), ""),
        ("mistral", "layer_types", json!(["full_attention", "sliding_attention"]), "in some layers only"),
        ("mistral", "layer_types", json!(["mamba"]), "`layer_types` has mamba"),
        ("mistral", "model_type", json!("qwen3"), "missing tensors: model.layers.0.self_attn.q_norm"),
        ("qwen3", "use_sliding_window", json!(true), ""),
        ("bert", "position_embedding_type", json!("relative_key"), "`relative_key`; supported: absolute"),
        ("bert", "num_attention_heads", json!(5), "5 heads of 16"),
        ("bert", "is_decoder", json!(true), "`is_decoder`"),
        ("bert", "num_hidden_layers", json!(1), "1 layers, of which 2"),
    ]
}

#[test]
fn bad_configs_are_refused_with_their_fault() {
    let mut wrong = Vec::new();
    for (name, key, value, expected) in configs() {
        let opened = spoiled(name, |f| set(f, "config.json", key, value.clone()));
        match opened {
            // What another file says, or what is not used, is not looked at.
            Ok(_) if expected.is_empty() => {}
            Ok(_) => wrong.push(format!("{name}, {key} = {value}: opened")),
            Err(e) if e.contains(expected) && !expected.is_empty() => {}
            Err(e) => wrong.push(format!("{name}, {key} = {value}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn layers_that_slide_apart_are_refused() {
    let with = |first: usize| {
        spoiled("qwen3", |f| {
            set(f, "config.json", "use_sliding_window", json!(true));
            set(f, "config.json", "max_window_layers", json!(first));
        })
    };
    assert!(with(1).unwrap_err().contains("in some layers only"));
    assert_eq!(with(0).unwrap().text.unwrap().context, 8);
    assert_eq!(with(2).unwrap().text.unwrap().context, 64);
}

type Spoil = fn(&Path);

/// Changes to whole files, and what the error must say.
#[rustfmt::skip]
const FILES: &[(&str, &str, Spoil, &[&str])] = &[
    ("no JSON", "llama", |f| put(f, "config.json", "{"), &["config.json", "not JSON"]),
    ("a list", "llama", |f| put(f, "config.json", "[1]"), &["config.json", "expected an object"]),
    ("nested without end", "llama", |f| put(f, "config.json", &"[".repeat(1 << 16)), &["not JSON"]),
    ("no weights", "mistral", |f| remove(f, "model.safetensors"), &["no weights", "model.safetensors.index.json"]),
    ("a cut file", "mistral", |f| cut(f, "model.safetensors"), &["model.safetensors", "truncated"]),
    ("a missing shard", "llama", |f| remove(f, "model-00002-of-00003.safetensors"),
        &["model-00002-of-00003.safetensors", "cannot open"]),
    ("an index that is none", "llama", |f| put(f, "model.safetensors.index.json", "{}"),
        &["model.safetensors.index.json", "`weight_map` is missing"]),
    ("a map of lists", "llama", |f| map(f, json!({"model.norm.weight": []})),
        &["`weight_map.model.norm.weight` is [], expected text"]),
    ("a shard above", "llama", |f| map(f, json!({"model.norm.weight": "../model.safetensors"})),
        &["`../model.safetensors`, which is no file name"]),
    ("a shard far away", "llama", |f| map(f, json!({"model.norm.weight": "/etc/passwd"})),
        &["`/etc/passwd`, which is no file name"]),
    ("a shard in a folder", "llama", |f| map(f, json!({"model.norm.weight": "a/b.safetensors"})),
        &["`a/b.safetensors`, which is no file name"]),
    ("a shard by another separator", "llama", |f| map(f, json!({"model.norm.weight": "..\\b"})),
        &["which is no file name"]),
    ("a shard without a name", "llama", |f| map(f, json!({"model.norm.weight": ""})),
        &["which is no file name"]),
    ("the folder itself", "llama", |f| map(f, json!({"model.norm.weight": ".."})),
        &["which is no file name"]),
    ("a tensor in no shard", "llama", |f| map(f, json!({
            "model.norm.weight": "model-00003-of-00003.safetensors",
            "absent": "model-00003-of-00003.safetensors"})),
        &["`absent` into `model-00003-of-00003.safetensors`, which does not have it"]),
    ("too few shards", "llama", |f| map(f, json!({"model.norm.weight": "model-00003-of-00003.safetensors"})),
        &["2 layers, of which 0"]),
    ("the same shard twice", "llama", |f| {
            std::fs::copy(f.join("model-00003-of-00003.safetensors"), f.join("again.safetensors")).unwrap();
            map(f, json!({"a": "again.safetensors", "b": "model-00003-of-00003.safetensors"}));
        }, &["stands in another shard too"]),
    ("a tokenizer that is no JSON", "llama", |f| put(f, "tokenizer.json", "{\"model\""), &["tokenizer.json", "no tokenizer"]),
    ("a tokenizer without a model", "llama", |f| put(f, "tokenizer.json", "{}"), &["tokenizer.json", "`model`"]),
    ("a tokenizer of another type", "llama", |f| put(f, "tokenizer.json", "{\"model\": 3}"), &["tokenizer.json"]),
    ("a tokenizer with text for ids", "llama", |f| put(f, "tokenizer.json",
        "{\"model\": {}, \"added_tokens\": [{\"id\": \"1\", \"content\": \"a\"}]}"), &["tokenizer.json"]),
    ("settings that are none", "llama", |f| put(f, "tokenizer_config.json", "3"), &["tokenizer_config.json"]),
    ("a template that is none", "mistral", |f| set(f, "tokenizer_config.json", "chat_template", json!(3)),
        &["tokenizer_config.json", "`chat_template` is 3"]),
    ("an end token that is none", "llama", |f| set(f, "generation_config.json", "eos_token_id", json!([-1])),
        &["generation_config.json", "`eos_token_id` is [-1]"]),
    ("modules that are none", "bert", |f| put(f, "modules.json", "{}"), &["modules.json", "list of modules"]),
    ("a module of another kind", "bert", |f| put(f, "modules.json", r#"[{"type": "a.Transformer"}, {"type": "a.Dense"}]"#),
        &["modules.json", "Transformer, Dense; supported"]),
    ("a pooling far away", "bert", |f| put(f, "modules.json",
        r#"[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../1_Pooling"}]"#), &["`../1_Pooling`"]),
    ("another pooling", "bert", |f| set(&f.join("1_Pooling"), "config.json", "pooling_mode_cls_token", json!(true)),
        &["`pooling_mode_cls_token`", "mean pooling is supported"]),
    ("no mean", "bert", |f| set(&f.join("1_Pooling"), "config.json", "pooling_mode_mean_tokens", json!(false)),
        &["`pooling_mode_mean_tokens`"]),
    ("no pooling", "bert", |f| remove(f, "1_Pooling/config.json"), &["1_Pooling/config.json"]),
];

fn put(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).unwrap();
}

fn remove(folder: &Path, file: &str) {
    std::fs::remove_file(folder.join(file)).unwrap();
}

fn cut(folder: &Path, file: &str) {
    let bytes = std::fs::read(folder.join(file)).unwrap();
    std::fs::write(folder.join(file), &bytes[..bytes.len() / 2]).unwrap();
}

fn map(folder: &Path, map: Value) {
    put(
        folder,
        "model.safetensors.index.json",
        &json!({ "weight_map": map }).to_string(),
    );
}

#[test]
fn bad_files_are_refused_with_their_fault() {
    let mut wrong = Vec::new();
    for (what, name, spoil, expected) in FILES {
        match spoiled(name, spoil) {
            Ok(_) => wrong.push(format!("{what}: opened")),
            Err(said) => {
                let misses: Vec<_> = expected.iter().filter(|e| !said.contains(**e)).collect();
                if !misses.is_empty() {
                    wrong.push(format!("{what}: {said}\n    misses {misses:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// JSON cut anywhere is refused by the name of its file.
#[test]
fn files_cut_anywhere_are_refused() {
    for (name, file) in [
        ("llama", "config.json"),
        ("llama", "model.safetensors.index.json"),
        ("llama", "tokenizer_config.json"),
        ("llama", "tokenizer.json"),
        ("bert", "modules.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(name);
        copy(&language(name), &folder);
        let whole = std::fs::read(folder.join(file)).unwrap();
        let end = whole
            .iter()
            .rposition(|b| !b.is_ascii_whitespace())
            .unwrap();
        for at in 0..end {
            // A new file: some file systems sync one that is cut to nothing and written again.
            remove(&folder, file);
            std::fs::write(folder.join(file), &whole[..at]).unwrap();
            let said = open(&folder, &Options::default()).map(|_| at).unwrap_err();
            assert!(
                said.to_string().contains(file),
                "{file} cut at {at}: {said}"
            );
        }
    }
}

/// A Mistral that says nothing of a window has one; `null` is none.
#[test]
fn a_mistral_slides_unless_it_says_otherwise() {
    let context = |change: &dyn Fn(&Path)| {
        let model = spoiled("mistral", |f| {
            set(f, "config.json", "max_position_embeddings", json!(9000));
            change(f);
        });
        model.unwrap().text.unwrap().context
    };
    assert_eq!(context(&|_| ()), 16);
    assert_eq!(
        context(&|f| set(f, "config.json", "sliding_window", Value::Null)),
        9000
    );
    let without = |f: &Path| {
        let path = f.join("config.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json.as_object_mut().unwrap().remove("sliding_window");
        std::fs::write(path, json.to_string()).unwrap();
    };
    assert_eq!(context(&without), 4096);
}

/// Names of a BERT with heads, and of before scales were called weights.
#[test]
fn older_names_of_an_encoder_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensors = Tensors::open(language("bert/model.safetensors")).unwrap();
    let mut weights = lacuna::model::Weights::new();
    for name in tensors.names() {
        let mut old = format!("bert.{name}");
        if let Some((module, part)) = name.rsplit_once('.')
            && module.ends_with("LayerNorm")
        {
            let part = if part == "weight" { "gamma" } else { "beta" };
            old = format!("bert.{module}.{part}");
        }
        weights.insert(old, tensors.weight(name).unwrap());
    }
    lacuna::model::file::write_weights(&weights, &path).unwrap();
    std::fs::copy(language("bert/config.json"), dir.path().join("config.json")).unwrap();
    let options = Options {
        sentence: true,
        ..Options::default()
    };
    let model = open(dir.path(), &options).unwrap();
    check(&model, &language("bert.expected.safetensors"));
}

/// A decoder pruned to other heads and widths in one layer loads as it is.
#[test]
fn a_decoder_pruned_by_layer_takes_its_widths_from_its_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = Tensors::open(language("mistral/model.safetensors")).unwrap();
    let mut weights = lacuna::model::Weights::new();
    for name in tensors.names() {
        let weight = tensors.weight(name).unwrap();
        let shape = weight.shape().to_vec();
        let values = weight.to_f32().unwrap();
        let keep = |rows: usize, columns: usize| {
            let kept = values.chunks(shape[1]).take(rows);
            let kept: Vec<f32> = kept.flat_map(|r| r[..columns].to_vec()).collect();
            lacuna::Weight::from_f32(&[rows, columns], &kept)
        };
        let part = name.strip_prefix("model.layers.1.").unwrap_or_default();
        let pruned = match part {
            "self_attn.q_proj.weight" => keep(12, 16),
            "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => keep(6, 16),
            "self_attn.o_proj.weight" => keep(16, 12),
            "mlp.gate_proj.weight" | "mlp.up_proj.weight" => keep(10, 16),
            "mlp.down_proj.weight" => keep(16, 10),
            _ => weight,
        };
        weights.insert(name.to_owned(), pruned);
    }
    lacuna::model::file::write_weights(&weights, &dir.path().join("model.safetensors")).unwrap();
    std::fs::copy(
        language("mistral/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let model = open(dir.path(), &Options::default()).unwrap();
    let heads: Vec<[usize; 2]> = model
        .graph()
        .nodes
        .iter()
        .filter_map(|n| match n.op {
            Op::Attention {
                heads, kv_heads, ..
            } => Some([heads, kv_heads]),
            _ => None,
        })
        .collect();
    assert_eq!(heads, [[4, 2], [2, 1]]);
    let mut decoder = Decoder::new(&model, DecoderOptions::default()).unwrap();
    assert_eq!(decoder.step(3).unwrap().len(), 40);
    assert_eq!(model.weights()["lm_head.weight"].dtype(), DType::BF16);
}

#[test]
fn the_files_of_a_model_open_anywhere() {
    for name in ["llama", "bert", "bitmask-0.9.4", "llama.gguf"] {
        let from = language(name);
        let model = open(&from, &Options::default()).unwrap();
        let moved = tempfile::tempdir().unwrap();
        for file in lacuna_convert::files(&from).unwrap() {
            let inside = file.strip_prefix(from.parent().unwrap()).unwrap();
            let to = moved.path().join(inside);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&file, to).unwrap();
        }
        let there = open(moved.path().join(name), &Options::default()).unwrap();
        assert_eq!(there.metadata.source, model.metadata.source);
        assert_eq!(there.text, model.text);
        assert_eq!(there.tokenizer.as_deref(), model.tokenizer.as_deref());
        assert_eq!(there.weights().len(), model.weights().len());
        assert_eq!(there.graph(), model.graph(), "{name}");
    }
    let absent = lacuna_convert::files("absent").unwrap_err().to_string();
    assert!(absent.contains("absent"), "{absent}");
}
