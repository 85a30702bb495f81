//! The state of a run after an epoch, as a safetensors file that is replaced whole or not at all.

use super::network::Parameter;
use super::optimiser::Memory;
use super::run::{EpochRow, Pruning};
use crate::{Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// The version of the format.
const SCHEMA: u32 = 1;

/// The key of the metadata that holds [`Head`] as JSON.
const KEY: &str = "lacuna.training";

/// Everything but tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    schema: u32,
    /// SHA-256 of what is trained and how.
    run: String,
    /// Epochs that are done.
    epochs: usize,
    /// Steps of the optimiser that are done.
    steps: u64,
    rows: Vec<EpochRow>,
    pruning: Option<Pruning>,
}

/// The state of a run.
pub(super) struct State {
    /// Epochs that are done.
    pub epochs: usize,
    pub memory: Memory,
    /// For each parameter, 0 where a weight is gone; empty where none is.
    pub masks: Vec<Vec<u8>>,
    pub rows: Vec<EpochRow>,
    pub pruning: Option<Pruning>,
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes a checkpoint: beside its place, synced, then renamed. A failure leaves the last one as it was.
pub(super) fn write(path: &Path, run: &str, parameters: &[Parameter], state: &State) -> Result<()> {
    let refuse = |what: String| Error::Data {
        path: path.to_owned(),
        what,
    };
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (i, p) in parameters.iter().enumerate() {
        tensors.push((
            format!("weight/{}", p.name),
            Dtype::F32,
            p.shape.clone(),
            bytes(&p.data),
        ));
        for (kind, data) in [
            ("first", &state.memory.first[i]),
            ("second", &state.memory.second[i]),
        ] {
            if !data.is_empty() {
                tensors.push((
                    format!("{kind}/{}", p.name),
                    Dtype::F32,
                    p.shape.clone(),
                    bytes(data),
                ));
            }
        }
        if !state.masks[i].is_empty() {
            tensors.push((
                format!("mask/{}", p.name),
                Dtype::U8,
                p.shape.clone(),
                state.masks[i].clone(),
            ));
        }
    }
    let head = Head {
        schema: SCHEMA,
        run: run.to_owned(),
        epochs: state.epochs,
        steps: state.memory.steps,
        rows: state.rows.clone(),
        pruning: state.pruning.clone(),
    };
    let head = serde_json::to_string(&head).map_err(|e| refuse(e.to_string()))?;
    let views: std::result::Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), data)?))
        })
        .collect();
    let views = views.map_err(|e: safetensors::SafeTensorError| refuse(e.to_string()))?;
    let data = safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), head)])));
    replace(path, &data.map_err(|e| refuse(e.to_string()))?)
}

/// Replaces a file by these bytes, whole or not at all.
pub(super) fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let fill = |out: &mut dyn lacuna::model::file::Output| out.write_all(data);
    Ok(lacuna::model::file::replace(path, fill, |_| Ok(()))?)
}

/// Reads a checkpoint into `parameters`; `None` where there is none.
pub(super) fn read(path: &Path, run: &str, parameters: &mut [Parameter]) -> Result<Option<State>> {
    let data = match std::fs::read(path) {
        Ok(data) => data,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Io {
                path: path.to_owned(),
                action: "read",
                source,
            });
        }
    };
    let refuse = |what: String| Error::Data {
        path: path.to_owned(),
        what: format!("no checkpoint of this run: {what}; remove it to start again"),
    };
    let (_, metadata) = SafeTensors::read_metadata(&data).map_err(|e| refuse(e.to_string()))?;
    let head = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
    let head: Head = match head {
        Some(text) => serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?,
        None => return Err(refuse("it is no checkpoint".into())),
    };
    if head.schema != SCHEMA {
        return Err(refuse(format!(
            "schema {}, this version reads {SCHEMA}",
            head.schema
        )));
    }
    if head.run != run {
        return Err(refuse("it is of another model, recipe or setting".into()));
    }
    let file = SafeTensors::deserialize(&data).map_err(|e| refuse(e.to_string()))?;
    let floats = |kind: &str, p: &Parameter| -> Result<Option<Vec<f32>>> {
        let Ok(view) = file.tensor(&format!("{kind}/{}", p.name)) else {
            return Ok(None);
        };
        if view.dtype() != Dtype::F32 || view.shape() != p.shape {
            return Err(refuse(format!(
                "`{kind}/{}` is {:?} {:?}",
                p.name,
                view.dtype(),
                view.shape()
            )));
        }
        let words = view.data().as_chunks::<4>().0.iter();
        Ok(Some(words.map(|b| f32::from_le_bytes(*b)).collect()))
    };
    let mut state = State {
        epochs: head.epochs,
        memory: Memory {
            steps: head.steps,
            first: Vec::new(),
            second: Vec::new(),
        },
        masks: Vec::new(),
        rows: head.rows,
        pruning: head.pruning,
    };
    for p in parameters {
        state
            .memory
            .first
            .push(floats("first", p)?.unwrap_or_default());
        state
            .memory
            .second
            .push(floats("second", p)?.unwrap_or_default());
        state
            .masks
            .push(match file.tensor(&format!("mask/{}", p.name)) {
                Ok(view) if view.dtype() == Dtype::U8 && view.shape() == p.shape => {
                    view.data().to_vec()
                }
                Ok(_) => return Err(refuse(format!("`mask/{}` does not fit its weight", p.name))),
                Err(_) => Vec::new(),
            });
        p.data = floats("weight", p)?.ok_or_else(|| refuse(format!("no `weight/{}`", p.name)))?;
    }
    Ok(Some(state))
}
