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
        Ok(table)
    }

    /// The layers of `model`.
    pub(super) fn meter(&self, model: &Model, meter: &Meter) -> Result<LatencyMeter> {
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

impl MeasuredLayer {
    fn check(&self) -> Result<(), String> {
        for sizes in [&self.first, &self.second] {
            if sizes.is_empty() || !sizes.is_sorted_by(|a, b| a < b) || sizes[0] == 0 {
                return Err(format!("sizes {sizes:?} do not ascend from 1"));
            }
        }
        let rows = self.ms.iter().map(Vec::len);
        if self.ms.len() != self.first.len() || rows.clone().any(|n| n != self.second.len()) {
            return Err("a time is missing, or one too many".into());
        }
        match self
            .ms
            .iter()
            .flatten()
            .find(|ms| !(ms.is_finite() && **ms >= 0.0))
        {
            Some(ms) => Err(format!("{ms} milliseconds")),
            None => Ok(()),
        }
    }

    /// Milliseconds at a width, between the four measured around it; beyond the measured as at its edge.
    pub(super) fn at(&self, first: usize, second: usize) -> f64 {
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
pub(super) struct LatencyMeter {
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
        };
        layer.check().unwrap();
        assert_eq!(layer.at(4, 3), 2.0);
        assert_eq!(layer.at(6, 2), 2.25);
        assert_eq!(layer.at(8, 6), 7.0);
        assert_eq!((layer.at(1, 1), layer.at(20, 40)), (1.0, 10.0));
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        let layer = |first: Vec<usize>, ms: Vec<Vec<f64>>| MeasuredLayer {
            weight: "w".into(),
            first,
            second: vec![1],
            ms,
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
