//! Tensor data in files beside the model.

use super::proto::StringStringEntryProto;
use crate::source::Source;
use lacuna::model::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The data files that a model refers to; none may lie outside the model's folder.
pub(super) struct External<'a> {
    model: &'a Path,
    open: BTreeMap<String, Source>,
}

impl<'a> External<'a> {
    pub fn new(model: &'a Path) -> External<'a> {
        External {
            model,
            open: BTreeMap::new(),
        }
    }

    /// The bytes that the entries `location`, `offset` and `length` name. `expected` is the length
    /// of the tensor.
    pub fn read(
        &mut self,
        entries: &[StringStringEntryProto],
        expected: usize,
    ) -> Result<Bytes, String> {
        let entry = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &e.value);
        let number = |key: &str| -> Result<Option<usize>, String> {
            let Some(text) = entry(key) else {
                return Ok(None);
            };
            let n = text
                .parse()
                .map_err(|_| format!("external data: {key} `{text}` is no number"))?;
            Ok(Some(n))
        };
        let location = entry("location").ok_or("external data without a location")?;
        let start = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(expected);
        if length != expected {
            return Err(format!(
                "{length} bytes of external data, the shape needs {expected}"
            ));
        }
        let file = self.file(location)?;
        let end = start.checked_add(length);
        end.and_then(|end| file.bytes.slice(start..end))
            .ok_or_else(|| {
                format!(
                    "external data at {start}, {length} bytes, ends behind the {} bytes of `{location}`",
                    file.bytes.len()
                )
            })
    }

    fn file(&mut self, location: &str) -> Result<&Source, String> {
        if !self.open.contains_key(location) {
            let source = self.open_beside(location)?;
            self.open.insert(location.to_owned(), source);
        }
        Ok(&self.open[location])
    }

    fn open_beside(&self, location: &str) -> Result<Source, String> {
        Source::open(&self.beside(location)?).map_err(|e| format!("external data: {e}"))
    }

    /// Where a data file lies, once it is known not to lie outside the model's folder.
    pub fn beside(&self, location: &str) -> Result<PathBuf, String> {
        let outside = || format!("external data `{location}` lies outside the model's folder");
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if location.contains('\\') || !Path::new(location).components().all(plain) {
            return Err(outside());
        }
        let folder = match self.model.parent() {
            Some(p) if p != Path::new("") => p,
            _ => Path::new("."),
        };
        // Links are followed before the comparison.
        let resolve = |path: &Path| {
            let found = path.canonicalize();
            found.map_err(|e| format!("external data `{location}`: {e}"))
        };
        let path = folder.join(location);
        if !resolve(&path)?.starts_with(resolve(folder)?) {
            return Err(outside());
        }
        Ok(path)
    }

    /// SHA-256 of the model followed by its data files in the order of their names, in hex.
    pub fn sha256(&self, model: &Source) -> String {
        let mut hasher = Sha256::new();
        hasher.update(&model.bytes[..]);
        for file in self.open.values() {
            hasher.update(&file.bytes[..]);
        }
        crate::source::hex(&hasher.finalize())
    }
}
