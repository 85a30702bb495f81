//! Prunes models for the Lacuna runtime.
//!
//! A run is a [`Recipe`]: an [`Allocator`] decides how many weights each layer loses, a [`Solver`]
//! decides which, and a [`Refiner`] may mend what is left. The recipe is a small TOML file; the
//! same recipe on the same model gives the same bytes, and its hash travels in the file.
//!
//! ```
//! use lacuna_prune::Recipe;
//! # fn main() -> Result<(), lacuna_prune::Error> {
//! let recipe = Recipe::from_toml("schema = 1\nsparsity = 0.9\nallocator = \"global-magnitude\"")?;
//! # let graph = lacuna::model::Graph::default();
//! # let _ = graph;
//! assert_eq!(recipe.hash().len(), 64);
//! # Ok(())
//! # }
//! ```
//!
//! [`Recipe::plan`] says what would happen, [`Recipe::run`] does it, [`save`] writes the result,
//! reopens it and counts its zeros. [`groups`] cuts channels, heads and neurons, [`cut()`] inner channels of factors that
//! nothing goes through. [`report`] describes models, [`data`] reads labelled images and sequences and [`eval`] measures
//! accuracy on them; [`perplexity`] measures language models on text.

#![forbid(unsafe_code)]

pub mod allocator;
mod calibrated;
pub mod calibration;
mod channels;
pub mod data;
mod error;
pub mod eval;
mod factors;
pub mod groups;
pub mod latency;
mod layer;
mod matrix;
mod origin;
pub mod pagcp;
pub mod page;
pub mod perplexity;
pub mod plan;
mod prepared;
pub mod questions;
mod random;
mod recipe;
pub mod refiner;
pub mod report;
pub mod search;
mod select;
pub mod solver;
mod sparsities;
mod spent;
pub mod structured;
pub mod tasks;
pub mod train;
mod write;

pub use allocator::{Allocation, Allocator, Budget, FloorMode, Ties};
pub use calibrated::{Calibrated, LayerError, Progress};
pub use calibration::{Calibration, Prefix};
pub use channels::{ChannelRecipe, ChannelSettings};
pub use error::{Error, Result};
pub use factors::{CutPair, cut};
pub use layer::Layer;
pub use origin::Origin;
pub use plan::{Plan, PlannedLayer};
pub use prepared::Prepared;
pub use recipe::{AllocatorName, Floor, Pruned, Recipe, RefinerName, SolverName};
pub use refiner::Refiner;
pub use solver::{ColumnSolver, MagnitudeSolver, Pattern, Solver, Task};
pub use sparsities::Found;
pub use write::save;
