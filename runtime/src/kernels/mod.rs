//! Compute without knowledge of models.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
