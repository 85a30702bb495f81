//! A plan bound to a session's memory: the arena that its activations live in, and the pointers
//! that its steps read.

use crate::kernels::cpu::team::Team;
use crate::kernels::cpu::{Io, Sequence};
use crate::plan::{Plan, Slot};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Activations, then each thread's scratch; 64-byte lines.
#[derive(Debug)]
pub(super) struct Arena {
    lines: Vec<Line>,
    /// Elements of activations.
    values: usize,
    /// Elements of one thread's scratch.
    scratch: usize,
}

/// The alignment of every activation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

impl Arena {
    /// Room for any one of `plans` on `threads` threads.
    pub fn new(plans: &[&Plan], threads: usize) -> Result<Arena> {
        let most = |f: fn(&Plan) -> usize| {
            let largest = plans.iter().map(|p| f(p)).max().unwrap_or(0);
            largest.next_multiple_of(LINE)
        };
        let (values, scratch) = (most(|p| p.arena_len), most(|p| p.scratch_len));
        let lines = scratch
            .checked_mul(threads)
            .and_then(|s| s.checked_add(values))
            .unwrap_or(usize::MAX)
            / LINE;
        Ok(Arena {
            lines: lines_of(lines)?,
            values,
            scratch,
        })
    }

    /// Bytes held.
    pub fn byte_len(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    fn base(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    fn base_mut(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }

    /// Every element.
    pub fn elements(&self) -> &[f32] {
        // SAFETY: a line is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts(self.base(), self.lines.len() * LINE) }
    }
}

fn lines_of(lines: usize) -> Result<Vec<Line>> {
    let mut list = Vec::new();
    list.try_reserve_exact(lines).map_err(|_| {
        let bytes = lines.saturating_mul(size_of::<Line>());
        Error::Option(format!("no memory for {bytes} bytes of activations"))
    })?;
    list.resize(lines, Line([0.0; LINE]));
    Ok(list)
}

/// Keys and values of a sequence.
#[derive(Debug)]
pub(super) struct Cache(Vec<Line>);

impl Cache {
    pub fn new(elements: usize) -> Result<Cache> {
        Ok(Cache(lines_of(elements.div_ceil(LINE))?))
    }

    pub fn byte_len(&self) -> usize {
        self.0.len() * size_of::<Line>()
    }

    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// A plan and where its steps read from.
#[derive(Debug)]
pub(super) struct Bound {
    pub plan: Plan,
    /// The input pointers of every step, one after the other.
    pointers: Pointers,
    /// Where `pointers` waits for a graph input: position and input.
    patches: Vec<(usize, usize)>,
    /// Where each step's pointers start in `pointers`.
    starts: Vec<usize>,
}

/// Pointers into the session's own arena, the plan's constants, and, during a run, the caller's inputs.
#[derive(Debug)]
struct Pointers(Vec<*const f32>);

// SAFETY: the pointees belong to the session or are immutable; inputs are written before each run.
unsafe impl Send for Pointers {}
// SAFETY: as above; a shared reference reads nothing through them.
unsafe impl Sync for Pointers {}

/// The arena's start and the run's place in a sequence, for the threads of one run.
#[derive(Clone, Copy)]
struct Shared(*mut f32, Sequence);

// SAFETY: kernels give each thread disjoint parts, ordered by barriers.
unsafe impl Sync for Shared {}

/// Where member 0 writes times; null when nobody asked.
struct Times(*mut Duration);

// SAFETY: only member 0 writes through it.
unsafe impl Sync for Times {}

impl Bound {
    /// Binds `plan` to an arena that was made for it and stays where it is.
    pub fn new(plan: Plan, arena: &Arena) -> Bound {
        let base = arena.base();
        let mut pointers = Vec::new();
        let mut patches = Vec::new();
        let mut starts = Vec::with_capacity(plan.steps.len() + 1);
        for step in &plan.steps {
            starts.push(pointers.len());
            for slot in &step.inputs {
                pointers.push(match slot {
                    Slot::Arena(at) => base.wrapping_add(*at),
                    Slot::Constant(c) => c.as_ptr(),
                    Slot::Integers(c) => c.as_ptr().cast(),
                    Slot::Input(i) => {
                        patches.push((pointers.len(), *i));
                        std::ptr::null()
                    }
                });
            }
        }
        starts.push(pointers.len());
        Bound {
            plan,
            pointers: Pointers(pointers),
            patches,
            starts,
        }
    }

    /// Runs every step.
    ///
    /// # Safety
    /// `arena` is the one that the plan was bound to; each of `inputs` points to as many elements of
    /// the input's dtype as the plan says; `times` is empty or has one entry for each step; the cache
    /// of `sequence` has `plan.cache_len` elements, and its positions lie within the capacity.
    pub unsafe fn run(
        &mut self,
        arena: &mut Arena,
        team: &mut Team,
        inputs: &[*const f32],
        sequence: Sequence,
        times: Option<&mut [Duration]>,
    ) {
        for &(at, input) in &self.patches {
            self.pointers.0[at] = inputs[input];
        }
        let (values, scratch) = (arena.values, arena.scratch);
        let shared = Shared(arena.base_mut(), sequence);
        let times = Times(times.map_or(std::ptr::null_mut(), |t| t.as_mut_ptr()));
        let (plan, pointers, starts) = (&self.plan, &self.pointers, &self.starts);
        team.run(&|member| {
            let (&Shared(base, sequence), times) = (&shared, &times);
            // SAFETY: the arena holds every value and one scratch area for each thread; the plan gave
            // values that live together disjoint places; the ISA was checked to be available; only
            // member 0 writes times, of which there is one for each step.
            unsafe {
                let scratch = base.add(values + member.index * scratch);
                let mut last = Instant::now();
                for (i, step) in plan.steps.iter().enumerate() {
                    let io = Io {
                        inputs: &pointers.0[starts[i]..starts[i + 1]],
                        out: base.add(step.out),
                        scratch,
                        sequence,
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
    }
}
