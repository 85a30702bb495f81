//! A model and a device become steps, once: rewrite, choose, place.

mod arena;
mod choose;
mod costs;
#[cfg(feature = "cuda")]
pub(crate) mod device;
mod form;
mod gate;
mod lower;
mod pack_cache;
mod rewrite;
mod tuned;

pub use costs::Costs;
pub use form::{Candidate, Chosen, Form, Forms, Variant};
pub use pack_cache::PackReport;
pub use tuned::{Tuned, density_bucket, machine};

use crate::kernels::cpu::{Isa, Kernel};
use crate::model::{Dim, Graph, Op, Shapes, Symbols, axis_index, infer_shapes};
use crate::{DType, Error, Model, Result};
use pack_cache::PackCache;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a plan is made for.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The instruction set.
    pub isa: Isa,
    /// Use only dense kernels.
    pub dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are; `None` rounds where the
    /// instruction set [multiplies](Isa::multiplies) such.
    pub round_inputs: Option<bool>,
    /// Sizes of the symbolic dimensions; those not named are 1.
    pub symbols: Symbols,
    /// Keep keys and values for this many positions; `None` for runs that stand alone.
    pub capacity: Option<usize>,
    /// Threads that will run it, and that pack its weights.
    pub threads: usize,
    /// Forms to use, by weight; they go before everything else.
    pub forms: Forms,
    /// Measured choices; they go before estimates.
    pub tuned: Option<Tuned>,
    /// Constants of the estimate that ranks forms.
    pub costs: Costs,
    /// A directory where packed weights are kept for the next time.
    pub pack_cache: Option<PathBuf>,
}

impl PlanOptions {
    /// Options for an instruction set: one thread, every choice left to the plan.
    pub fn new(isa: Isa) -> PlanOptions {
        PlanOptions {
            isa,
            dense: false,
            round_inputs: Some(false),
            symbols: Symbols::new(),
            capacity: None,
            threads: 1,
            forms: Forms::new(),
            tuned: None,
            costs: Costs::default(),
            pack_cache: None,
        }
    }
}

/// Whether a step executes its weights where the file holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Executed from the mapped file, or from the model's own bytes.
    Mapped,
    /// Repacked at load; the file's bytes are not touched again.
    Packed,
    /// The step has no weights.
    None,
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Residency::Mapped => "mapped",
            Residency::Packed => "packed",
            Residency::None => "-",
        })
    }
}

/// What one step does, and why this way.
#[derive(Clone, Debug)]
pub struct StepInfo {
    /// The node that the step executes.
    pub node: String,
    /// Its ONNX operator.
    pub op: &'static str,
    /// Later nodes that were fused into it.
    pub fused: Vec<String>,
    /// Weight and output sizes, for people.
    pub shape: String,
    /// The kernel: dtype, operation, tile and instruction set.
    pub kernel: String,
    /// Why this kernel.
    pub reason: String,
    /// Where its weights are executed from.
    pub residency: Residency,
    /// The share of weights that are not zero; 1 without weights.
    pub density: f64,
    /// Bytes of weights that a run reads.
    pub weight_bytes: usize,
    /// Bytes of activations that a run reads and writes at least once.
    pub activation_bytes: usize,
    /// Multiply-accumulates that the kernel does.
    pub macs: u64,
    /// Multiply-accumulates of the same layer, dense.
    pub dense_macs: u64,
    /// The form of its weight, where there is a choice of forms: of convolutions, but depthwise ones, and of
    /// linear layers.
    pub weighted: Option<Weighted>,
}

/// How a layer's weight is executed, and how else it could be.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// The weight's name: what a table of [`Forms`] knows it by.
    pub weight: String,
    /// The form in use.
    pub form: Variant,
    /// Who took it.
    pub by: Chosen,
    /// Every form that is worth a try, those that a plan may choose first and the cheapest estimate
    /// first. Index streams of other sizes are legal as well.
    pub legal: Vec<Candidate>,
    /// What a file of measured choices knows layers of this kind by, beside their density.
    pub key: String,
}

/// Bytes that a session holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Activations and scratch.
    pub arena: usize,
    /// Of these, activations where the plan laid them out.
    pub activations: usize,
    /// The most that activations which live at the same time take: no layout needs less.
    pub activations_bound: usize,
    /// Keys and values of a decoder.
    pub cache: usize,
    /// Repacked weights and folded biases.
    pub packed: usize,
    /// Weights executed where the file holds them.
    pub mapped: usize,
}

/// Where a value lives during a run.
#[derive(Clone, Debug)]
pub(crate) enum Slot {
    /// In the arena, at an element offset.
    Arena(usize),
    /// The caller's tensor.
    Input(usize),
    /// A constant.
    Constant(Arc<Vec<f32>>),
    /// A constant of integers.
    Integers(Arc<Vec<i64>>),
}

/// A kernel and its buffers.
#[derive(Debug)]
pub(crate) struct Step {
    pub kernel: Kernel,
    pub inputs: Vec<Slot>,
    pub out: usize,
}

/// A value that a run returns.
#[derive(Debug)]
pub(crate) struct Output {
    pub slot: Slot,
    pub len: usize,
}

