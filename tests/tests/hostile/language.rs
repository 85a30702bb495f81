//! Language models that lie, through the whole chain: converter, file, tokenizer, decoder.

use lacuna::{Decoder, DecoderOptions, Model, Tokenizer};
use lacuna_convert::Options;
use std::fs;
use std::path::{Path, PathBuf};

/// A case: what it is, what is done to the model in a folder, and what the error must say.
type Case = (
    &'static str,
    fn(&Path) -> Result<(), String>,
    &'static [&'static str],
);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../converters/tests/fixtures/language")
}

/// A copy of the small GGUF, changed.
fn gguf(folder: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), String> {
    let mut bytes = fs::read(fixtures().join("llama.gguf")).unwrap();
    change(&mut bytes);
    let path = folder.join("model.gguf");
    fs::write(&path, bytes).unwrap();
    run(&path)
}

/// A copy of the small Hugging Face folder with one file changed.
fn folder(folder: &Path, file: &str, change: impl FnOnce(String) -> String) -> Result<(), String> {
    for entry in fs::read_dir(fixtures().join("llama")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join(file);
    let text = fs::read_to_string(&path).unwrap();
    let changed = change(text.clone());
    assert_ne!(text, changed, "{file} was not changed");
    fs::write(&path, changed).unwrap();
    run(folder)
}

fn opened(path: &Path) -> Result<Model, String> {
    lacuna_convert::open(path, &Options::default()).map_err(|e| e.to_string())
}

/// Opens, tokenises, and generates one token.
fn run(path: &Path) -> Result<(), String> {
    let model = opened(path)?;
    let ids = Tokenizer::new(&model)
        .and_then(|t| t.encode("a b", true))
        .map_err(|e| e.to_string())?;
    decode(&model, &ids)
}

fn decode(model: &Model, ids: &[u32]) -> Result<(), String> {
    let mut decoder = Decoder::new(model, DecoderOptions::default()).map_err(|e| e.to_string())?;
    decoder.prefill(ids).map(drop).map_err(|e| e.to_string())
}

const CASES: &[Case] = &[
    (
        "a GGUF cut in its header",
        |f| gguf(f, |b| b.truncate(100)),
        &["model.gguf"],
    ),
    (
        "a GGUF cut in its data",
        |f| gguf(f, |b| b.truncate(b.len() - 64)),
        &["model.gguf", "tensor `"],
    ),
    (
        "a GGUF of another version",
        |f| gguf(f, |b| b[4] = 99),
        &["model.gguf", "version 99"],
    ),
    (
        "a GGUF that counts more tensors than a disk holds",
        |f| gguf(f, |b| b[8..16].fill(0x7f)),
        &["model.gguf", "9187201950435737471"],
    ),
    (
        "a config.json that is no JSON",
        |f| folder(f, "config.json", |_| "{".into()),
        &["config.json"],
    ),
    (
        "a config.json of heads that the weights do not have",
        |f| {
            folder(f, "config.json", |t| {
                t.replace("\"head_dim\": 4", "\"head_dim\": 4000000000")
            })
        },
        &["config.json", "4000000000"],
    ),
    (
        "an index that leads out of the folder",
        |f| {
            folder(f, "model.safetensors.index.json", |t| {
                t.replace("model-00001-of-00003.safetensors", "../../etc/passwd")
            })
        },
        &["model.safetensors.index.json", "../../etc/passwd"],
    ),
    (
        "a tokenizer.json that is no tokenizer",
        |f| folder(f, "tokenizer.json", |_| "{\"model\": 7}".into()),
        &["tokenizer"],
    ),
    (
        "a token that the vocabulary does not have",
        |_| decode(&opened(&fixtures().join("llama.gguf"))?, &[0, 4_000_000]),
        &["`input_ids`", "token 1 is 4000000"],
    ),
    (
        "a text longer than the capacity",
        |_| decode(&opened(&fixtures().join("llama.gguf"))?, &[1; 100_000]),
        &["`input_ids`", "100000 tokens", "capacity"],
    ),
    (
        "a Lacuna file whose tokenizer is none",
        |f| {
            let mut model = opened(&fixtures().join("llama.gguf"))?;
            model.tokenizer = Some(b"nonsense".to_vec().into());
            let path = f.join("m.safetensors");
            model.save(&path).map_err(|e| e.to_string())?;
            run(&path)
        },
        &["the tokenizer is damaged"],
    ),
];

#[test]
fn every_hostile_language_model_is_refused_with_its_fault() {
    run(&fixtures().join("llama.gguf")).unwrap();
    run(&fixtures().join("llama")).unwrap();
    let mut wrong = Vec::new();
    for (name, attack, expected) in CASES {
        let dir = tempfile::tempdir().unwrap();
        match attack(dir.path()) {
            Ok(()) => wrong.push(format!("{name}: ran")),
            Err(said) => {
                let misses: Vec<_> = expected.iter().filter(|e| !said.contains(**e)).collect();
                if !misses.is_empty() || said.len() > 1000 {
                    wrong.push(format!("{name}: {said}\n    misses {misses:?}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "of {} cases:\n{}",
        CASES.len(),
        wrong.join("\n")
    );
}
