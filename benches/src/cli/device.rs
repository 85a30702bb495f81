//! `--device`: what a model is to run on.

use std::str::FromStr;

/// A device of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Its processor.
    Cpu,
    /// A GPU of NVIDIA, by number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => (n.parse().map(Device::Cuda))
                .map_err(|_| format!("expected a number after cuda:, not {n:?}")),
            _ => Err("expected cpu, cuda or cuda:N".into()),
        }
    }
}

/// Why nothing can be measured on a GPU.
#[cfg(feature = "cuda")]
pub fn refusal(ordinal: usize) -> String {
    match lacuna::cuda::Device::open(ordinal) {
        Err(e) => e.to_string(),
        Ok(device) => {
            let (major, minor) = device.capability();
            format!(
                "cuda:{ordinal} is there ({}, compute capability {major}.{minor}), but models do not run on GPUs yet",
                device.name()
            )
        }
    }
}

/// Why nothing can be measured on a GPU.
#[cfg(not(feature = "cuda"))]
pub fn refusal(_: usize) -> String {
    "this lacuna-bench was built without its feature cuda".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:12".parse(), Ok(Device::Cuda(12)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cpu:0"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
