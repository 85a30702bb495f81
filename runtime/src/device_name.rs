//! What a model is to run on, as `--device` says it.

use std::fmt;
use std::str::FromStr;

/// A device of this machine: `cpu`, `cuda` or `cuda:N`, and `cuda:N,cpu` for the processor where there is no such GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// Its processor.
    Cpu,
    /// A GPU of NVIDIA, by number.
    Cuda {
        /// Which.
        ordinal: usize,
        /// The processor, where there is no such GPU.
        or_cpu: bool,
    },
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda { ordinal, or_cpu } => {
                let rest = if *or_cpu { ",cpu" } else { "" };
                write!(f, "cuda:{ordinal}{rest}")
            }
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceName, String> {
        let (first, or_cpu) = match text.strip_suffix(",cpu") {
            Some(first) => (first, true),
            None => (text, false),
        };
        let cuda = |ordinal| DeviceName::Cuda { ordinal, or_cpu };
        match first.split_once(':') {
            None if text == "cpu" => Ok(DeviceName::Cpu),
            None if first == "cuda" => Ok(cuda(0)),
            Some(("cuda", n)) => (n.parse().map(cuda))
                .map_err(|_| format!("expected a number after cuda:, not {n:?}")),
            _ => Err("expected cpu, cuda or cuda:N, or cuda:N,cpu".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        let cuda = |ordinal, or_cpu| Ok(DeviceName::Cuda { ordinal, or_cpu });
        assert_eq!("cuda".parse(), cuda(0, false));
        assert_eq!("cuda:12".parse(), cuda(12, false));
        assert_eq!("cuda,cpu".parse(), cuda(0, true));
        assert_eq!("cuda:3,cpu".parse(), cuda(3, true));
        for text in ["cpu", "cuda:0", "cuda:7,cpu"] {
            assert_eq!(text.parse::<DeviceName>().unwrap().to_string(), text);
        }
        for wrong in [
            "", "gpu", "cuda:", "cuda:-1", "cpu:0", "cpu,cpu", "cuda,gpu", ",cpu",
        ] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }
}
