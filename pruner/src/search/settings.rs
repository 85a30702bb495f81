//! How a search goes on.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How levels are looked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// Rounds, each with half the interval of the one before, around what that found.
    pub rounds: usize,
    /// The first interval between levels, as a share of a part.
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

/// How a generation is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evolution {
    /// Generations of a round.
    pub generations: usize,
    /// Candidates of a generation.
    pub offspring: usize,
    /// Swaps of a candidate: the smaller of two numbers drawn from 1 to here.
    pub swaps: usize,
    /// Whether a model of the parts' errors, fitted to all evaluations of the round, picks three candidates of four. The
    /// first generation then also measures every part a level up and a level down.
    #[serde(default)]
    pub surrogate: bool,
    /// Tokens on which candidates are compared, and how many go on.
    pub stages: Vec<Stage>,
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

    /// The same for sparsities: five of them, five points apart, in one round.
    pub fn sparsities(self) -> SearchSettings {
        SearchSettings {
            rounds: 1,
            interval: 0.05,
            levels: 2,
            ..self
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(format!("search: {what}")));
        let e = &self.evolution;
        if self.rounds == 0 || e.offspring == 0 || self.levels == 0 || self.top == 0 {
            return refuse("rounds, offspring, levels and top are 1 at least".into());
        }
        if !(self.interval > 0.0 && self.interval < 1.0) {
            return refuse(format!(
                "interval {}: give a share of a part",
                self.interval
            ));
        }
        if e.stages.is_empty() || self.windows == 0 {
            return refuse("give a stage and a window at least".into());
        }
        Ok(())
    }
}
