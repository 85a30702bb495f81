//! Training: gradual pruning and recovery.
//!
//! One loop, and an engine that computes gradients. On the CPU a tape walks the graph with our own: values of four axes
//! are kept channels last, so that convolutions and their gradients are strided products, and work is cut by sizes alone,
//! so that a run gives the same bytes on any number of threads. On a GPU candle computes them (feature `cuda`).

mod axes;
mod border;
mod buffers;
#[cfg(any(test, feature = "candle"))]
mod candle;
mod cell;
mod checkpoint;
mod compile;
mod conv;
mod dense;
mod engine;
#[cfg(test)]
mod engines;
#[cfg(test)]
mod gradients;
mod instance;
mod layout;
mod loader;
mod network;
mod norm;
mod normalise;
mod optimiser;
mod parts;
mod pointwise;
mod prepare;
mod recurrent;
mod resample;
mod run;
#[cfg(test)]
mod sequences;
mod settings;
mod sum;
mod tape;
mod window;

pub use cell::is_recurrent;
pub use engine::Device;
pub use prepare::refuses;
pub use run::{Effort, EpochRow, Progress, Trained, distill, forget, train};
pub use settings::{
    Augment, Border, DataSettings, Gradual, Optimizer, RateCurve, Schedule, SparsityCurve,
    TrainSettings,
};
