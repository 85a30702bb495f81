//! Telling a file's format from its content.

use crate::hf::CONFIG;
use crate::{Error, Result};
use lacuna::model::file::Tensors;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The tensor that makes a safetensors file a Lacuna file.
const GRAPH_TENSOR: &str = "lacuna.graph";

/// A format that [`open`](crate::open) reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A Lacuna file: safetensors with a graph.
    Lacuna,
    /// A safetensors state dict.
    Safetensors,
    /// A PyTorch state dict in a zip archive, as `torch.save` writes since 1.6.
    TorchZip,
    /// A PyTorch state dict as a series of pickles, as `torch.save` wrote before.
    TorchLegacy,
    /// An ONNX model.
    Onnx,
    /// A GGUF file.
    Gguf,
    /// A directory of Hugging Face, told by its `config.json`.
    HuggingFace,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Lacuna => "Lacuna",
            Format::Safetensors => "safetensors",
            Format::TorchZip => "PyTorch",
            Format::TorchLegacy => "PyTorch (legacy)",
            Format::Onnx => "ONNX",
            Format::Gguf => "GGUF",
            Format::HuggingFace => "Hugging Face",
        })
    }
}

impl Format {
    /// Whether a file of this format describes its own computation.
    pub fn has_graph(self) -> bool {
        matches!(
            self,
            Format::Lacuna | Format::Onnx | Format::Gguf | Format::HuggingFace
        )
    }

    /// The format of a file, from its first bytes and, for safetensors, its header, or that of a
    /// folder.
    ///
    /// # Errors
    /// When the file cannot be read or is of none of these formats.
    pub fn of_file(path: &Path) -> Result<Format> {
        let io = |action| {
            move |source| Error::Io {
                path: path.to_path_buf(),
                action,
                source,
            }
        };
        let file = |what: &str| Error::Format {
            path: path.to_path_buf(),
            what: what.into(),
        };
        // Opening a pipe would wait for its other end.
        let metadata = fs::metadata(path).map_err(io("open"))?;
        if metadata.is_dir() {
            if path.join(CONFIG).exists() {
                return Ok(Format::HuggingFace);
            }
            return Err(file(
                "a folder without config.json; of folders, those of Hugging Face are read",
            ));
        }
        if !metadata.is_file() {
            return Err(file("not a regular file"));
        }
        let mut head = Vec::with_capacity(9);
        let opened = File::open(path).map_err(io("open"))?;
        opened.take(9).read_to_end(&mut head).map_err(io("read"))?;
        Ok(match head[..] {
            [b'G', b'G', b'U', b'F', ..] => Format::Gguf,
            [b'P', b'K', 3, 4, ..] => Format::TorchZip,
            // The PROTO opcode, then a protocol version.
            [0x80, 2..=5, ..] => Format::TorchLegacy,
            // The length of a JSON header, then the header.
            [_, _, _, _, _, _, _, _, b'{'] => {
                let tensors = Tensors::open(path).map_err(|source| Error::Model {
                    path: path.to_path_buf(),
                    source,
                })?;
                if tensors.contains(GRAPH_TENSOR) {
                    Format::Lacuna
                } else {
                    Format::Safetensors
                }
            }
            // The protobuf keys of the fields that a ModelProto may start with.
            [
                0x08 | 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72,
                _,
                ..,
            ] => Format::Onnx,
            _ => {
                return Err(file(
                    "of no known format; supported: ONNX, GGUF, PyTorch state dicts, safetensors, \
                     Lacuna files",
                ));
            }
        })
    }
}
