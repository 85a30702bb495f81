//! Writing results, and checking what was written.

use crate::{Error, Pruned, Result};
use lacuna::model::Encoding;
use lacuna::{DType, Model};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use std::path::Path;

/// Saves a pruned model, reopens it, and compares the zeros of every layer with the plan.
/// Returns the reopened model.
pub fn save(pruned: &Pruned, path: &Path) -> Result<Model> {
    pruned.model.save(path)?;
    let reopened = Model::open(path)?;
    for layer in &pruned.plan.layers {
        let weight = reopened.weights().get(&layer.weight);
        let found = weight.map_or(0, |w| w.numel() - w.count_nonzero());
        if weight.is_none() || found != layer.zeros_after {
            return Err(Error::Verify {
                path: path.to_owned(),
                weight: layer.weight.clone(),
                found,
                planned: layer.zeros_after,
            });
        }
    }
    Ok(reopened)
}

/// Writes the model's weights as a plain safetensors file, every tensor dense under its own name.
/// The graph does not travel along. The file appears whole or not at all; the file that the model
/// was opened from is not overwritten.
pub fn export_dense(model: &Model, path: &Path) -> Result<()> {
    let refuse = |what: String| Error::Data {
        path: path.to_owned(),
        what,
    };
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if model.path().is_some_and(|source| same(source, path)) {
        return Err(refuse("is the source; write to another file".into()));
    }
    let io = |source| Error::Io {
        path: path.to_owned(),
        action: "write",
        source,
    };
    let dense = model.decoded();
    let mut views = Vec::with_capacity(dense.weights().len());
    for (name, weight) in dense.weights() {
        let Encoding::Dense(data) = weight.encoding() else {
            continue;
        };
        let dtype = match weight.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
        };
        let view = TensorView::new(dtype, weight.shape().to_vec(), data)
            .map_err(|e| refuse(format!("tensor `{name}`: {e}")))?;
        views.push((name.as_str(), view));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = serialize_to_file(views, None, &part)
        .map_err(|e| refuse(e.to_string()))
        .and_then(|()| {
            let file = std::fs::File::open(&part).map_err(io)?;
            file.sync_all().map_err(io)?;
            std::fs::rename(&part, path).map_err(io)
        });
    if written.is_err() {
        // The part may not exist; the error to report is the first one.
        let _ = std::fs::remove_file(&part);
    }
    written
}
