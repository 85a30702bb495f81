//! What an app sees: a session runs one planned model; a decoder runs a language model token by token,
//! a stream a recurrent one step by step.

mod bound;
mod decoder;
#[cfg(feature = "cuda")]
pub(crate) mod device;
mod generate;
#[cfg(test)]
mod sequence_tests;
mod stream;

use crate::kernels::cpu::team::Team;
use crate::kernels::cpu::{Isa, Sequence};
use crate::model::Symbols;
use crate::plan::{Costs, Forms, Memory, PackReport, Plan, PlanOptions, Slot, StepInfo, Tuned};
use crate::{DType, Elements, Error, Model, Result, Tensor, TensorView, TensorViewMut};
use bound::{Arena, Bound};
pub use decoder::{Decoder, DecoderOptions, PhaseKind, StepTimes};
pub use generate::{GenerateOptions, Generated, Sampler, Sampling, Stop};
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use stream::Stream;

/// How a session is planned and run.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads that work on one run; 0 takes every core that the process may use.
    pub threads: usize,
    /// The instruction set: "scalar", "neon", "neondot", "neonfhm", "neonbf16", "avx2", "avx512", "avx512vbmi2" or "avx512bf16"; `None`
    /// takes the one that [`Isa::detect`] finds.
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// Round the inputs of linear layers with BF16 weights to BF16 too, and those of layers of at most
    /// eight columns with I8 weights to signed bytes, with a scale for each group of as many elements as
    /// share one in the weights. Where the CPU multiplies such (AVX-512 BF16 and VNNI, NEON with BF16 or DotProd) these
    /// layers become faster; elsewhere only the numbers change. With NEON and FHM, inputs of layers of at most eight
    /// columns with F16 weights are rounded to half precision.
    pub round_inputs: bool,
    /// Sizes of the symbolic dimensions; those not named are 1.
    pub symbols: Symbols,
    /// Forms to execute weights in, by name; others are chosen. See [`Forms`](crate::plan::Forms).
    pub forms: Forms,
    /// Choices that were measured: [`Tuned::open`](crate::plan::Tuned::open) reads the file that
    /// `lacuna-bench --tune` writes.
    pub tuned: Option<Tuned>,
    /// Constants of the estimate that chooses the other forms, such as those of a device profile.
    pub costs: Costs,
    /// A directory where packed weights are kept, and mapped by later sessions instead of packed again.
    /// It is made when it is not there; files that do not serve are passed over and written anew
    /// ([`Session::packs`] says which and why). Who can write there can change the model's answers.
    pub pack_cache: Option<PathBuf>,
    /// Run inputs that hold NaN or infinities; otherwise they are an error.
    pub allow_non_finite: bool,
}

/// One planned model with its own activations and threads. Weights, packed ones included, are shared
/// with every session of the same [`Model`] and its clones.
#[derive(Debug)]
pub struct Session {
    bound: Bound,
    team: Team,
    arena: Arena,
    /// The caller's inputs during a run.
    inputs: Inputs,
    allow_non_finite: bool,
}

/// Pointers that are set during a run and null between runs.
#[derive(Debug)]
struct Inputs(Vec<*const f32>);

// SAFETY: nothing is read through them outside of a run, which borrows what they point to.
unsafe impl Send for Inputs {}
// SAFETY: as above.
unsafe impl Sync for Inputs {}

