//! A Lacuna file becomes a model.

use super::header::UniqueMap;
use super::{
    FORMAT, GRAPH, RESERVED, TOKENIZER, Tensors, VERSION_TWO_FOUR, VERSIONS, encoded, finite, shown,
};
use crate::model::{Graph, Metadata, Model, Storage, Text, Weights};
use crate::{DType, Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What `lacuna.graph` holds.
#[derive(Deserialize)]
struct Document {
    version: u64,
    graph: Graph,
    /// Logical shapes of the encoded weights.
    #[serde(default)]
    shapes: UniqueMap<Vec<usize>>,
    /// Columns of a group of the weights of I8.
    #[serde(default)]
    groups: UniqueMap<usize>,
    #[serde(default)]
    text: Option<Text>,
}

/// The part of `lacuna.graph` that every version shares.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

/// Makes a model of the tensors of a Lacuna file.
pub(super) fn model(tensors: &Tensors) -> Result<Model> {
    let document = document(tensors)?;
    let weights = weights(tensors, &document)?;
    for (name, weight) in &weights {
        finite::check(weight).map_err(|what| tensors.fault(name, what))?;
    }
    let mut model = Model::new(document.graph, weights).map_err(|e| Error::InFile {
        path: tensors.path().to_path_buf(),
        source: Box::new(e),
    })?;
    model.text = document.text;
    if tensors.contains(TOKENIZER) {
        model.tokenizer = Some(bytes_of(tensors, TOKENIZER)?);
    }
    let short = |key: &str| tensors.metadata().get(key).cloned();
    model.metadata = Metadata {
        recipe: short("recipe"),
        source: short("source"),
    };
    Ok(model)
}

/// Reads `lacuna.graph` and checks format and version.
fn document(tensors: &Tensors) -> Result<Document> {
    if !tensors.contains(GRAPH) {
        return Err(tensors.file_fault(if encoded::prefixes(tensors).is_empty() {
            format!(
                "a safetensors file of {} tensors without `{GRAPH}`: weights without a model; convert it with `prune convert`",
                tensors.len()
            )
        } else {
            format!(
                "a compressed-tensors checkpoint without `{GRAPH}`: weights without a model; convert it with `prune convert`"
            )
        }));
    }
    for (key, known) in [("format", &[FORMAT][..]), ("version", &VERSIONS)] {
        if let Some(value) = tensors.metadata().get(key)
            && !known.contains(&value.as_str())
        {
            return Err(tensors.file_fault(format!(
                "metadata `{key}` is `{}`, this library reads `{}`",
                shown(value),
                known.join("` and `")
            )));
        }
    }
    let json = bytes_of(tensors, GRAPH)?;
    let broken = |e: serde_json::Error| tensors.fault(GRAPH, e.to_string());
    let Versioned { version } = serde_json::from_slice(&json).map_err(broken)?;
    if !VERSIONS.contains(&version.to_string().as_str()) {
        return Err(tensors.fault(
            GRAPH,
            format!(
                "version {version}, this library reads versions {}",
                VERSIONS.join(" and ")
            ),
        ));
    }
    serde_json::from_slice(&json).map_err(broken)
}

/// The bytes of a U8 tensor.
fn bytes_of(tensors: &Tensors, name: &str) -> Result<crate::model::Bytes> {
    let tensor = tensors.require(name)?;
    if tensor.dtype() != Some(DType::U8) || tensor.shape.len() != 1 {
        return Err(tensors.fault(
            name,
            format!(
                "{} of {} axes, expected U8 of one axis",
                tensor.dtype_name,
                tensor.shape.len()
            ),
        ));
    }
    Ok(tensor.bytes)
}

/// Every weight of the file, the encoded ones under their logical shapes.
fn weights(tensors: &Tensors, document: &Document) -> Result<Weights> {
    let (shapes, groups) = (&document.shapes.0, &document.groups.0);
    let mut by_prefix: BTreeMap<&str, &str> = BTreeMap::new();
    for name in shapes.keys() {
        if let Some(other) = by_prefix.insert(encoded::prefix(name), name) {
            return Err(tensors.fault(
                GRAPH,
                format!(
                    "`shapes` has `{}` and `{}`, which would be stored under the same names",
                    shown(other),
                    shown(name)
                ),
            ));
        }
    }
    let prefixes = encoded::prefixes(tensors);
    let mut weights = Weights::new();
    let mut parts = BTreeSet::new();
    for prefix in &prefixes {
        let name = by_prefix
            .get(prefix)
            .map_or_else(|| format!("{prefix}.weight"), |n| n.to_string());
        let weight = encoded::read(tensors, prefix, groups.get(&name).copied())?;
        let names = encoded::Parts::of(prefix);
        if weight.storage() == Storage::Dense {
            return Err(tensors.fault(
                &names.shape,
                format!(
                    "{} sizes; an encoded weight is a matrix",
                    weight.shape().len()
                ),
            ));
        }
        let version = document.version.to_string();
        if weight.storage() == Storage::TwoFour && version != VERSION_TWO_FOUR {
            return Err(tensors.fault(
                &names.compressed,
                format!("stored 2:4, in a file of version {version}"),
            ));
        }
        parts.extend(names.names(&weight));
        weights.insert(name, weight);
    }
    for name in tensors.names() {
        if parts.contains(name) || name.starts_with(RESERVED) {
            continue;
        }
        if weights
            .insert(name.to_owned(), tensors.weight(name)?)
            .is_some()
        {
            return Err(tensors.fault(name, "the weight is stored twice, dense and encoded"));
        }
    }
    for (name, shape) in shapes {
        let Some(weight) = weights.get_mut(name) else {
            return Err(tensors.fault(
                GRAPH,
                format!(
                    "`shapes` names the weight `{}`, which the file does not have",
                    shown(name)
                ),
            ));
        };
        *weight = weight.reshape(shape.clone()).ok_or_else(|| {
            tensors.fault(
                name,
                format!(
                    "stored as {:?}, which is not the shape {} in `{GRAPH}`",
                    weight.shape(),
                    shown(&format!("{shape:?}"))
                ),
            )
        })?;
    }
    Ok(weights)
}
