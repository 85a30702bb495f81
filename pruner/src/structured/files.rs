//! The files of a supernet: one for each block, mapped.

use super::supernet::Rung;
use crate::{Error, Result};
use lacuna::DType;
use lacuna::model::file::{Tensors, replace};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

fn fault(path: &Path, what: impl Into<String>) -> Error {
    Error::Data {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// What a block's file says of its levels.
#[derive(Serialize, Deserialize)]
struct Head {
    digest: String,
    errors: Vec<Vec<(f64, Option<f64>)>>,
}

const KEY: &str = "lacuna.supernet";

/// Writes the levels of a block, and gives them back over the mapped file.
pub(super) fn store(path: &Path, digest: &str, modules: Vec<Vec<Rung>>) -> Result<Vec<Vec<Rung>>> {
    let head = Head {
        digest: digest.to_owned(),
        errors: (modules.iter())
            .map(|m| m.iter().map(|r| (r.error, r.held_out)).collect())
            .collect(),
    };
    let head = serde_json::to_string(&head).map_err(|e| fault(path, e.to_string()))?;
    let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (m, rungs) in modules.iter().enumerate() {
        for (l, rung) in rungs.iter().enumerate() {
            let kept = rung.kept.iter().flat_map(|&k| (k as i64).to_le_bytes());
            let name = format!("{m}.{l}.kept");
            tensors.insert(name, (Dtype::I64, vec![rung.kept.len()], kept.collect()));
            let Some(weight) = &rung.weight else { continue };
            let dtype = match weight.dtype() {
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                _ => Dtype::BF16,
            };
            let lacuna::model::Encoding::Dense(bytes) = weight.encoding() else {
                return Err(fault(path, format!("level {l} of module {m} is not dense")));
            };
            let name = format!("{m}.{l}.weight");
            tensors.insert(name, (dtype, weight.shape().to_vec(), bytes.to_vec()));
        }
    }
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views: Result<Vec<_>, safetensors::SafeTensorError> = views.collect();
    let metadata = Some(HashMap::from([(KEY.to_owned(), head)]));
    let bytes = views.and_then(|v| safetensors::serialize(v, metadata));
    let bytes = bytes.map_err(|e| fault(path, e.to_string()))?;
    replace(path, |out| out.write_all(&bytes), |_| Ok(()))?;
    load(path, digest, modules.len()).ok_or_else(|| fault(path, "is not what was written"))
}

/// The levels of a block's file, if it is there, whole, and of this run.
pub(super) fn load(path: &Path, digest: &str, modules: usize) -> Option<Vec<Vec<Rung>>> {
    let file = Tensors::open(path).ok()?;
    let head: Head = serde_json::from_str(file.metadata().get(KEY)?).ok()?;
    if head.digest != digest || head.errors.len() != modules {
        return None;
    }
    let rung = |m: usize, l: usize, (error, held_out): (f64, Option<f64>)| {
        let kept = file.weight(&format!("{m}.{l}.kept")).ok()?.to_i64()?;
        let kept = kept.into_iter().map(|k| usize::try_from(k).ok());
        let name = format!("{m}.{l}.weight");
        Some(Rung {
            kept: kept.collect::<Option<_>>()?,
            weight: match file.contains(&name) {
                true => Some(file.weight(&name).ok()?),
                false => None,
            },
            bias: None,
            error,
            held_out,
        })
    };
    let rungs = |(m, errors): (usize, Vec<_>)| {
        let each = errors.into_iter().enumerate();
        each.map(|(l, e)| rung(m, l, e)).collect()
    };
    head.errors.into_iter().enumerate().map(rungs).collect()
}
