//! Where the model of a recipe comes from.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The table `[model]` of a recipe: a file or folder, or an architecture whose weights are random.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file or folder, relative to the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The SHA-256 of its content: another model is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The architecture of a state dict, or of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Attention heads of a BERT state dict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Give an encoder the output `sentence_embedding`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sentence: bool,
    /// The height and width of the images of a convolutional network, where they are not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_size: Option<usize>,
    /// The seed of random weights.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init_seed: u64,
}

impl Origin {
    /// The same without its place and content.
    pub(crate) fn anywhere(&self) -> Origin {
        Origin {
            file: None,
            sha256: None,
            ..self.clone()
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
