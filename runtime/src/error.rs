//! What can go wrong, each with the file, tensor, node or value that it is about.

use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: "open", "map", "write", "rename".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {what}")]
    File {
        /// The file, or a label for bytes in memory.
        path: PathBuf,
        /// What is wrong, with the value.
        what: String,
    },
    /// A tensor in a file is not what it should be.
    #[error("{path}: tensor `{tensor}`: {what}")]
    FileTensor {
        /// The file, or a label for bytes in memory.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// The model in a file is not sound.
    #[error("{path}: {source}")]
    InFile {
        /// The file, or a label for bytes in memory.
        path: PathBuf,
        /// What is wrong with its graph or a weight.
        source: Box<Error>,
    },
    /// A weight contradicts itself or its use.
    #[error("weight `{weight}`: {what}")]
    Weight {
        /// The weight's name.
        weight: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// A node is malformed or does not fit its inputs.
    #[error("node `{node}` ({op}): {what}")]
    Node {
        /// The node's name.
        node: String,
        /// Its operator.
        op: &'static str,
        /// What is wrong, with the value.
        what: String,
    },
    /// A graph is malformed.
    #[error("graph `{graph}`: {what}")]
    Graph {
        /// The graph's name.
        graph: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// A tensor that the app passed does not fit the session.
    #[error("{kind} `{name}`: {what}")]
    Binding {
        /// "input" or "output".
        kind: &'static str,
        /// The name in the graph.
        name: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// Candle refused an operation.
    #[cfg(feature = "candle")]
    #[error("candle: {0}")]
    Candle(#[source] Box<candle_core::Error>),
    /// A GPU refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::Error),
    /// An option asks for something that is not there.
    #[error("{0}")]
    Option(String),
}

impl Error {
    pub(crate) fn node(node: &crate::model::Node, what: impl Into<String>) -> Error {
        Error::Node {
            node: node.name.clone(),
            op: node.op.name(),
            what: what.into(),
        }
    }
}
