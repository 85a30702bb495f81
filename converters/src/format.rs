//! Telling a file's format from its content.

use crate::{Error, Result};
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The tensor that makes a safetensors file a Lacuna file.
const GRAPH_TENSOR: &str = "lacuna.graph";

/// The largest header that safetensors allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

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
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Lacuna => "Lacuna",
            Format::Safetensors => "safetensors",
            Format::TorchZip => "PyTorch",
            Format::TorchLegacy => "PyTorch (legacy)",
            Format::Onnx => "ONNX",
        })
    }
}

impl Format {
    /// Whether a file of this format describes its own computation.
    pub fn has_graph(self) -> bool {
        matches!(self, Format::Lacuna | Format::Onnx)
    }

    /// The format of a file, from its first bytes and, for safetensors, its header.
    pub fn of_file(path: &Path) -> Result<Format> {
        let io = |source| Error::Io {
            path: path.to_path_buf(),
            action: "open",
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(Error::Format {
                path: path.to_path_buf(),
                what: "not a regular file".into(),
            });
        }
        detect(&mut file, meta.len())
            .map_err(io)?
            .ok_or_else(|| Error::Format {
                path: path.to_path_buf(),
                what: "of no known format; supported: ONNX, PyTorch state dicts, safetensors, \
                       Lacuna files"
                    .into(),
            })
    }
}

fn detect(file: &mut impl Read, len: u64) -> io::Result<Option<Format>> {
    let mut head = Vec::with_capacity(9);
    file.take(9).read_to_end(&mut head)?;
    Ok(match head[..] {
        [b'P', b'K', 3, 4, ..] => Some(Format::TorchZip),
        // The PROTO opcode, then a protocol version.
        [0x80, 2..=5, ..] => Some(Format::TorchLegacy),
        [a, b, c, d, e, f, g, h, b'{'] => {
            let header = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            if header > MAX_HEADER.min(len.saturating_sub(8)) {
                return Ok(None);
            }
            let mut json = vec![b'{'];
            file.take(header.saturating_sub(1)).read_to_end(&mut json)?;
            match serde_json::from_slice::<HashMap<String, IgnoredAny>>(&json) {
                Ok(keys) if keys.contains_key(GRAPH_TENSOR) => Some(Format::Lacuna),
                _ => Some(Format::Safetensors),
            }
        }
        // The protobuf keys of the fields that a ModelProto may start with.
        [
            0x08 | 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72,
            _,
            ..,
        ] => Some(Format::Onnx),
        _ => None,
    })
}
