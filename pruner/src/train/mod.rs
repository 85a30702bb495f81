//! Training on a CPU: gradual pruning and recovery.
//!
//! A tape walks the graph with our own gradients. Values of four axes are kept channels last, so that convolutions
//! and their gradients are strided products. Work is cut by sizes alone, so that a run gives the same bytes on any
//! number of threads.

mod axes;
mod border;
mod buffers;
mod checkpoint;
mod compile;
mod conv;
mod dense;
#[cfg(test)]
mod gradients;
mod layout;
mod loader;
mod loss;
mod norm;
mod optimiser;
mod parts;
mod pointwise;
mod prepare;
mod run;
mod settings;
mod sum;
mod tape;
mod window;

pub use prepare::refuses;
pub use run::{EpochRow, Progress, TrainFiles, Trained, forget, train};
pub use settings::{
    Augment, Border, DataSettings, Gradual, Optimizer, RateCurve, Schedule, SparsityCurve,
    TrainSettings,
};