impl Session {
    /// Plans `model` for this device.
    ///
    /// Fails when a node cannot be executed, when the instruction set is not there, or when the
    /// system gives no thread.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        let (isa, team) = (isa(options.isa.as_deref())?, team(options.threads)?);
        let plan = Plan::new(
            model,
            &PlanOptions {
                isa,
                dense: options.dense,
                round_inputs: Some(options.round_inputs),
                symbols: options.symbols,
                capacity: None,
                threads: team.size(),
                forms: options.forms,
                tuned: options.tuned,
                costs: options.costs,
                pack_cache: options.pack_cache,
            },
        )?;
        let arena = Arena::new(&[&plan], team.size())?;
        Ok(Session {
            inputs: Inputs(vec![std::ptr::null(); plan.inputs().len()]),
            bound: Bound::new(plan, &arena),
            team,
            arena,
            allow_non_finite: options.allow_non_finite,
        })
    }

    /// Opens a Lacuna file and plans it with default options.
    pub fn open(path: impl AsRef<Path>) -> Result<Session> {
        Session::new(&Model::open(path)?, SessionOptions::default())
    }

    /// Names and shapes of the inputs, in the order that a run takes them.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        self.bound.plan.inputs()
    }

    /// Element types of the inputs.
    pub fn input_dtypes(&self) -> &[DType] {
        self.bound.plan.input_dtypes()
    }

    /// The number of elements that the values of an I64 input index, such as a vocabulary; `None` for
    /// masks and other inputs.
    pub fn index_limit(&self, input: usize) -> Option<usize> {
        let limits = &self.bound.plan.index_limits;
        limits.iter().find(|l| l.0 == input).map(|l| l.1)
    }

    /// Names and shapes of the outputs, in the order that a run fills them.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        self.bound.plan.outputs()
    }

    /// What each step does and why, in the order of execution.
    pub fn steps(&self) -> &[StepInfo] {
        self.bound.plan.steps()
    }

    /// Bytes held for activations, scratch and weights.
    pub fn memory(&self) -> Memory {
        Memory {
            arena: self.arena.byte_len(),
            ..self.bound.plan.memory()
        }
    }

    /// The time that planning spent on packing weights.
    pub fn pack_time(&self) -> Duration {
        self.bound.plan.pack_time()
    }

    /// What the pack cache brought; nothing where the app named none.
    pub fn packs(&self) -> &PackReport {
        self.bound.plan.packs()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> &str {
        self.bound.plan.isa.name()
    }

    /// Threads that work on one run.
    pub fn threads(&self) -> usize {
        self.team.size()
    }

    /// Runs the model. Allocates nothing.
    ///
    /// Inputs and outputs come in the order of [`inputs`](Session::inputs) and
    /// [`outputs`](Session::outputs); each must have exactly the planned shape.
    pub fn run_into(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
    ) -> Result<()> {
        self.execute(inputs, outputs, None)
    }

    /// As [`run_into`](Session::run_into), and stores the time of each step in `times`, one for each
    /// of [`steps`](Session::steps). The clock is read between steps, which costs a little.
    pub fn run_timed(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        times: &mut [Duration],
    ) -> Result<()> {
        if times.len() != self.steps().len() {
            let (n, steps) = (times.len(), self.steps().len());
            return Err(Error::Option(format!("{n} times for {steps} steps")));
        }
        self.execute(inputs, outputs, Some(times))
    }

    /// Runs the model into new tensors.
    pub fn run(&mut self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>> {
        let shapes: Vec<Vec<usize>> = self.outputs().iter().map(|o| o.1.clone()).collect();
        let mut outputs: Vec<Tensor> = shapes.iter().map(|s| Tensor::zeros(s)).collect();
        let mut views: Vec<TensorViewMut<'_>> = outputs
            .iter_mut()
            .zip(&shapes)
            .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
            .collect();
        self.run_into(inputs, &mut views)?;
        drop(views);
        Ok(outputs)
    }

    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
        times: Option<&mut [Duration]>,
    ) -> Result<()> {
        let plan = &self.bound.plan;
        check(
            "input",
            plan.inputs(),
            inputs.iter().map(|v| (v.shape(), v.elements().len())),
        )?;
        check(
            "output",
            plan.outputs(),
            outputs.iter_mut().map(|v| {
                let len = v.data_mut().len();
                (v.shape(), len)
            }),
        )?;
        for ((view, (name, _)), dtype) in inputs.iter().zip(plan.inputs()).zip(plan.input_dtypes())
        {
            match view.elements() {
                _ if view.dtype() != *dtype => {
                    return Err(Error::Binding {
                        kind: "input",
                        name: name.clone(),
                        what: format!("elements of {}, the model takes {dtype}", view.dtype()),
                    });
                }
                Elements::F32(data) if !self.allow_non_finite => check_finite(name, data)?,
                _ => {}
            }
        }
        for &(input, limit) in &plan.index_limits {
            if let Elements::I64(indices) = inputs[input].elements() {
                check_indices(&plan.inputs()[input].0, indices, limit)?;
            }
        }
        for (pointer, view) in self.inputs.0.iter_mut().zip(inputs) {
            *pointer = match view.elements() {
                Elements::F32(data) => data.as_ptr(),
                Elements::I64(data) => data.as_ptr().cast(),
            };
        }
        // SAFETY: the arena was made for the plan; shapes and dtypes were checked; times are counted
        // by the caller; a plan without a capacity has no cache.
        unsafe {
            self.bound.run(
                &mut self.arena,
                &mut self.team,
                &self.inputs.0,
                Sequence::NONE,
                times,
            );
        }
        self.inputs.0.fill(std::ptr::null());
        let arena = self.arena.elements();
        for (view, output) in outputs.iter_mut().zip(&self.bound.plan.outputs) {
            let source = match &output.slot {
                Slot::Arena(at) => &arena[*at..*at + output.len],
                Slot::Constant(c) => c,
                Slot::Integers(_) => continue,
                Slot::Input(i) => match inputs[*i].elements() {
                    Elements::F32(data) => data,
                    Elements::I64(_) => continue,
                },
            };
            view.data_mut().copy_from_slice(source);
        }
        Ok(())
    }
}

