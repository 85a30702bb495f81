//! The tensors of a directory: one file, or shards that an index lists.

use super::config::Object;
use crate::format::Format;
use crate::source::{Source, hex, shown};
use crate::{Result, read_state_dict};
use lacuna::model::Weights;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where weights are looked for, in this order.
const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const INDEX: [&str; 2] = [
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
];

/// Tensors, and the SHA-256 of where they are from.
pub(super) struct Loaded {
    pub weights: Weights,
    pub digest: String,
}

/// The one file of the weights of a directory, or the index of their shards.
fn find(folder: &Path) -> Result<(PathBuf, bool)> {
    for (single, index) in SINGLE.iter().zip(INDEX) {
        for (name, shards) in [(single, false), (&index, true)] {
            let file = folder.join(name);
            if file.exists() {
                return Ok((file, shards));
            }
        }
    }
    Err(crate::Error::Format {
        path: folder.to_path_buf(),
        what: format!(
            "no weights: none of {}, {}",
            SINGLE.join(", "),
            INDEX.join(", ")
        ),
    })
}

/// Reads the tensors of a directory.
pub(super) fn load(folder: &Path) -> Result<Loaded> {
    match find(folder)? {
        (file, false) => load_file(&file),
        (file, true) => load_shards(folder, &file),
    }
}

/// The files that [`load`] reads.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (file, shards) = find(folder)?;
    let mut files = vec![file];
    if shards {
        let (_, named) = index(&files[0])?;
        let named: BTreeSet<String> = named.into_values().collect();
        files.extend(named.iter().map(|name| folder.join(name)));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<(Weights, Source)> {
    let format = Format::of_file(path)?;
    let source = Source::open(path)?;
    Ok((read_state_dict(format, &source)?, source))
}

fn load_file(path: &Path) -> Result<Loaded> {
    let (weights, source) = read(path)?;
    Ok(Loaded {
        weights,
        digest: source.sha256(),
    })
}

/// The file of every tensor that the index names.
fn index(path: &Path) -> Result<(Object, BTreeMap<String, String>)> {
    let index = Object::require(path)?;
    let map = index.object("weight_map")?;
    let map = index.need("weight_map", map)?;
    let mut files = BTreeMap::new();
    for name in map.keys() {
        let file = map.text(name)?;
        let file = map.need(name, file)?;
        // A shard lies beside its index, nowhere else.
        let plain = Path::new(&file)
            .file_name()
            .is_some_and(|n| n == file.as_str())
            && !file.contains(['/', '\\', ':', '\0']);
        if !plain {
            return Err(index.error(format!(
                "`weight_map` puts `{}` into `{}`, which is no file name",
                shown(name),
                shown(&file)
            )));
        }
        files.insert(name.to_owned(), file);
    }
    Ok((index, files))
}

fn load_shards(folder: &Path, path: &Path) -> Result<Loaded> {
    let (index, files) = index(path)?;
    let shards: BTreeSet<&String> = files.values().collect();
    let mut weights = Weights::new();
    let mut digest = Sha256::new();
    for shard in shards {
        let file: PathBuf = folder.join(shard);
        let (tensors, source) = read(&file)?;
        digest.update(format!("{}  {shard}\n", source.sha256()));
        for (name, weight) in tensors {
            if weights.contains_key(&name) {
                return Err(source.tensor_error(&shown(&name), "stands in another shard too"));
            }
            weights.insert(name, weight);
        }
    }
    // The parts of an encoded weight are read as one.
    const PARTS: [&str; 4] = [".compressed", ".bitmask", ".shape", ".row_offsets"];
    let found = |name: &str| {
        weights.contains_key(name)
            || PARTS.iter().any(|part| {
                name.strip_suffix(part).is_some_and(|p| {
                    weights.contains_key(p) || weights.contains_key(&format!("{p}.weight"))
                })
            })
    };
    if let Some((name, file)) = files.iter().find(|(name, _)| !found(name)) {
        return Err(index.error(format!(
            "`weight_map` puts `{}` into `{file}`, which does not have it",
            shown(name)
        )));
    }
    Ok(Loaded {
        weights,
        digest: hex(&digest.finalize()),
    })
}
