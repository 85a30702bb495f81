//! What the program reads from its command line and does with it.

pub mod args;
pub mod series;
pub mod state;
