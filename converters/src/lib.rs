//! Opens models of outside formats as Lacuna models, reading data and executing nothing.
//!
//! [`open`] tells the format from the content: ONNX; GGUF; directories of Hugging Face; PyTorch
//! state dicts (`.pth`, `.pt`, `.th`; zip archives and the older plain pickles); safetensors state
//! dicts; and Lacuna's own files. State dicts carry no graph: their tensor names choose one of the
//! [`architectures`], whose sizes come from the tensors.
//!
//! Language models come from GGUF and from directories: decoders of the Llama family (model types
//! llama, mistral, qwen2 and qwen3) and BERT encoders, with their tokenizer and what
//! [`Text`](lacuna::model::Text) holds. Every width of a layer is that of its tensors.
//!
//! ```no_run
//! let model = lacuna_convert::open("resnet50.onnx", &lacuna_convert::Options::default())?;
//! println!("{} nodes", model.graph().nodes.len());
//! # Ok::<(), lacuna_convert::Error>(())
//! ```
//!
//! Weights stay in the dtype of the file (f32, f16, bf16); f64 weights are rounded to f32, quantised
//! ones of GGUF become f32, and the graph's name says from what. What a
//! graph computes at run time is f32 throughout.

#![forbid(unsafe_code)]

mod arch;
mod error;
mod files;
mod format;
mod gguf;
mod hf;
mod like;
mod lm;
mod micro;
mod onnx;
mod safetensors;
mod source;
mod strided;
mod torch;

pub use arch::architectures;
pub use error::{Error, Result};
pub use files::files;
pub use format::Format;
pub use hf::export_hf;
pub use like::in_place_of;
pub use micro::micro;
pub use onnx::export::export_onnx;
pub use onnx::supported_ops;

use lacuna::Model;
use lacuna::model::{Dim, Weights};
use source::Source;
use std::path::Path;

/// How a file is turned into a model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The architecture of a state dict, one of [`architectures`]; `None` tells it from the names
    /// of the tensors. Refused for files that carry their own graph.
    pub arch: Option<String>,
    /// The shape of the model's input, in place of what the file or the architecture says.
    pub input: Option<Vec<Dim>>,
    /// The attention heads of a BERT state dict without a `config.json` beside it.
    pub heads: Option<usize>,
    /// Gives an encoder the output `sentence_embedding`, the normalised mean of its hidden states,
    /// where no `modules.json` of sentence-transformers says whether it has one.
    pub sentence: bool,
}

/// Opens a model file of any supported format.
///
/// The file is mapped: while the model is in use it must not be changed in place (replacing it by a
/// rename is fine).
///
/// # Errors
/// When the file is of no known format or damaged, uses an operator, attribute or dtype that is
/// not supported (the message names the node or tensor and lists what is), or when a state dict
/// has missing or left-over tensors for its architecture.
pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Model> {
    let path = path.as_ref();
    let format = Format::of_file(path)?;
    if format.has_graph()
        && let Some(arch) = &options.arch
    {
        return Err(Error::Arch {
            path: path.to_path_buf(),
            arch: arch.clone(),
            what: format!("{format} files have a graph of their own"),
        });
    }
    match format {
        Format::Lacuna => {
            if options.input.is_some() {
                return Err(Error::Format {
                    path: path.to_path_buf(),
                    what: "the input shape of a Lacuna file cannot be replaced".into(),
                });
            }
            Model::open(path).map_err(|source| Error::Model {
                path: path.to_path_buf(),
                source,
            })
        }
        Format::Onnx => onnx::read(&Source::open(path)?, options),
        Format::Gguf => gguf::read(&Source::open(path)?, options),
        Format::HuggingFace => hf::read(path, options),
        _ => {
            let source = Source::open(path)?;
            let tensors = read_state_dict(format, &source)?;
            if options.arch.as_deref().is_none_or(|a| a == "bert") && hf::detect(&tensors) {
                return hf::read_state_dict(&source, tensors, options);
            }
            let mut model = arch::build(&source.path, tensors, options)?;
            model.metadata.source = Some(source.sha256());
            Ok(model)
        }
    }
}

/// The network that `options.arch` names, before any training: its weights are drawn from `seed`, the same on
/// every machine.
///
/// # Errors
/// When no architecture is named, or none of [`architectures`] has a member of this name.
pub fn untrained(options: &Options, seed: u64) -> Result<Model> {
    arch::fresh(options.arch.as_deref().unwrap_or_default(), seed, options)
}

/// Reads the tensors of a state dict: a PyTorch file or plain safetensors.
///
/// A wrapper such as `{"state_dict": ...}` is opened and a `module.` prefix that every name has is
/// taken off.
pub fn state_dict(path: impl AsRef<Path>) -> Result<Weights> {
    let path = path.as_ref();
    let format = Format::of_file(path)?;
    read_state_dict(format, &Source::open(path)?)
}

/// SHA-256 of the content of a file, in lower-case hex.
///
/// # Errors
/// When it is no regular file, or the system refuses.
pub fn sha256(path: impl AsRef<Path>) -> Result<String> {
    Ok(Source::open(path.as_ref())?.sha256())
}

fn read_state_dict(format: Format, source: &Source) -> Result<Weights> {
    let tensors = read_tensors(format, source)?;
    const PREFIX: &str = "module.";
    if tensors.keys().all(|name| name.starts_with(PREFIX)) {
        let strip = |(name, t): (String, _)| (name[PREFIX.len()..].to_owned(), t);
        return Ok(tensors.into_iter().map(strip).collect());
    }
    Ok(tensors)
}

/// The tensors of a state dict under the names of the file.
fn read_tensors(format: Format, source: &Source) -> Result<Weights> {
    match format {
        Format::TorchZip => torch::read_zip(source),
        Format::TorchLegacy => torch::read_legacy(source),
        Format::Safetensors => safetensors::read(source),
        Format::Lacuna | Format::Onnx | Format::Gguf | Format::HuggingFace => {
            Err(source.error(format!("{format} files are no state dicts")))
        }
    }
}
