//! A GPU as a machine that plans run on.

use super::backend::{Library, Limits, Machine, Recorded, Work};
use super::blas::Blas;
use super::blas_lt::BlasLt;
use super::driver::{Arena, Device, Event, Graph, Modules, Stream};
use super::error::{Error, Result};
use super::launch::{self, Epilogue, Region};
use super::staging::Staging;
use std::sync::Arc;

/// Seconds between two kernels of a graph, and at the least of a kernel: a figure of ours, not measured here.
const LAUNCH: f64 = 2.5e-6;

/// A device with its modules, a stream, what was allocated and what was recorded.
#[derive(Debug)]
pub struct Gpu {
    graphs: Vec<Graph>,
    blas: Option<Blas>,
    blas_lt: Option<BlasLt>,
    staging: Staging,
    stream: Arc<Stream>,
    modules: Modules,
    arenas: Vec<Arena>,
    device: Arc<Device>,
    limits: Limits,
}

impl Gpu {
    /// Opens a device and compiles the kernels for it.
    ///
    /// # Errors
    /// When there is no driver or no such device, when it is too old, or when the driver refuses.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let device = Device::open(ordinal)?;
        let modules = Modules::load(&device)?;
        let stream = Arc::new(Stream::new(&device)?);
        let blas = there(Blas::open(&stream))?;
        let blas_lt = there(BlasLt::open(&device, &stream))?;
        let mut limits = device.limits()?;
        limits.launch = LAUNCH;
        limits.blas = blas.is_some();
        limits.blas_lt = blas_lt.is_some();
        limits.groups = modules.has("f16_linear_bitmask_wgmma_64");
        limits.bf16 = modules.has("bf16_round");
        if !modules.has("f16_linear_bitmask_mma_8") {
            limits.tensor = 0.0;
            // What cuBLAS would read is rounded by the same kernels; its tensor cores are not counted.
            limits.blas &= modules.has("f16_round");
            limits.blas_lt &= modules.has("f16_round");
        }
        Ok(Gpu {
            graphs: Vec::new(),
            blas,
            blas_lt,
            staging: Staging::new(&device)?,
            stream,
            modules,
            arenas: Vec::new(),
            device,
            limits,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn one(&self, work: &Work) -> Result<()> {
        // SAFETY: `run` and `record` promise it.
        unsafe {
            let (left, weight, product) = match work {
                Work::Launch(launch) => return self.stream.launch(&self.modules, launch),
                Work::Blas(Library::Cublas, weight, product) => match &self.blas {
                    Some(blas) => (blas.linear(weight, product)?, weight, product),
                    None => return Err(Error::NoLibrary { library: "cuBLAS" }),
                },
                Work::Blas(Library::CublasLt, weight, product) => match &self.blas_lt {
                    Some(blas) => (blas.linear(weight, product)?, weight, product),
                    None => {
                        return Err(Error::NoLibrary {
                            library: "cuBLASLt",
                        });
                    }
                },
            };
            if left == Epilogue::NONE {
                return Ok(());
            }
            let rest = launch::epilogue(product.y, &left, weight.shape().0, product.columns)?;
            self.stream.launch(&self.modules, &rest)
        }
    }

    fn keep(&mut self, graph: Graph) -> Recorded {
        self.graphs.push(graph);
        Recorded(self.graphs.len() - 1)
    }

    fn graph(&self, recorded: Recorded) -> Result<&Graph> {
        self.graphs.get(recorded.0).ok_or_else(|| Error::Driver {
            call: "cuGraphLaunch",
            what: format!("nothing was recorded as {}", recorded.0),
        })
    }
}

/// A library that is opened, or `None` where it is not installed or too old.
fn there<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Ok(library) => Ok(Some(library)),
        Err(Error::NoLibrary { .. } | Error::NoSymbol { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Machine for Gpu {
    fn name(&self) -> String {
        let (major, minor) = self.device.capability();
        format!("{}, compute capability {major}.{minor}", self.device.name())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate(&mut self, bytes: usize) -> Result<Region> {
        let mut arena = Arena::new(&self.device, bytes)?;
        let region = arena.take(bytes)?;
        self.arenas.push(arena);
        Ok(region)
    }

    fn free_to(&mut self, allocations: usize) -> Result<()> {
        self.stream.wait()?;
        self.arenas.truncate(allocations);
        Ok(())
    }

    fn allocations(&self) -> usize {
        self.arenas.len()
    }

    fn write(&mut self, to: Region, data: &[u8]) -> Result<()> {
        self.staging.write(&self.stream, to, data)
    }

    fn read(&mut self, from: Region, data: &mut [u8]) -> Result<()> {
        self.staging.read(&self.stream, from, data)
    }

    unsafe fn run(&mut self, work: &[Work]) -> Result<()> {
        work.iter().try_for_each(|w| self.one(w))
    }

    unsafe fn record(&mut self, work: &[Work]) -> Result<Recorded> {
        // What a library sets up at its first call is no part of a graph.
        if work.iter().any(|w| matches!(w, Work::Blas(..))) {
            work.iter().try_for_each(|w| self.one(w))?;
            self.stream.wait()?;
        }
        let graph = self
            .stream
            .capture(|_| work.iter().try_for_each(|w| self.one(w)))?;
        Ok(self.keep(graph))
    }

    fn replay(&mut self, recorded: Recorded) -> Result<()> {
        // SAFETY: `record` promised it for every replay.
        unsafe { self.stream.replay(self.graph(recorded)?) }
    }

    fn time(&mut self, recorded: Recorded, replays: usize) -> Result<Vec<f64>> {
        let mut marks: Vec<Event> = vec![self.stream.mark()?];
        for _ in 0..replays {
            self.replay(recorded)?;
            marks.push(self.stream.mark()?);
        }
        let pairs = marks.windows(2);
        pairs
            .map(|m| Ok(f64::from(m[0].until(&m[1])?) / 1e3))
            .collect()
    }

    unsafe fn record_copies(&mut self, pairs: &[(Region, Region)]) -> Result<Recorded> {
        let graph = self.stream.capture(|stream| {
            // SAFETY: the caller's promise.
            let copy = |(to, from): &(Region, Region)| unsafe { stream.copy(*to, *from) };
            pairs.iter().try_for_each(copy)
        })?;
        Ok(self.keep(graph))
    }
}
