//! Which files a model is made of.

use crate::source::Source;
use crate::{Format, Result, hf, onnx};
use std::path::{Path, PathBuf};

/// Every file that [`open`](crate::open) reads of a model: the file itself with the data files that it names, or of a
/// directory its weights, configuration and tokenizer. With the same places beside each other elsewhere, the model opens there too.
///
/// # Errors
/// When a file is of no known format, damaged, or cannot be read.
pub fn files(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let path = path.as_ref();
    let mut files = match Format::of_file(path)? {
        Format::HuggingFace => {
            let mut files = hf::weight_files(path)?;
            files.extend(hf::beside(path));
            files
        }
        Format::Onnx => onnx::data_files(&Source::open(path)?)?,
        Format::Lacuna | Format::Gguf => Vec::new(),
        // A language model's tensors are described by the files beside them.
        _ => path.parent().map(hf::beside).unwrap_or_default(),
    };
    if !path.is_dir() {
        files.insert(0, path.to_path_buf());
    }
    Ok(files)
}
