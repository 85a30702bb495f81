//! The on-device benchmark: opens a model, measures what loading, the first run and steady runs
//! take, and sets every layer beside the same layer run dense and beside the machine's limits.
//!
//! [`run`] measures, of a language model prefill and decode apart; [`report`] turns a [`Report`] into text, JSON, CSV or a page. The binary
//! `lacuna-bench` only reads flags and prints.
#![forbid(unsafe_code)]

mod audit;
mod bench;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod decoder_table;
mod error;
mod input;
mod layer;
mod memory;
mod model;
pub mod networks;
pub mod on;
pub mod report;
mod runner;
pub mod shapes;
mod stats;
mod table;

pub use audit::{Audit, AuditLayer, Compared, FormTime, TOLERANCE, Verdict, audit, tune};
pub use bench::{Config, Measured, Report, costs, measure, run};
#[cfg(feature = "cuda")]
pub use cuda::{CudaConfig, CudaReport, CudaRun, CudaStep, cuda, cuda_model, cuda_text};
pub use decoder::{Beside, DecoderReport};
pub use decoder_table::TableAttention;
pub use error::{Error, Result};
pub use input::{indices, normal};
pub use layer::{Layer, place_under_limits, set_beside_dense, share_out};
pub use memory::Resident;
pub use model::{Facts, Opened, open};
pub use stats::{Summary, median};
pub use table::{Table, TableLayer, table};

/// The version of the JSON object and of the layers that [`report::json`] writes.
pub const SCHEMA: u32 = 1;
