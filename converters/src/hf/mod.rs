//! Directories of Hugging Face: a `config.json`, weights, and a tokenizer. Weights stay in their
//! files, mapped.

mod config;
mod decoder;
mod encoder;
mod export;
mod text;
mod weights;

pub use export::export_hf;

use crate::source::{Source, shown};
use crate::{Error, Options, Result};
use config::Object;
use lacuna::Model;
use lacuna::model::Weights;
use std::path::{Path, PathBuf};

/// What makes a folder a directory of Hugging Face.
pub(crate) const CONFIG: &str = "config.json";

/// What is read beside the weights, where it is there.
const BESIDE: [&str; 7] = [
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
];

/// The files of a directory that hold its weights.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    weights::files(folder)
}

/// The files that describe a directory's model and its text; none where it has no `config.json`.
pub(crate) fn beside(folder: &Path) -> Vec<PathBuf> {
    if !folder.join(CONFIG).is_file() {
        return Vec::new();
    }
    let mut files: Vec<PathBuf> = BESIDE.iter().map(|name| folder.join(name)).collect();
    // Modules lie in folders of their own.
    if folder.join("modules.json").is_file() {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.extend(entries.map(|e| e.path().join(CONFIG)));
    }
    files.retain(|f| f.is_file());
    files
}

/// Reads a directory.
pub(crate) fn read(folder: &Path, options: &Options) -> Result<Model> {
    let config = Object::require(&folder.join(CONFIG))?;
    let kind = model_type(folder, &config)?;
    check_compression(&config)?;
    let loaded = weights::load(folder)?;
    let mut model = build(folder, &config, &kind, loaded.weights, options)?;
    model.metadata.source = Some(loaded.digest);
    Ok(model)
}

/// Whether a state dict is one of a model that is read from directories.
pub(crate) fn detect(tensors: &Weights) -> bool {
    const EMBEDDINGS: [&str; 2] = ["model.embed_tokens.weight", "embed_tokens.weight"];
    encoder::detect(tensors) || EMBEDDINGS.iter().any(|e| tensors.contains_key(*e))
}

/// Reads a state dict that lies outside a directory, or apart from the others of its directory. A
/// `config.json` beside it says what its tensors leave open.
pub(crate) fn read_state_dict(
    source: &Source,
    tensors: Weights,
    options: &Options,
) -> Result<Model> {
    let folder = match source.path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (config, kind) = match Object::read(&folder.join(CONFIG))? {
        Some(config) => {
            let kind = model_type(folder, &config)?;
            (config, kind)
        }
        None if encoder::detect(&tensors) && options.heads.is_some() => {
            (Object::empty(&source.path), "bert".to_owned())
        }
        None => {
            return Err(source.error(format!(
                "the tensors of a language model, which leave its heads open: put its {CONFIG} \
                 beside it{}",
                if encoder::detect(&tensors) {
                    ", or give the number of heads"
                } else {
                    ""
                }
            )));
        }
    };
    check_compression(&config)?;
    let mut model = build(folder, &config, &kind, tensors, options)?;
    model.metadata.source = Some(source.sha256());
    Ok(model)
}

/// The `model_type`, when it is one that is read.
fn model_type(folder: &Path, config: &Object) -> Result<String> {
    let kind = config.text("model_type")?;
    let kind = config.need("model_type", kind)?;
    if kind == "bert" || decoder::TYPES.contains(&kind.as_str()) {
        return Ok(kind);
    }
    Err(Error::Arch {
        path: folder.to_path_buf(),
        arch: shown(&kind),
        what: format!(
            "not read from a directory; supported: {}, bert",
            decoder::TYPES.join(", ")
        ),
    })
}

/// Refuses weights that are quantised, or sparse in a way that is not read.
fn check_compression(config: &Object) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        let Some(compression) = config.object(key)? else {
            continue;
        };
        let method = compression.text("quant_method")?;
        if let Some(method) = &method
            && method != "compressed-tensors"
        {
            return Err(config.error(format!(
                "weights quantised by `{}`, which are not read",
                shown(method)
            )));
        }
        let groups = compression.object("config_groups")?;
        if groups.is_some_and(|g| g.keys().next().is_some()) {
            return Err(config.error(format!(
                "`{key}.config_groups`: quantised weights of compressed-tensors are not read; \
                 dense, sparse-bitmask and sparse-24-bitmask ones are"
            )));
        }
        let Some(sparsity) = compression.object("sparsity_config")? else {
            continue;
        };
        let format = sparsity.text("format")?;
        if let Some(format) = format
            && !["dense", "sparse-bitmask", "sparse-24-bitmask"].contains(&format.as_str())
        {
            return Err(config.error(format!(
                "sparse weights in the format `{}`; supported: dense, sparse-bitmask, sparse-24-bitmask",
                shown(&format)
            )));
        }
    }
    Ok(())
}

/// Puts the tensors under the graph of their model.
fn build(
    folder: &Path,
    config: &Object,
    kind: &str,
    tensors: Weights,
    options: &Options,
) -> Result<Model> {
    let wrong = |what| Error::Arch {
        path: folder.to_path_buf(),
        arch: kind.to_owned(),
        what,
    };
    let own = config.text("_name_or_path")?.filter(|n| !n.is_empty());
    let name = own.map_or_else(|| kind.to_owned(), |n| shown(&n));
    let input = options.input.as_deref();
    let (graph, weights, context) = if kind == "bert" {
        let tensors = encoder::normalized(tensors);
        let (mut encoder, mut context) = encoder::describe(config, &tensors, options.heads, &name)?;
        match text::sentence(folder)? {
            Some(sentence) => {
                encoder.sentence = Some(sentence.normalize);
                context = context.min(sentence.context.unwrap_or(context));
            }
            None if options.sentence => encoder.sentence = Some(true),
            None => {}
        }
        let (graph, weights) = encoder.build(tensors, input).map_err(wrong)?;
        (graph, weights, context)
    } else {
        let tensors = decoder::normalized(tensors);
        let (decoder, context) = decoder::describe(config, kind, &name)?;
        let (graph, weights) = decoder.build(tensors, input).map_err(wrong)?;
        (graph, weights, context)
    };
    let facts = text::read(folder, config, context)?;
    let mut model = Model::new(graph, weights).map_err(|source| Error::Model {
        path: folder.to_path_buf(),
        source,
    })?;
    model.tokenizer = facts.tokenizer;
    model.text = Some(facts.text);
    Ok(model)
}
