//! Device profiles: what a machine has (cores, instruction sets, caches) and what it reaches
//! (multiply-add rate, read bandwidth of each cache level), as a small TOML file; and what the machine is doing
//! while something is measured on it ([`State`], [`Conditions`]).
//!
//! ```
//! use lacuna_targets::Profile;
//! use std::time::Duration;
//!
//! let mut here = Profile::detect();
//! here.measure(Duration::from_millis(20), 1)?;
//! let limits = here.limits_for(1).expect("just measured");
//! println!("{}: {:.0} GFLOP/s", here.name, limits.fma_gflops);
//! # Ok::<(), lacuna_targets::Error>(())
//! ```
#![deny(unsafe_code)]

mod detect;
mod error;
mod measure;
mod profile;
mod state;

pub use error::{Error, Result};
pub use profile::{Caches, Cluster, CoreKind, Level, Limits, Profile, SCHEMA};
pub use state::{Conditions, State};
