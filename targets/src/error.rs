//! What can go wrong with a profile.

use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: "read", "write", "rename".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is no TOML, or lacks a key, or a key has the wrong type.
    #[error("{path}: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's answer, with line and column.
        what: String,
    },
    /// A value is out of range or contradicts another.
    #[error("{}`{key}` = {value}: {what}", place(.path))]
    Value {
        /// The file, when the profile comes from one.
        path: Option<PathBuf>,
        /// The key, with indices: `clusters[0].count`.
        key: String,
        /// The value as it stands.
        value: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A measurement could not be set up.
    #[error("cannot measure: {what}")]
    Measure {
        /// The reason, with the value.
        what: String,
    },
}

fn place(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map(|p| format!("{}: ", p.display()))
        .unwrap_or_default()
}
