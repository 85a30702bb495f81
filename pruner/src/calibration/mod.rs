//! What layers see when a model runs on a text: collected block by block, for every solver.
//!
//! The hidden states of all windows lie in memory, `windows * window * width` f32; of the weights and second
//! moments those of one block do.

mod blocks;
mod collect;
mod gram;
mod windows;

pub(crate) use blocks::{Block, Blocks};
pub(crate) use collect::{States, Taps};
pub(crate) use gram::energy;
pub use gram::{Gram, Moments};
pub use windows::windows;

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The table `[calibration]` of a recipe: which text a model is calibrated on, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// UTF-8 texts, or files of tokens (little-endian u32, named `*.tokens`), one behind the other.
    pub texts: Vec<PathBuf>,
    /// The SHA-256 of the tokens: other ones are refused. Empty where any will do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Windows of the text, drawn without overlap.
    #[serde(default = "default_windows")]
    pub windows: usize,
    /// Tokens of a window.
    #[serde(default = "default_window")]
    pub window: usize,
    /// The seed of the draw.
    #[serde(default)]
    pub seed: u64,
    /// What is added to the diagonal of the second moments, as a share of its mean.
    #[serde(default = "default_damping")]
    pub damping: f64,
    /// Which model the inputs of a block come from.
    #[serde(default)]
    pub prefix: Prefix,
    /// Further windows, on which the error of each layer is measured and nothing is fitted.
    #[serde(default)]
    pub held_out: usize,
}

fn default_windows() -> usize {
    128
}

fn default_window() -> usize {
    512
}

fn default_damping() -> f64 {
    0.01
}

/// Which model the inputs of a block come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefix {
    /// The blocks before as they were: every block sees what it saw before pruning.
    Dense,
    /// The blocks before as they are now: what they lost is in the inputs.
    #[default]
    Pruned,
}

impl Default for Calibration {
    /// 128 windows of 512 tokens, 1 % damping, inputs from the pruned blocks.
    fn default() -> Calibration {
        Calibration {
            texts: Vec::new(),
            sha256: String::new(),
            windows: default_windows(),
            window: default_window(),
            seed: 0,
            damping: default_damping(),
            prefix: Prefix::default(),
            held_out: 0,
        }
    }
}

impl Calibration {
    /// The same without where its texts lie.
    pub(crate) fn anywhere(&self) -> Calibration {
        let name = |p: &PathBuf| p.file_name().map(PathBuf::from).unwrap_or_default();
        Calibration {
            texts: self.texts.iter().map(name).collect(),
            ..self.clone()
        }
    }

    /// Refuses settings that nothing can be calibrated with.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Calibration(what));
        if self.windows == 0 || self.window < 2 {
            return refuse(format!(
                "{} windows of {} tokens: give one window and two tokens at least",
                self.windows, self.window
            ));
        }
        if !(self.damping.is_finite() && self.damping >= 0.0) {
            return refuse(format!(
                "damping {}: give a share of the mean of the diagonal, such as 0.01",
                self.damping
            ));
        }
        Ok(())
    }
}
