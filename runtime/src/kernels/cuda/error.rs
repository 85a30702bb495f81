//! What can go wrong with a GPU.

/// The result of every fallible call of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of this module.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver is not installed.
    #[error("no CUDA device: the driver's library libcuda is not found")]
    NoDriver,
    /// A library beside the driver is not installed.
    #[error("{library} is not found")]
    NoLibrary {
        /// Its name.
        library: &'static str,
    },
    /// The driver, or a library beside it, is too old.
    #[error("CUDA: {symbol} is not found; CUDA 11.4 or later is needed")]
    NoSymbol {
        /// What it lacks.
        symbol: &'static str,
    },
    /// The machine has fewer devices.
    #[error("no CUDA device {ordinal}: {} here", devices(.count))]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than every PTX that is shipped.
    #[error(
        "{device}: compute capability {}.{}, 7.2 or later is needed",
        .capability.0,
        .capability.1
    )]
    TooOld {
        /// The device's name.
        device: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The driver refused.
    #[error("CUDA: {call}: {what}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// The driver's answer.
        what: String,
    },
    /// The device has no such kernel: bfloat16 and tensor cores need compute capability 8.0.
    #[error("kernel `{kernel}` is not among those of compute capability {capability}")]
    NoKernel {
        /// Its name.
        kernel: String,
        /// Of the PTX that was loaded.
        capability: &'static str,
    },
    /// An argument does not fit the others.
    #[error("kernel `{kernel}`: {what}")]
    Argument {
        /// The kernel's name.
        kernel: String,
        /// What is wrong, with the value.
        what: String,
    },
    /// A weight is not what a kernel takes.
    #[error("a weight for a GPU: {0}")]
    Weight(String),
    /// An arena is full.
    #[error("an arena of {bytes} bytes has no room for {wanted} more: {used} are used")]
    Full {
        /// Its size.
        bytes: usize,
        /// Of them in use.
        used: usize,
        /// What was asked for.
        wanted: usize,
    },
}

fn devices(count: &usize) -> String {
    match count {
        0 => "there is none".into(),
        1 => "there is one".into(),
        n => format!("there are {n}"),
    }
}
