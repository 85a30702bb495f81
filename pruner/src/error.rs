//! What can go wrong, each with the file, weight or value that it is about.

use std::path::PathBuf;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of the pruner.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] lacuna::Error),
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "write".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A sparsity that is none.
    #[error(
        "sparsity {0} is not a share of the weights: give a number from 0 up to, not including, 1"
    )]
    Sparsity(f64),
    /// The model has nothing that this crate prunes.
    #[error("the model has no prunable weight: no Conv, Gemm or MatMul reads a constant")]
    NothingToPrune,
    /// Include and exclude patterns leave nothing.
    #[error("the include and exclude patterns leave none of the {0} prunable weights")]
    NothingSelected(usize),
    /// A pattern is malformed or matches no weight.
    #[error("pattern `{pattern}`: {what}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        what: String,
    },
    /// A weight that cannot be ranked.
    #[error(
        "weight `{weight}`: element {index} (flat index) is {value} and cannot be ranked; repair the checkpoint, or exclude the weight"
    )]
    NotFinite {
        /// The weight's name.
        weight: String,
        /// Its flat index, row-major.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A weight of integers.
    #[error("weight `{weight}` is of dtype {dtype}; F32, F16 and BF16 can be pruned")]
    WeightType {
        /// The weight's name.
        weight: String,
        /// Its dtype.
        dtype: lacuna::DType,
    },
    /// The floors keep more weights than the sparsity leaves.
    #[error(
        "the floor cannot be met: keeping min({sigma}, size) weights in each of {layers} layers takes {needed} weights, \
         but sparsity {sparsity} leaves (1 - {sparsity}) * {total} = {left}; \
         the largest feasible sparsity is {largest:.6}, or lower the floor"
    )]
    Floor {
        /// The floor, in weights per layer.
        sigma: usize,
        /// Layers in the set.
        layers: usize,
        /// The sum of `min(sigma, size)`.
        needed: usize,
        /// The sparsity asked for.
        sparsity: f64,
        /// Weights of the set.
        total: usize,
        /// Weights that the sparsity leaves.
        left: usize,
        /// The largest sparsity that the floor allows, rounded down.
        largest: f64,
    },
    /// The rescaling of the `refine` floors does not reach the target.
    #[error(
        "the refine floors reach sparsity {reached:.6} instead of {target}: only layers that lost weights in the first \
         ranking are rescaled; use the floor mode `global`"
    )]
    Refine {
        /// The sparsity reached.
        reached: f64,
        /// The sparsity asked for.
        target: f64,
    },
    /// A recipe is malformed.
    #[error("recipe: {0}")]
    Recipe(String),
    /// The written file is not what was planned.
    #[error(
        "{path}: weight `{weight}` has {found} zeros after writing, the plan says {planned}; the file is not to be trusted"
    )]
    Verify {
        /// The file.
        path: PathBuf,
        /// The weight's name.
        weight: String,
        /// Zeros in the reopened file.
        found: usize,
        /// Zeros that the plan says.
        planned: usize,
    },
    /// A data set is not what it should be.
    #[error("{path}: {what}")]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with the value.
        what: String,
    },
    /// A label that the model has no class for.
    #[error("{sample}: label {label}, but the model has {classes} classes (0 to {})", classes.saturating_sub(1))]
    Label {
        /// The file, or the file and the index in it.
        sample: String,
        /// The label.
        label: usize,
        /// Outputs of the model.
        classes: usize,
    },
    /// Training cannot start or go on.
    #[error("training: {0}")]
    Training(String),
    /// The loss is no number any more.
    #[error(
        "training: the loss is {loss} in epoch {epoch}, step {step} (learning rate {rate}); lower the learning rate, or \
         start from the last checkpoint"
    )]
    Diverged {
        /// NaN or an infinity.
        loss: f64,
        /// The epoch, from 1.
        epoch: usize,
        /// The step of the epoch, from 1.
        step: usize,
        /// The learning rate of the step.
        rate: f64,
    },
    /// A task does not fit its model or its data.
    #[error("task `{task}`: {what}")]
    Task {
        /// Its name.
        task: String,
        /// What is wrong.
        what: String,
    },
    /// Channels cannot leave a factor of low rank.
    #[error("weight `{weight}`: {what}")]
    Factor {
        /// The weight's name.
        weight: String,
        /// What is wrong.
        what: String,
    },
    /// Channels cannot be cut as asked.
    #[error("channels: {0}")]
    Channels(String),
    /// A cut graph is not what its groups say.
    #[error("cutting channels: node `{node}`: {what}")]
    Cut {
        /// The node.
        node: String,
        /// What is wrong.
        what: String,
    },
    /// Calibration cannot start or go on.
    #[error("calibration: {0}")]
    Calibration(String),
    /// The model does not fit the evaluation.
    #[error("evaluation: {0}")]
    Evaluation(String),
}
