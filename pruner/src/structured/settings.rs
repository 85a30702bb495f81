//! What decides the result of a run, as TOML.

use super::{Accumulation, HeadMode, LatencyBudget, Local, Spread};
use crate::search::{SearchSettings, digest};
use crate::{Calibration, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the format.
const SCHEMA: u32 = 1;

/// Everything that decides the result of a run, given the model: a small TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Structured {
    /// The version of the format: 1.
    pub schema: u32,
    /// The share of the parameters of all attentions and MLPs that goes, in `[0, 1)`. With `latency` it decides nothing.
    pub sparsity: f64,
    /// The milliseconds of the model, in the place of the sparsity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyBudget>,
    /// Which heads go together.
    #[serde(default)]
    pub heads: HeadMode,
    /// What the levels of a supernet are to the blocks behind it.
    #[serde(default)]
    pub accumulation: Accumulation,
    /// How a matrix loses its inputs.
    #[serde(default)]
    pub local: Local,
    /// How widths are told where none are given or looked for.
    #[serde(default, skip_serializing_if = "Spread::is_even")]
    pub spread: Spread,
    /// The text that the model is pruned on.
    pub calibration: Calibration,
    /// How widths are looked for; without, `spread` tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchSettings>,
    /// Heads or neurons that are left, by the name of the weight that reads them; told by a search
    /// or by `spread` where there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub widths: BTreeMap<String, usize>,
}

impl Structured {
    /// These settings as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Reads settings.
    ///
    /// # Errors
    /// When a key is unknown, a value is none, or the version is another.
    pub fn from_toml(text: &str) -> Result<Structured> {
        let read: Structured = toml::from_str(text).map_err(|e| Error::Recipe(e.to_string()))?;
        match read.schema == SCHEMA {
            true => Ok(read),
            false => Err(Error::Recipe(format!("schema {}: this is 1", read.schema))),
        }
    }

    /// Their SHA-256, without where the texts lie.
    pub fn hash(&self) -> Result<String> {
        digest(&Structured {
            calibration: self.calibration.anywhere(),
            ..self.clone()
        })
    }
}
