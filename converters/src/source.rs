//! A source file: its path for messages and its mapped bytes, shared by the weights cut from it.

use crate::{Error, Result};
use lacuna::model::{Bytes, file};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A file's path and content.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub bytes: Bytes,
}

impl Source {
    /// Maps a regular file.
    pub fn open(path: &Path) -> Result<Source> {
        let bytes = file::map(path).map_err(|source| Error::Model {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Source {
            path: path.to_path_buf(),
            bytes,
        })
    }

    /// The part of the file that `part`, a slice of its bytes, covers; a copy of any other slice.
    pub fn share(&self, part: &[u8]) -> Bytes {
        let offset = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        match offset.checked_add(part.len()) {
            Some(end) if end <= self.bytes.len() => self.bytes.slice(offset..end),
            _ => None,
        }
        .unwrap_or_else(|| part.to_vec().into())
    }

    /// An error about the whole file.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Format {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    /// An error about one tensor.
    pub fn tensor_error(&self, tensor: &str, what: impl Into<String>) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            what: what.into(),
        }
    }

    /// An answer of the runtime about what was read.
    pub fn model_error(&self, source: lacuna::Error) -> Error {
        Error::Model {
            path: self.path.clone(),
            source,
        }
    }

    /// SHA-256 of the content, in hex.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes[..]))
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A name or value from a file for a message, cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 120;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
