//! How far a run is, so that it goes on after a kill: one small file, and the network of the round beside it.

use super::{Round, pass};
use crate::{Error, Result};
use lacuna::Model;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The version of the format.
const SCHEMA: u32 = 1;

/// Everything but weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    schema: u32,
    /// SHA-256 of the network and the settings.
    run: String,
    /// Rounds that are done.
    pub rounds: Vec<Round>,
    /// The pass of the round that is not.
    pub pass: Option<pass::State>,
}

/// Where a run keeps its state.
pub(super) struct Store {
    path: PathBuf,
    run: String,
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

impl Store {
    pub fn new(path: &Path, run: String) -> Store {
        Store {
            path: path.to_owned(),
            run,
        }
    }

    pub fn fresh(&self) -> State {
        State {
            schema: SCHEMA,
            run: self.run.clone(),
            rounds: Vec::new(),
            pass: None,
        }
    }

    /// The network that the round behind so many starts from.
    fn model(&self, rounds: usize) -> PathBuf {
        with(&self.path, &format!(".{rounds}.safetensors"))
    }

    /// The checkpoint of the training of the round behind so many.
    pub fn checkpoint(&self, rounds: usize) -> PathBuf {
        with(&self.path, &format!(".{rounds}.training"))
    }

    /// The state, and the network of the round where it is not the first.
    pub fn read(&self) -> Result<Option<(State, Option<Model>)>> {
        let bytes = match std::fs::read(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|source| Error::Io {
                path: self.path.clone(),
                action: "read",
                source,
            })?,
        };
        let refuse = |what: String| Error::Data {
            path: self.path.clone(),
            what: format!("no state of this run: {what}; remove it to start again"),
        };
        let state: State = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        if state.schema != SCHEMA {
            return Err(refuse(format!(
                "schema {}, this version reads {SCHEMA}",
                state.schema
            )));
        }
        if state.run != self.run {
            return Err(refuse("it is of another model or setting".into()));
        }
        let model = match state.rounds.len() {
            0 => None,
            n => Some(Model::open(self.model(n))?),
        };
        Ok(Some((state, model)))
    }

    pub fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state).map_err(|e| Error::Channels(e.to_string()))?;
        let fill = |out: &mut dyn lacuna::model::file::Output| out.write_all(&text);
        Ok(lacuna::model::file::replace(&self.path, fill, |_| Ok(()))?)
    }

    /// Keeps the network that a round ended with, then the state that names it; what the round started from goes.
    pub fn next(&self, state: &State, model: &Model) -> Result<Model> {
        let rounds = state.rounds.len();
        model.save(self.model(rounds))?;
        self.write(state)?;
        remove(&self.model(rounds - 1))?;
        remove(&self.checkpoint(rounds - 1))?;
        Ok(Model::open(self.model(rounds))?)
    }

    /// Removes everything.
    pub fn forget(&self, rounds: usize) -> Result<()> {
        remove(&self.path)?;
        (0..=rounds).try_for_each(|n| {
            remove(&self.model(n))?;
            remove(&self.checkpoint(n))
        })
    }
}

fn remove(path: &Path) -> Result<()> {
    crate::train::forget(path)
}
