//! What a network may cost, and what it costs by the units that are gone.

use crate::groups::{Groups, Meter};
use crate::latency::{LatencyMeter, LatencyTable};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Saved {
    /// Multiply-accumulates.
    Flops,
    /// Parameters.
    Parameters,
    /// Bytes of the weights, stored dense.
    Bytes,
    /// Milliseconds, by a table of measured layers.
    Latency,
}

/// What may be left of the network, as a share of what it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Of what.
    pub of: Saved,
    /// The share, above 0 and up to 1.
    pub share: f64,
    /// The measured layers, for [`Saved::Latency`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<LatencyTable>,
}

impl Budget {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(Error::Channels(format!(
                "{} is no share above 0 and up to 1 of what may be left",
                self.share
            )));
        }
        match (self.of, &self.table) {
            (Saved::Latency, None) => Err(Error::Channels(
                "a budget of latency needs a table of measured layers".into(),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn meter(&self, groups: &Groups<'_>) -> Result<Costs> {
        let meter = Meter::new(groups)?;
        let latency = match (self.of, &self.table) {
            (Saved::Latency, Some(table)) => Some(table.meter(groups.model(), &meter)?),
            _ => None,
        };
        Ok(Costs {
            of: self.of,
            meter,
            latency,
        })
    }
}

/// What a model costs by how many units of each group are gone.
pub(super) struct Costs {
    of: Saved,
    meter: Meter,
    latency: Option<LatencyMeter>,
}

impl Costs {
    /// Multiply-accumulates, parameters, bytes or milliseconds.
    pub fn total(&self, removed: &[usize]) -> f64 {
        if let Some(latency) = &self.latency {
            return latency.total(&self.meter.shapes(removed));
        }
        let cost = self.meter.total(removed);
        match self.of {
            Saved::Parameters => cost.parameters as f64,
            Saved::Bytes => cost.bytes as f64,
            Saved::Flops | Saved::Latency => cost.macs as f64,
        }
    }
}
