//! What computes gradients, and where.

use super::loader::Batch;
use super::network::Network;
use super::tape::Tape;
use crate::tasks::Found;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the training loop needs of an engine.
pub(super) trait Engine {
    /// The losses of a batch, task by task. Leaves the gradients of their weighted sum's mean in the network, and
    /// moves the running statistics of its normalisations on.
    fn step(&mut self, network: &mut Network, batch: &Batch, smoothing: f32) -> Result<Vec<Found>>;
}

/// Where gradients are computed. All else is done on the CPU and is the same for every device, so that a run may go on
/// on another one; but another device rounds otherwise, and only [`Device::Cpu`] gives the same bytes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The CPU, by this crate's own gradients: `cpu`.
    #[default]
    Cpu,
    /// The CPU, by candle's: `candle`. Slower; what a GPU is held against.
    Candle,
    /// A GPU, by candle: `cuda:0`, `cuda:1` and so on.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = |n: &str| n.parse().ok().map(Device::Cuda);
        match text {
            "cpu" => Some(Device::Cpu),
            "candle" => Some(Device::Candle),
            "cuda" => Some(Device::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| format!("`{text}` is no device: one of cpu, candle, cuda:N"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Candle => f.write_str("candle"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Device, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

/// The engine of a device, for `network`.
pub(super) fn open(device: Device, network: &Network) -> Result<Box<dyn Engine>> {
    let lacks = |what: &str, feature: &str| {
        Err(Error::Training(format!(
            "device {device}: this program was built without {what}; build it with `cargo build --release -p lacuna-prune \
             --features {feature}`"
        )))
    };
    match device {
        Device::Cpu => Ok(Box::new(Tape::new()?)),
        Device::Cuda(_) if !cfg!(feature = "cuda") => lacks(
            "CUDA",
            "cuda`, where nvcc and an NVIDIA driver are, or train on `cpu",
        ),
        #[cfg(any(test, feature = "candle"))]
        _ => Ok(Box::new(super::candle::Candle::new(device, network)?)),
        #[cfg(not(any(test, feature = "candle")))]
        _ => {
            let _ = network;
            lacks("candle", "candle")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "candle", "cuda:0", "cuda:12"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1x"] {
            let e = text.parse::<Device>().unwrap_err();
            assert!(e.contains(&format!("`{text}`")), "{e}");
        }
    }
}
