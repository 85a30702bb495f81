//! What can go wrong while a file is opened, each with the file and the tensor or node concerned.

use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of the converters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: "open", "read".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is of no known format, or not a well-formed file of its format.
    #[error("{path}: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the value.
        what: String,
    },
    /// A tensor in a file is malformed or of a kind that is not supported.
    #[error("{path}: tensor `{tensor}`: {what}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// A node of an ONNX graph is malformed or not supported.
    #[error("{path}: node `{node}` ({op}): {what}")]
    Node {
        /// The file.
        path: PathBuf,
        /// The node's name.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong, with the value and what is supported.
        what: String,
    },
    /// A state dict does not fit the named architecture, or any.
    #[error("{path}: architecture {arch}: {what}")]
    Arch {
        /// The file.
        path: PathBuf,
        /// The architecture asked for or detected.
        arch: String,
        /// What is wrong: the tensors that are missing or left over, or the known architectures.
        what: String,
    },
    /// The converted graph is refused by the runtime's checks.
    #[error("{path}: {source}")]
    Model {
        /// The file.
        path: PathBuf,
        /// What the runtime says.
        source: lacuna::Error,
    },
}