/// The instruction set of this name, or the best one here.
fn isa(name: Option<&str>) -> Result<Isa> {
    match name {
        Some(name) => Isa::parse(name).map_err(Error::Option),
        None => Ok(Isa::detect()),
    }
}

/// A team of so many threads; 0 takes every core.
fn team(threads: usize) -> Result<Team> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n if n <= 1024 => n,
        n => return Err(Error::Option(format!("{n} threads; at most 1024"))),
    };
    Team::new(threads).map_err(|e| Error::Option(format!("cannot start {threads} threads: {e}")))
}

/// Indices into an axis of `limit` elements; negative ones count from the end.
fn check_indices(name: &str, indices: &[i64], limit: usize) -> Result<()> {
    let limit = limit as i64;
    match indices.iter().position(|i| !(-limit..limit).contains(i)) {
        None => Ok(()),
        Some(at) => Err(Error::Binding {
            kind: "input",
            name: name.to_owned(),
            what: format!("element {at} is {}, outside of 0..{limit}", indices[at]),
        }),
    }
}

fn check_finite(name: &str, data: &[f32]) -> Result<()> {
    // Zero times a finite number is zero; anything else poisons the sum.
    let clean = |part: &[f32]| part.iter().map(|x| x * 0.0).sum::<f32>() == 0.0;
    let Some(part) = data.chunks(256).position(|p| !clean(p)) else {
        return Ok(());
    };
    let bad = data[part * 256..]
        .iter()
        .position(|x| !x.is_finite())
        .unwrap_or(0)
        + part * 256;
    Err(Error::Binding {
        kind: "input",
        name: name.to_owned(),
        what: format!("element {bad} is {}", data[bad]),
    })
}

fn check<'a>(
    kind: &'static str,
    planned: &[(String, Vec<usize>)],
    given: impl ExactSizeIterator<Item = (&'a [usize], usize)>,
) -> Result<()> {
    let refuse = |name: &str, what: String| {
        Err(Error::Binding {
            kind,
            name: name.to_owned(),
            what,
        })
    };
    if given.len() != planned.len() {
        let names: Vec<&str> = planned.iter().map(|p| p.0.as_str()).collect();
        return refuse(
            &names.join("`, `"),
            format!("{} given, {} expected", given.len(), planned.len()),
        );
    }
    for ((shape, len), (name, want)) in given.zip(planned) {
        if shape != want {
            return refuse(
                name,
                format!("shape {shape:?}, the session is planned for {want:?}"),
            );
        }
        if len != want.iter().product::<usize>() {
            return refuse(name, format!("{len} elements do not fill shape {shape:?}"));
        }
    }
    Ok(())
}
