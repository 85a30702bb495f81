//! What a language model needs beside its graph and its tokenizer.

use serde::{Deserialize, Serialize};

/// How a language model is fed and when it stops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Positions that the model was made for.
    pub context: usize,
    /// The token that starts a sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// Whether the token that starts a sequence is put before every text.
    #[serde(default)]
    pub add_bos: bool,
    /// The tokens that end a text.
    #[serde(default)]
    pub eos: Vec<u32>,
    /// The Jinja template that turns a conversation into text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
}
