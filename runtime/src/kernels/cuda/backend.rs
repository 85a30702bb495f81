//! What plans run on: memory, launches and a clock. A GPU is one ([`Gpu`](super::Gpu)); tests have another, the kernels
//! compiled for the host.

use super::error::Result;
use super::launch::{Argument, Launch, Product, Region, Weight};
use std::fmt::Debug;

/// What a machine reaches: what estimates are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Multiply-adds a second of f32, without tensor cores.
    pub vector: f64,
    /// Multiply-adds a second of 16-bit tensor cores; 0 where there are none that the kernels use.
    pub tensor: f64,
    /// Seconds that a launch takes at the least.
    pub launch: f64,
    /// Whether cuBLAS is there.
    pub blas: bool,
    /// Whether cuBLASLt is there.
    pub blas_lt: bool,
    /// Whether kernels of Hopper's own instructions are there.
    pub groups: bool,
    /// Whether kernels of bfloat16 weights are there.
    pub bf16: bool,
}

/// One piece of work.
#[derive(Clone, Debug)]
pub enum Work {
    /// A kernel of ours.
    Launch(Launch),
    /// A product of a [`Weight::Dense`] and rounded columns by a library.
    Blas(Library, Weight, Product),
}

/// A library of dense products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `cublasGemmEx`.
    Cublas,
    /// `cublasLtMatmul`.
    CublasLt,
}

impl Work {
    /// The kernel's name.
    pub fn kernel(&self) -> &str {
        match self {
            Work::Launch(launch) => &launch.kernel,
            Work::Blas(Library::Cublas, ..) => "cublas_gemm",
            Work::Blas(Library::CublasLt, ..) => "cublaslt_matmul",
        }
    }

    /// The regions of its weight.
    pub(crate) fn weights(&self) -> Vec<Region> {
        match self {
            Work::Launch(launch) => launch.weights.clone(),
            Work::Blas(_, Weight::Dense { values, .. }, _) => vec![*values],
            Work::Blas(..) => Vec::new(),
        }
    }

    /// Puts another region of the same length in the place of one of its weight's.
    pub(crate) fn replace(&mut self, old: Region, new: Region) {
        match self {
            Work::Launch(launch) => {
                let to = |region: &mut Region| {
                    if *region == old {
                        *region = new;
                    }
                };
                launch.weights.iter_mut().for_each(to);
                for argument in &mut launch.arguments {
                    if *argument == Argument::Pointer(old.address) {
                        *argument = Argument::Pointer(new.address);
                    }
                }
            }
            Work::Blas(_, Weight::Dense { values, .. }, _) if *values == old => *values = new,
            Work::Blas(..) => {}
        }
    }
}

/// Recorded work, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded(pub usize);

/// Memory, launches and a clock. Regions live as long as the machine.
pub trait Machine: Debug + Send {
    /// Its name.
    fn name(&self) -> String;

    /// What it reaches.
    fn limits(&self) -> Limits;

    /// Memory that starts at a multiple of 16; what is in it is not known.
    ///
    /// # Errors
    /// When there is not so much.
    fn allocate(&mut self, bytes: usize) -> Result<Region>;

    /// Frees what was allocated last, down to so many allocations.
    ///
    /// # Errors
    /// When the machine refuses.
    fn free_to(&mut self, allocations: usize) -> Result<()>;

    /// How many allocations there are.
    fn allocations(&self) -> usize;

    /// Copies to the machine what fills a region; done when it returns.
    ///
    /// # Errors
    /// When the data do not fill the region, or the machine refuses.
    fn write(&mut self, to: Region, data: &[u8]) -> Result<()>;

    /// Copies from the machine, after all work before.
    ///
    /// # Errors
    /// As [`write`](Machine::write), and when work before failed.
    fn read(&mut self, from: Region, data: &mut [u8]) -> Result<()>;

    /// Runs work in order, after what came before.
    ///
    /// # Errors
    /// When the machine refuses.
    ///
    /// # Safety
    /// Regions of the work are allocations of this machine, as large as the launches were made for.
    unsafe fn run(&mut self, work: &[Work]) -> Result<()>;

    /// Records work to be replayed as one. The work may be run once.
    ///
    /// # Errors
    /// When the machine refuses.
    ///
    /// # Safety
    /// As [`run`](Machine::run), now and at every replay.
    unsafe fn record(&mut self, work: &[Work]) -> Result<Recorded>;

    /// Runs recorded work after what came before.
    ///
    /// # Errors
    /// When the machine refuses.
    fn replay(&mut self, recorded: Recorded) -> Result<()>;

    /// Seconds of each of so many replays, by the machine's own clock.
    ///
    /// # Errors
    /// As [`replay`](Machine::replay).
    fn time(&mut self, recorded: Recorded, replays: usize) -> Result<Vec<f64>>;

    /// Copies within the machine, as recorded work: what bandwidth is measured by.
    ///
    /// # Errors
    /// When the regions are not of the same length, or the machine refuses.
    ///
    /// # Safety
    /// As [`run`](Machine::run); and no two regions overlap.
    unsafe fn record_copies(&mut self, pairs: &[(Region, Region)]) -> Result<Recorded>;
}
