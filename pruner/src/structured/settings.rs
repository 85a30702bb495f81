//! What decides the result of a run, as TOML.

use super::{Accumulation, Evolution, HeadMode, Local, Spread, digest};
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
    /// The share of the parameters of all attentions and MLPs that goes, in `[0, 1)`.
    pub sparsity: f64,
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

/// How widths are looked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// Rounds, each with half the interval of the one before, around what that found.
    pub rounds: usize,
    /// The first interval between levels, as a share of a module.
    pub interval: f64,
    /// The most levels on each side of the middle.
    pub levels: usize,
    /// Windows of the text, others than those that the model is pruned on.
    pub windows: usize,
    /// The likeliest tokens of a position that answers are compared on.
    pub top: usize,
    /// How a round is searched.
    #[serde(flatten)]
    pub evolution: Evolution,
}

/// Tokens on which candidates are compared, and how many go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Tokens, in whole windows.
    pub tokens: usize,
    /// Candidates that go on.
    pub keep: usize,
}

impl SearchSettings {
    /// What takes a model of 135 million parameters within an hour on two cores.
    pub fn hour() -> SearchSettings {
        let stage = |tokens, keep| Stage { tokens, keep };
        SearchSettings {
            rounds: 2,
            interval: 0.125,
            levels: 4,
            windows: 32,
            top: 256,
            evolution: Evolution {
                generations: 16,
                offspring: 24,
                swaps: 4,
                surrogate: true,
                stages: vec![stage(1024, 6), stage(4096, 2), stage(12288, 1)],
            },
        }
    }

    /// What shows that everything works.
    pub fn quick() -> SearchSettings {
        let stage = |tokens, keep| Stage { tokens, keep };
        SearchSettings {
            rounds: 1,
            windows: 8,
            evolution: Evolution {
                generations: 4,
                offspring: 8,
                swaps: 4,
                surrogate: true,
                stages: vec![stage(512, 3), stage(2048, 1)],
            },
            ..SearchSettings::hour()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(format!("search: {what}")));
        let e = &self.evolution;
        if self.rounds == 0 || e.offspring == 0 || self.levels == 0 || self.top == 0 {
            return refuse("rounds, offspring, levels and top are 1 at least".into());
        }
        if !(self.interval > 0.0 && self.interval < 1.0) {
            return refuse(format!(
                "interval {}: give a share of a module",
                self.interval
            ));
        }
        if e.stages.is_empty() || self.windows == 0 {
            return refuse("give a stage and a window at least".into());
        }
        Ok(())
    }
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
