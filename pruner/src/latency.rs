//! Milliseconds of layers of any width, from those that were measured.

use crate::groups::Meter;
use crate::{Error, Result};
use lacuna::Model;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the format.
const SCHEMA: u32 = 1;

/// Layers of a model, measured on a device at several widths: what `lacuna-bench MODEL --table FILE` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// The version of the format: 1.
    pub schema: u32,
    /// The layers.
    pub layers: Vec<MeasuredLayer>,
    /// Of a language model: its attentions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attentions: Vec<MeasuredAttention>,
    /// Of a language model: milliseconds of a generated token and of a prompt, all of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_ms: Option<[f64; 2]>,
}

/// What is timed of a language model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// A generated token.
    #[default]
    Token,
    /// A prompt of as many tokens as the table was made with.
    Prompt,
}

/// An attention at several numbers of heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredAttention {
    /// The node's name.
    pub node: String,
    /// Key heads, ascending.
    pub keys: Vec<usize>,
    /// Query heads of a key head, ascending.
    pub queries: Vec<usize>,
    /// Milliseconds of a token: for each number of key heads one for each number of query heads.
    pub ms: Vec<Vec<f64>>,
    /// The same of a prompt.
    pub prompt_ms: Vec<Vec<f64>>,
}

/// A layer at several widths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredLayer {
    /// The weight's name.
    pub weight: String,
    /// Sizes of its first axis, ascending.
    pub first: Vec<usize>,
    /// Sizes of its second axis, ascending.
    pub second: Vec<usize>,
    /// Milliseconds: for each size of the first axis one for each size of the second.
    pub ms: Vec<Vec<f64>>,
    /// Of a language model, where `ms` are those of a token: the same of a prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_ms: Vec<Vec<f64>>,
}

impl LatencyTable {
    /// Reads and checks a table.
    ///
    /// # Errors
    /// When the file is none, with the layer and what is wrong.
    pub fn open(path: &Path) -> Result<LatencyTable> {
        let refuse = |what: String| Error::Data {
            path: path.to_owned(),
            what,
        };
        let text = crate::data::read(path)?;
        let table: LatencyTable = serde_json::from_slice(&text)
            .map_err(|e| refuse(format!("no table of latencies: {e}")))?;
        if table.schema != SCHEMA {
            return Err(refuse(format!(
                "schema {}, this version reads {SCHEMA}",
                table.schema
            )));
        }
        for layer in &table.layers {
            layer
                .check()
                .map_err(|what| refuse(format!("layer `{}`: {what}", layer.weight)))?;
        }
        for one in &table.attentions {
            let both = [Reading::Token, Reading::Prompt].map(|of| one.with(of).check());
            if let Some(what) = both.into_iter().find_map(Result::err) {
                return Err(refuse(format!("attention `{}`: {what}", one.node)));
            }
        }
        if let Some(ms) = (table.whole_ms.iter().flatten()).find(|ms| !is_time(**ms)) {
            return Err(refuse(format!("all of the model: {ms} milliseconds")));
        }
        Ok(table)
    }

    /// Milliseconds of the whole model.
    pub(crate) fn whole(&self, of: Reading) -> Option<f64> {
        self.whole_ms.map(|[token, prompt]| match of {
            Reading::Token => token,
            Reading::Prompt => prompt,
        })
    }

    /// The layers of `model`.
    pub(crate) fn meter(&self, model: &Model, meter: &Meter) -> Result<LatencyMeter> {
        let mut layers = Vec::new();
        for (name, _) in model.prunable() {
            let Some(layer) = self.layers.iter().find(|l| l.weight == name) else {
                return Err(Error::Channels(format!(
                    "the table of latencies has no layer `{name}`: make it from this model"
                )));
            };
            layers.extend(meter.place(name).map(|at| (at, layer.clone())));
        }
        Ok(LatencyMeter { layers })
    }
}

fn is_time(ms: f64) -> bool {
    ms.is_finite() && ms >= 0.0
}

impl MeasuredAttention {
    /// As a layer of these two axes.
    fn with(&self, of: Reading) -> MeasuredLayer {
        MeasuredLayer {
            weight: self.node.clone(),
            first: self.keys.clone(),
            second: self.queries.clone(),
            ms: match of {
                Reading::Token => self.ms.clone(),
                Reading::Prompt => self.prompt_ms.clone(),
            },
            prompt_ms: Vec::new(),
        }
    }

    /// Milliseconds by key heads and query heads of each, none below those of fewer.
    pub(crate) fn reading(&self, of: Reading) -> Option<MeasuredLayer> {
        self.with(of).ascending()
    }
}

