//! Any safetensors file as named tensors.

use super::header::{self, Entry};
use super::{map, shown};
use crate::model::{Bytes, Weight};
use crate::{DType, Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tensors of a safetensors file, whose header is checked.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    file: Bytes,
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dtype as safetensors calls it; see [`StoredTensor::dtype`].
    pub dtype_name: &'static str,
    /// Its shape, outermost first.
    pub shape: &'a [usize],
    /// Its elements, row-major and little-endian, at any alignment.
    pub bytes: Bytes,
}

impl StoredTensor<'_> {
    /// The dtype, or `None` when it is one that the runtime does not know, such as F64 or BOOL.
    pub fn dtype(&self) -> Option<DType> {
        DType::from_name(self.dtype_name)
    }
}

impl Tensors {
    /// Opens a safetensors file, memory-mapped. See [`read`](super::read) on changing the file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] or [`Error::FileTensor`] when the file cannot be opened or
    /// breaks a rule of safetensors: a header of at most 100 MB that is a UTF-8 JSON object without
    /// duplicate keys, known dtypes, and offsets that fit the shapes and tile the data exactly.
    pub fn open(path: impl AsRef<Path>) -> Result<Tensors> {
        let path = path.as_ref();
        Tensors::parse(path, map::map(path)?)
    }

    /// Reads the bytes of a whole safetensors file; `label` stands for the path in errors.
    ///
    /// # Errors
    /// As [`Tensors::open`].
    pub fn parse(label: impl Into<PathBuf>, file: Bytes) -> Result<Tensors> {
        let path = label.into();
        match header::parse(&file) {
            Ok(header) => Ok(Tensors {
                path,
                file,
                metadata: header.metadata,
                entries: header.entries,
            }),
            Err(fault) => Err(match fault.tensor {
                Some(tensor) => Error::FileTensor {
                    path,
                    tensor: shown(&tensor),
                    what: fault.what,
                },
                None => Error::File {
                    path,
                    what: fault.what,
                },
            }),
        }
    }

    /// The file, or the label of the bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the file has no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        Some(StoredTensor {
            name,
            dtype_name: entry.dtype,
            shape: &entry.shape,
            bytes: self.file.slice(entry.range.clone())?,
        })
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`Error::FileTensor`] when there is none of this name.
    pub fn require(&self, name: &str) -> Result<StoredTensor<'_>> {
        self.get(name)
            .ok_or_else(|| self.fault(name, "the file has no such tensor"))
    }

    /// One tensor as a dense weight over the bytes of the file.
    ///
    /// # Errors
    /// [`Error::FileTensor`] when there is none of this name, or its dtype is not one of [`DType`].
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let tensor = self.require(name)?;
        let dtype = tensor.dtype().ok_or_else(|| {
            self.fault(
                name,
                format!(
                    "dtype {} is not supported; F32, F16, BF16, I64, I32, I8 and U8 are",
                    tensor.dtype_name
                ),
            )
        })?;
        Weight::dense(tensor.shape.to_vec(), dtype, tensor.bytes)
            .map_err(|what| self.fault(name, what))
    }

    /// An error about one tensor of this file.
    pub(super) fn fault(&self, tensor: &str, what: impl Into<String>) -> Error {
        Error::FileTensor {
            path: self.path.clone(),
            tensor: shown(tensor),
            what: what.into(),
        }
    }

    /// An error about this file.
    pub(super) fn file_fault(&self, what: impl Into<String>) -> Error {
        Error::File {
            path: self.path.clone(),
            what: what.into(),
        }
    }
}