/// The steps of a model on a device.
#[derive(Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) outputs: Vec<Output>,
    /// Elements of activations.
    pub(crate) arena_len: usize,
    /// Elements of scratch of one thread.
    pub(crate) scratch_len: usize,
    /// Elements of keys and values; the same for every plan of a graph and a capacity.
    pub(crate) cache_len: usize,
    pub(crate) isa: Isa,
    input_shapes: Vec<(String, Vec<usize>)>,
    input_dtypes: Vec<DType>,
    /// Inputs that index an axis, and its size.
    pub(crate) index_limits: Vec<(usize, usize)>,
    output_shapes: Vec<(String, Vec<usize>)>,
    infos: Vec<StepInfo>,
    memory: Memory,
    pack_time: Duration,
    packs: PackReport,
}

impl Plan {
    /// Plans `model`: binds symbols, folds and fuses, chooses a kernel for each step, packs weights,
    /// and lays the activations out in one arena.
    pub fn new(model: &Model, options: &PlanOptions) -> Result<Plan> {
        let mut symbols = options.symbols.clone();
        for input in &model.graph().inputs {
            for d in &input.shape {
                if let Dim::Symbol(s) = d {
                    symbols.entry(s.clone()).or_insert(1);
                }
            }
        }
        let shapes = infer_shapes(model.graph(), model.weights(), &symbols)?;
        let size = |name: &str| fixed_shape(&shapes, name);
        let units = rewrite::rewrite(model, &shapes)?;
        let start = Instant::now();
        let cache = options.pack_cache.as_deref().map(PackCache::new);
        let lowered = lower::lower(model, &units, &shapes, options, cache.as_ref())?;
        let pack_time = start.elapsed();
        let cache_len = lowered.cache_len;
        let placed = arena::place(lowered, &units.outputs)?;

        let mut memory = Memory {
            arena: placed.arena_len * 4,
            activations: placed.arena_len * 4,
            activations_bound: placed.bound * 4,
            ..Memory::default()
        };
        for info in &placed.infos {
            match info.residency {
                Residency::Mapped => memory.mapped += info.weight_bytes,
                Residency::Packed => memory.packed += info.weight_bytes,
                Residency::None => {}
            }
        }
        let graph = model.graph();
        let index_limits = index_limits(graph, &shapes)?;
        let input_shapes = graph
            .inputs
            .iter()
            .map(|i| Ok((i.name.clone(), size(&i.name)?)))
            .collect::<Result<Vec<_>>>()?;
        let output_shapes = graph
            .outputs
            .iter()
            .map(|o| Ok((o.clone(), size(o)?)))
            .collect::<Result<Vec<_>>>()?;
        let outputs = placed
            .outputs
            .into_iter()
            .zip(&output_shapes)
            .map(|(slot, (_, shape))| Output {
                slot,
                len: shape.iter().product(),
            })
            .collect();
        Ok(Plan {
            scratch_len: placed
                .steps
                .iter()
                .map(|s| s.kernel.scratch_len())
                .max()
                .unwrap_or(0),
            steps: placed.steps,
            cache_len,
            index_limits,
            input_dtypes: graph.inputs.iter().map(|i| i.dtype).collect(),
            outputs,
            arena_len: placed.arena_len,
            isa: options.isa,
            input_shapes,
            output_shapes,
            infos: placed.infos,
            memory,
            pack_time,
            packs: cache.map(|c| c.report()).unwrap_or_default(),
        })
    }

    /// Names and shapes of the inputs.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        &self.input_shapes
    }

    /// Element types of the inputs.
    pub fn input_dtypes(&self) -> &[DType] {
        &self.input_dtypes
    }

    /// Names and shapes of the outputs.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &self.output_shapes
    }

    /// What each step does, in order.
    pub fn steps(&self) -> &[StepInfo] {
        &self.infos
    }

    /// Bytes held, without the scratch of threads.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// The time that lowering took: packing, nearly all of it.
    pub fn pack_time(&self) -> Duration {
        self.pack_time
    }

    /// What the pack cache brought; nothing where the app named none.
    pub fn packs(&self) -> &PackReport {
        &self.packs
    }
}

/// The graph's inputs that a `Gather` reads indices from, each with the smallest axis that it indexes.
fn index_limits(graph: &Graph, shapes: &Shapes) -> Result<Vec<(usize, usize)>> {
    let mut limits: BTreeMap<usize, usize> = BTreeMap::new();
    for node in &graph.nodes {
        let Op::Gather { axis } = node.op else {
            continue;
        };
        if let Some(input) = graph.inputs.iter().position(|i| i.name == node.inputs[1]) {
            let data = fixed_shape(shapes, &node.inputs[0])?;
            let axis = axis_index(axis, data.len()).map_err(|e| Error::node(node, e))?;
            let limit = limits.entry(input).or_insert(usize::MAX);
            *limit = data[axis].min(*limit);
        }
    }
    Ok(limits.into_iter().collect())
}

/// The shape of a value after every symbol was bound.
fn fixed_shape(shapes: &Shapes, name: &str) -> Result<Vec<usize>> {
    let unknown = |what: String| Error::Graph {
        graph: String::new(),
        what,
    };
    let shape = shapes
        .get(name)
        .ok_or_else(|| unknown(format!("`{name}` has no shape")))?;
    shape
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(s) => Err(unknown(format!("`{name}`: the size of `{s}` is not bound"))),
        })
        .collect()
}