impl MeasuredLayer {
    /// The milliseconds that are asked for, none below those of smaller sizes.
    pub(crate) fn reading(&self, of: Reading) -> Option<MeasuredLayer> {
        let ms = match of {
            Reading::Token => &self.ms,
            Reading::Prompt => &self.prompt_ms,
        };
        let layer = MeasuredLayer {
            ms: ms.clone(),
            prompt_ms: Vec::new(),
            ..self.clone()
        };
        layer.ascending()
    }

    fn ascending(mut self) -> Option<MeasuredLayer> {
        for i in 0..self.ms.len() {
            for j in 0..self.ms[i].len() {
                let up = i.checked_sub(1).map(|i| self.ms[i][j]);
                let left = j.checked_sub(1).map(|j| self.ms[i][j]);
                let least = up.into_iter().chain(left).fold(0.0, f64::max);
                self.ms[i][j] = self.ms[i][j].max(least);
            }
        }
        (!self.ms.is_empty()).then_some(self)
    }

    fn check(&self) -> Result<(), String> {
        for sizes in [&self.first, &self.second] {
            if sizes.is_empty() || !sizes.is_sorted_by(|a, b| a < b) || sizes[0] == 0 {
                return Err(format!("sizes {sizes:?} do not ascend from 1"));
            }
        }
        let whole = |ms: &[Vec<f64>]| {
            ms.len() == self.first.len() && ms.iter().all(|row| row.len() == self.second.len())
        };
        if !whole(&self.ms) || !(self.prompt_ms.is_empty() || whole(&self.prompt_ms)) {
            return Err("a time is missing, or one too many".into());
        }
        let mut all = self.ms.iter().chain(&self.prompt_ms).flatten();
        match all.find(|ms| !is_time(**ms)) {
            Some(ms) => Err(format!("{ms} milliseconds")),
            None => Ok(()),
        }
    }

    /// Milliseconds at a width, between the four measured around it; beyond the measured as at its edge.
    pub(crate) fn at(&self, first: usize, second: usize) -> f64 {
        let (i, j) = (place(&self.first, first), place(&self.second, second));
        let row = |i: usize| {
            let row = &self.ms[i];
            row[j.0] * (1.0 - j.2) + row[j.1] * j.2
        };
        row(i.0) * (1.0 - i.2) + row(i.1) * i.2
    }
}

/// The measured sizes around one, and the share of the second.
fn place(sizes: &[usize], size: usize) -> (usize, usize, f64) {
    let after = sizes.partition_point(|&s| s < size).min(sizes.len() - 1);
    let before = after.saturating_sub(1);
    if size >= sizes[after] || before == after {
        return (after, after, 0.0);
    }
    let span = (sizes[after] - sizes[before]) as f64;
    (
        before,
        after,
        size.saturating_sub(sizes[before]) as f64 / span,
    )
}

/// Milliseconds of a model by the shapes of its weights.
pub(crate) struct LatencyMeter {
    /// Where the meter has the weight, and its times.
    layers: Vec<(usize, MeasuredLayer)>,
}

impl LatencyMeter {
    pub fn total(&self, shapes: &[Vec<usize>]) -> f64 {
        let one = |(at, layer): &(usize, MeasuredLayer)| {
            let axis = |i: usize| shapes[*at].get(i).copied().unwrap_or(1);
            layer.at(axis(0), axis(1))
        };
        self.layers.iter().map(one).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_between_those_measured() {
        let layer = MeasuredLayer {
            weight: "w".into(),
            first: vec![4, 8],
            second: vec![1, 3, 9],
            ms: vec![vec![1.0, 2.0, 5.0], vec![2.0, 4.0, 10.0]],
            prompt_ms: Vec::new(),
        };
        layer.check().unwrap();
        assert_eq!(layer.at(4, 3), 2.0);
        assert_eq!(layer.at(6, 2), 2.25);
        assert_eq!(layer.at(8, 6), 7.0);
        assert_eq!((layer.at(1, 1), layer.at(20, 40)), (1.0, 10.0));
    }

    #[test]
    fn readings_do_not_fall_with_size() {
        let layer = MeasuredLayer {
            weight: "w".into(),
            first: vec![1, 2],
            second: vec![1, 2],
            ms: vec![vec![3.0, 2.0], vec![1.0, 4.0]],
            prompt_ms: Vec::new(),
        };
        let found = layer.reading(Reading::Token).unwrap().ms;
        assert_eq!(found, [[3.0, 3.0], [3.0, 4.0]]);
        assert!(layer.reading(Reading::Prompt).is_none());
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        let layer = |first: Vec<usize>, ms: Vec<Vec<f64>>| MeasuredLayer {
            weight: "w".into(),
            first,
            second: vec![1],
            ms,
            prompt_ms: Vec::new(),
        };
        for bad in [
            layer(vec![2, 2], vec![vec![1.0], vec![1.0]]),
            layer(vec![0], vec![vec![1.0]]),
            layer(vec![1], vec![]),
            layer(vec![1], vec![vec![f64::NAN]]),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
