//! What can go wrong in a benchmark.

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime refused the model, an option or a run.
    #[error(transparent)]
    Runtime(#[from] lacuna::Error),
    /// The model could not be opened.
    #[error(transparent)]
    Convert(#[from] lacuna_convert::Error),
    /// The device profile could not be read or measured.
    #[error(transparent)]
    Target(#[from] lacuna_targets::Error),
    /// Another machine could not be used.
    #[error("{target}: {what}")]
    Device {
        /// The machine, as it was named.
        target: String,
        /// What went wrong.
        what: String,
    },
    /// The request does not fit the model or the profile.
    #[error("{0}")]
    Option(String),
}
