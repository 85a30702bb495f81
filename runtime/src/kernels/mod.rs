//! Compute without knowledge of models.

pub mod cpu;
