//! What crosses crates: end to end, hostile files, comparisons with references. The tests are in `tests/`.
#![forbid(unsafe_code)]

pub mod language;
