//! A search over levels of the parts of a decoder, whatever a level is: widths of heads and neurons, or sparsities.
//!
//! `space` is what there is to choose from, `evaluate` compares candidates by the answers of the model as it was, `evolution`
//! makes them, `surrogate` guesses what they bring, `rounds` goes from one supernet to the next.

mod evaluate;
mod evolution;
mod rounds;
mod settings;
mod space;
mod surrogate;

pub(crate) use evaluate::Teacher;
pub(crate) use rounds::{Parts, Rounds};
pub use settings::{Evolution, SearchSettings, Stage};
pub(crate) use space::{Levels, Space};

use evaluate::Judge;
use evolution::Search;

use crate::calibration::{Calibration, windows};
use crate::{Error, Progress, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// A round of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Bytes of its supernet.
    pub supernet_bytes: u64,
    /// The divergence of the best at the end of each generation, in nats a token, each on windows of its own.
    pub history: Vec<f64>,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub enum Event {
    /// A part of the work.
    Progress(Progress),
    /// A supernet is about to take so many bytes.
    Supernet {
        /// The round, from 1.
        round: usize,
        /// Bytes on disk.
        bytes: u64,
    },
    /// A generation begins, or the last is done.
    Generation {
        /// The round, from 1, and of how many.
        round: [usize; 2],
        /// Generations that are done, and of how many.
        generation: [usize; 2],
        /// The divergence of the best so far.
        best: Option<f64>,
    },
}

/// Makes the folder of a search, or refuses one of another `run`.
///
/// # Errors
/// When it cannot be written, or holds another search.
fn claim(work: &Path, run: &str) -> Result<()> {
    std::fs::create_dir_all(work).map_err(|source| Error::Io {
        path: work.to_owned(),
        action: "write",
        source,
    })?;
    let mark = work.join("run.json");
    match std::fs::read_to_string(&mark) {
        Ok(other) if other.trim_matches('"') != run => Err(Error::Data {
            path: work.to_owned(),
            what: "holds a search of another model, text or setting; remove it, or name another output".into(),
        }),
        Ok(_) => Ok(()),
        Err(_) => write_json(&mark, &run),
    }
}

/// Windows of the search: those that a calibration with so many more draws behind its own.
///
/// # Errors
/// When the text is too short.
fn own_windows<'t>(c: &Calibration, count: usize, tokens: &'t [u32]) -> Result<Vec<&'t [u32]>> {
    let behind = c.windows + c.held_out;
    let all = Calibration {
        windows: behind + count,
        held_out: 0,
        ..c.clone()
    };
    Ok(windows(&all, tokens)?.split_off(behind))
}

/// Takes away what a finished search does not need any more; its log stays.
///
/// # Errors
/// When the system refuses.
pub fn tidy(work: &Path, rounds: usize) -> Result<()> {
    for round in 1..=rounds {
        remove(&work.join(format!("round-{round}")))?;
    }
    let teacher = work.join("teacher.safetensors");
    match std::fs::remove_file(&teacher) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: teacher,
            action: "remove",
            source,
        }),
        _ => Ok(()),
    }
}

/// Removes the files of a supernet.
fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            path: folder.to_owned(),
            action: "remove",
            source,
        }),
        _ => Ok(()),
    }
}

/// The SHA-256 of a value's JSON.
pub(crate) fn digest(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map_err(|e| Error::Recipe(e.to_string()))?;
    let bytes = Sha256::digest(text.as_bytes());
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Replaces a file of JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::Recipe(e.to_string()))?;
    let fill = |out: &mut dyn lacuna::model::file::Output| out.write_all(text.as_bytes());
    Ok(lacuna::model::file::replace(path, fill, |_| Ok(()))?)
}
