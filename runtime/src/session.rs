//! What an app sees: a session runs one planned model.

use crate::kernels::cpu::team::Team;
use crate::kernels::cpu::{Io, Isa};
use crate::model::Symbols;
use crate::plan::{Memory, Plan, PlanOptions, Slot, StepInfo};
use crate::{Error, Model, Result, Tensor, TensorView, TensorViewMut};
use std::path::Path;
use std::time::{Duration, Instant};

/// How a session is planned and run.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads that work on one run; 0 takes every core that the process may use.
    pub threads: usize,
    /// The instruction set: "scalar", "avx2" or "avx512"; `None` takes the one that the environment
    /// variable `LACUNA_ISA` names, or else the best one here.
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// Sizes of the symbolic dimensions; those not named are 1.
    pub symbols: Symbols,
    /// Run inputs that hold NaN or infinities; otherwise they are an error.
    pub allow_non_finite: bool,
}

/// One planned model with its own activations and threads. Weights, packed ones included, are shared
/// with every session of the same [`Model`] and its clones.
#[derive(Debug)]
pub struct Session {
    plan: Plan,
    team: Team,
    /// Activations, then each thread's scratch; 64-byte lines.
    arena: Vec<Line>,
    /// The input pointers of every step, one after the other.
    pointers: Pointers,
    /// Where `pointers` waits for a graph input: position and input.
    patches: Vec<(usize, usize)>,
    /// Where each step's pointers start in `pointers`.
    starts: Vec<usize>,
    allow_non_finite: bool,
}

/// The alignment of every activation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Pointers into the session's own arena, the plan's constants, and, during a run, the caller's inputs.
#[derive(Debug)]
struct Pointers(Vec<*const f32>);

// SAFETY: the pointees belong to the session or are immutable; inputs are written before each run.
unsafe impl Send for Pointers {}
// SAFETY: as above; a shared reference reads nothing through them.
unsafe impl Sync for Pointers {}

/// The arena's start, for the threads of one run.
#[derive(Clone, Copy)]
struct Base(*mut f32);

// SAFETY: kernels give each thread disjoint parts, ordered by barriers.
unsafe impl Sync for Base {}

impl Session {
    /// Plans `model` for this device.
    ///
    /// Fails when a node cannot be executed, when the instruction set is not there, or when the
    /// system gives no thread.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Session> {
        let isa = match &options.isa {
            Some(name) => Isa::parse(name),
            None => Isa::detect(),
        }
        .map_err(Error::Option)?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n if n <= 1024 => n,
            n => return Err(Error::Option(format!("{n} threads; at most 1024"))),
        };
        let plan = Plan::new(
            model,
            &PlanOptions {
                isa,
                dense: options.dense,
                symbols: options.symbols,
            },
        )?;
        let team = Team::new(threads)
            .map_err(|e| Error::Option(format!("cannot start {threads} threads: {e}")))?;
        let elements = plan.arena_len + threads * plan.scratch_len.next_multiple_of(16);
        let lines = elements.div_ceil(16);
        let mut arena = Vec::new();
        arena.try_reserve_exact(lines).map_err(|_| {
            Error::Option(format!("no memory for {} bytes of activations", lines * 64))
        })?;
        arena.resize(lines, Line([0.0; 16]));
        let base: *const f32 = arena.as_ptr().cast();
        let mut pointers = Vec::new();
        let mut patches = Vec::new();
        let mut starts = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            starts.push(pointers.len());
            for slot in &step.inputs {
                pointers.push(match slot {
                    Slot::Arena(at) => base.wrapping_add(*at),
                    Slot::Constant(c) => c.as_ptr(),
                    Slot::Input(i) => {
                        patches.push((pointers.len(), *i));
                        std::ptr::null()
                    }
                });
            }
        }
        starts.push(pointers.len());
        Ok(Session {
            plan,
            team,
            arena,
            pointers: Pointers(pointers),
            patches,
            starts,
            allow_non_finite: options.allow_non_finite,
        })
    }

    /// Opens a Lacuna file and plans it with default options.
    pub fn open(path: impl AsRef<Path>) -> Result<Session> {
        Session::new(&Model::open(path)?, SessionOptions::default())
    }

    /// Names and shapes of the inputs, in the order that a run takes them.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        self.plan.inputs()
    }

    /// Names and shapes of the outputs, in the order that a run fills them.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        self.plan.outputs()
    }

    /// What each step does and why, in the order of execution.
    pub fn steps(&self) -> &[StepInfo] {
        self.plan.steps()
    }

    /// Bytes held for activations, scratch and weights.
    pub fn memory(&self) -> Memory {
        Memory {
            arena: self.arena.len() * 64,
            ..self.plan.memory()
        }
    }

    /// The time that planning spent on packing weights.
    pub fn pack_time(&self) -> Duration {
        self.plan.pack_time()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> &str {
        self.plan.isa.name()
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
        check(
            "input",
            self.plan.inputs(),
            inputs.iter().map(|v| (v.shape(), v.data().len())),
        )?;
        check(
            "output",
            self.plan.outputs(),
            outputs.iter_mut().map(|v| {
                let len = v.data_mut().len();
                (v.shape(), len)
            }),
        )?;
        if !self.allow_non_finite {
            for (view, (name, _)) in inputs.iter().zip(self.plan.inputs()) {
                check_finite(name, view.data())?;
            }
        }
        for &(at, input) in &self.patches {
            self.pointers.0[at] = inputs[input].data().as_ptr();
        }
        let base = Base(self.arena.as_mut_ptr().cast());
        let (plan, pointers, starts) = (&self.plan, &self.pointers, &self.starts);
        let scratch_stride = plan.scratch_len.next_multiple_of(16);
        let times = Times(times.map_or(std::ptr::null_mut(), |t| t.as_mut_ptr()));
        self.team.run(&|member| {
            let (base, times) = (&base, &times);
            // SAFETY: the arena holds every value and `threads` scratch areas; the plan gave values
            // that live together disjoint places; the ISA was checked to be available; only member 0
            // writes times, of which there is one per step.
            unsafe {
                let scratch = base.0.add(plan.arena_len + member.index * scratch_stride);
                let mut last = Instant::now();
                for (i, step) in plan.steps.iter().enumerate() {
                    let io = Io {
                        inputs: &pointers.0[starts[i]..starts[i + 1]],
                        out: base.0.add(step.out),
                        scratch,
                        member,
                    };
                    plan.isa.run(&step.kernel, &io);
                    member.wait();
                    if member.index == 0 && !times.0.is_null() {
                        let now = Instant::now();
                        *times.0.add(i) = now - last;
                        last = now;
                    }
                }
            }
        });
        for &(at, _) in &self.patches {
            self.pointers.0[at] = std::ptr::null();
        }
        let arena = self.arena.as_flattened();
        for (view, output) in outputs.iter_mut().zip(&self.plan.outputs) {
            let source = match &output.slot {
                Slot::Arena(at) => &arena[*at..*at + output.len],
                Slot::Input(i) => inputs[*i].data(),
                Slot::Constant(c) => c,
            };
            view.data_mut().copy_from_slice(source);
        }
        Ok(())
    }
}

/// Where member 0 writes times; null when nobody asked.
struct Times(*mut Duration);

// SAFETY: only member 0 writes through it.
unsafe impl Sync for Times {}

trait Flatten {
    fn as_flattened(&self) -> &[f32];
}

impl Flatten for [Line] {
    fn as_flattened(&self) -> &[f32] {
        // SAFETY: a line is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * 16) }
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
