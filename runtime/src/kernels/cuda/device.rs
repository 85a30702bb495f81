//! A device of the driver: its context, streams, memory, modules, events and captured graphs.

use super::backend::Limits;
use super::error::{Error, Result};
use super::launch::{Argument, Launch, Region};
use super::library::probe;
use super::pack::{Chunks, Rows, Tiles, TwoFour};
use super::table::{KERNELS, Parameter, Ptx, hopper_for, ptx_for};
use super::{launch, table};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, OnceLock};

/// What is called of the driver. A call of a missing one would panic.
const SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Regions of an arena start at multiples of it.
const ALIGNMENT: usize = 256;

trait Said<T> {
    /// What the driver said to a call.
    fn said(self, call: &'static str) -> Result<T>;
}

impl<T> Said<T> for std::result::Result<T, DriverError> {
    fn said(self, call: &'static str) -> Result<T> {
        self.map_err(|e| {
            let text = e.error_string();
            let what = match text {
                Ok(text) => text.to_string_lossy().into_owned(),
                Err(_) => format!("error {}", e.0 as u32),
            };
            Error::Driver { call, what }
        })
    }
}

/// Numbers that any bits are one of.
///
/// # Safety
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: as it says.
unsafe impl Plain for u8 {}
// SAFETY: as it says.
unsafe impl Plain for u16 {}
// SAFETY: as it says.
unsafe impl Plain for u32 {}
// SAFETY: as it says.
unsafe impl Plain for f32 {}

/// Opens the driver, once.
fn driver() -> Result<()> {
    static DRIVER: OnceLock<Result<()>> = OnceLock::new();
    let open = || {
        let files = ["libcuda.so", "libcuda.so.1", "nvcuda.dll"];
        probe(Error::NoDriver, &files, SYMBOLS)?;
        match result::init() {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::NoDevice {
                ordinal: 0,
                count: 0,
            }),
            other => other.said("cuInit"),
        }
    };
    DRIVER.get_or_init(open).clone()
}

/// A GPU, held by its primary context.
#[derive(Debug)]
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    capability: (i32, i32),
    memory: usize,
}

// SAFETY: a context may be made current on any thread, and every call makes it current first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Device {}

impl Device {
    /// Devices here.
    ///
    /// # Errors
    /// When there is no driver, or it does not start.
    pub fn count() -> Result<usize> {
        driver()?;
        let count = result::device::get_count().said("cuDeviceGetCount")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Opens a device.
    ///
    /// # Errors
    /// When there is no driver or no such device, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Arc<Device>> {
        let count = Device::count()?;
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let number = number.ok_or(Error::NoDevice { ordinal, count })?;
        let device = result::device::get(number).said("cuDeviceGet")?;
        let name = result::device::get_name(device).said("cuDeviceGetName")?;
        let attribute = |a| {
            // SAFETY: the driver gave the device.
            unsafe { result::device::get_attribute(device, a) }.said("cuDeviceGetAttribute")
        };
        use sys::CUdevice_attribute as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the driver gave the device.
        let (memory, context) = unsafe {
            (
                result::device::total_mem(device).said("cuDeviceTotalMem")?,
                result::primary_ctx::retain(device).said("cuDevicePrimaryCtxRetain")?,
            )
        };
        Ok(Arc::new(Device {
            device,
            context,
            name,
            capability: (major, minor),
            memory,
        }))
    }

    /// Its name, as the driver has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// What it reaches by the driver's word: clocks, the width of its memory, its processors. Launches and libraries are not
    /// known here.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn limits(&self) -> Result<Limits> {
        use sys::CUdevice_attribute as A;
        let attribute = |a| {
            // SAFETY: the driver gave the device.
            let value = unsafe { result::device::get_attribute(self.device, a) };
            value.said("cuDeviceGetAttribute").map(f64::from)
        };
        let clock = attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? * 1e3;
        let memory_clock = attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? * 1e3;
        let width = attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let processors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // Multiply-adds a clock of a processor: f32 lanes, and dense f16 tensor cores.
        let (lanes, tensor) = match self.capability {
            (8, 0) => (64.0, 1024.0),
            (8, _) => (128.0, 512.0),
            (9.., _) => (128.0, 2048.0),
            _ => (64.0, 0.0),
        };
        Ok(Limits {
            // Some drivers do not tell the clock: then the slowest memory that is met.
            bandwidth: (2.0 * memory_clock * width / 8.0).max(25e9),
            vector: clock * processors * lanes,
            tensor: clock * processors * tensor,
            launch: 0.0,
            blas: false,
            blas_lt: false,
            groups: false,
            bf16: false,
        })
    }

    fn current(&self) -> Result<()> {
        // SAFETY: the context is retained.
        unsafe { result::ctx::set_current(self.context) }.said("cuCtxSetCurrent")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: it was retained once; whatever used it holds the device and is gone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The kernels that a device runs, compiled for it by the driver.
#[derive(Debug)]
pub struct Modules {
    device: Arc<Device>,
    ptx: &'static Ptx,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: modules and functions belong to the context, as in `Device`.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    /// Loads the newest PTX that the device runs.
    ///
    /// # Errors
    /// When it is too old, or the driver refuses.
    pub fn load(device: &Arc<Device>) -> Result<Modules> {
        device.current()?;
        let ptx = ptx_for(device.capability).ok_or_else(|| Error::TooOld {
            device: device.name.clone(),
            capability: device.capability,
        })?;
        let mut loaded = Modules {
            device: device.clone(),
            ptx,
            modules: Vec::new(),
            functions: HashMap::new(),
        };
        loaded.add(ptx)?;
        if let Some(own) = hopper_for(device.capability) {
            loaded.add(own)?;
        }
        Ok(loaded)
    }

    /// Loads modules; those of [`HOPPER`](table::HOPPER) only where the driver knows their version of PTX.
    fn add(&mut self, ptx: &Ptx) -> Result<()> {
        for (source, text) in ptx.modules {
            let text = c_string(text)?;
            // SAFETY: PTX that ends with a zero.
            let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
            if let Err(DriverError(sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) = module
                && ptx.target == table::HOPPER.target
            {
                return Ok(());
            }
            let module = module.said("cuModuleLoadData")?;
            self.modules.push(module);
            for k in KERNELS.iter().filter(|k| k.source == *source) {
                if !ptx.bf16 && k.name.starts_with("bf16") {
                    continue;
                }
                // SAFETY: the module was just loaded.
                let function = unsafe { result::module::get_function(module, c_string(k.name)?) };
                let function = function.said("cuModuleGetFunction")?;
                self.functions.insert(k.name, function);
            }
        }
        Ok(())
    }

    /// Whether there is a kernel of that name.
    pub fn has(&self, kernel: &str) -> bool {
        self.functions.contains_key(kernel)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            for module in self.modules.drain(..) {
                // SAFETY: loaded here; its functions go with it.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Driver {
        call: "cuModuleLoadData",
        what: "a zero in PTX".into(),
    })
}

/// One allocation of device memory, given out piece by piece and freed as a whole.
#[derive(Debug)]
pub struct Arena {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
    used: usize,
}

impl Arena {
    /// Allocates it.
    ///
    /// # Errors
    /// When the device has not so much.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Arena> {
        device.current()?;
        let bytes = bytes.max(ALIGNMENT);
        // SAFETY: the context is current.
        let address = unsafe { result::malloc_sync(bytes) }.said("cuMemAlloc")?;
        Ok(Arena {
            device: device.clone(),
            address,
            bytes,
            used: 0,
        })
    }

    /// The bytes that regions of these lengths take.
    pub fn room(lengths: impl IntoIterator<Item = usize>) -> usize {
        let lengths = lengths.into_iter();
        lengths.fold(0, |sum, n| {
            sum.saturating_add(n.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
        })
    }

    /// The next region; what is in it is not known.
    ///
    /// # Errors
    /// When it is full.
    pub fn take(&mut self, bytes: usize) -> Result<Region> {
        if bytes > self.bytes - self.used {
            return Err(Error::Full {
                bytes: self.bytes,
                used: self.used,
                wanted: bytes,
            });
        }
        let address = self.address + self.used as u64;
        self.used = (self.used + Arena::room([bytes])).min(self.bytes);
        Ok(Region { address, bytes })
    }

    fn upload<T: Plain>(&mut self, stream: &Stream, data: &[T]) -> Result<Region> {
        let region = self.take(std::mem::size_of_val(data))?;
        stream.write(region, data)?;
        Ok(region)
    }

    /// Uploads a bitmask matrix.
    ///
    /// # Errors
    /// When the arena is full or the driver refuses.
    pub fn chunks(&mut self, stream: &Stream, packed: &Chunks) -> Result<launch::Weight> {
        Ok(packed.at(
            self.upload(stream, &packed.masks)?,
            self.upload(stream, &packed.starts)?,
            self.upload(stream, &packed.values)?,
        ))
    }

    /// Uploads a dense matrix.
    ///
    /// # Errors
    /// When the arena is full or the driver refuses.
    pub fn rows(&mut self, stream: &Stream, packed: &Rows) -> Result<launch::Weight> {
        Ok(packed.at(self.upload(stream, &packed.values)?))
    }

    /// Uploads a dense matrix in tiles.
    ///
    /// # Errors
    /// When the arena is full or the driver refuses.
    pub fn tiles(&mut self, stream: &Stream, packed: &Tiles) -> Result<launch::Weight> {
        Ok(packed.at(self.upload(stream, &packed.values)?))
    }

    /// Uploads a 2:4 matrix.
    ///
    /// # Errors
    /// When the arena is full or the driver refuses.
    pub fn two_four(&mut self, stream: &Stream, packed: &TwoFour) -> Result<launch::Weight> {
        Ok(packed.at(
            self.upload(stream, &packed.values)?,
            self.upload(stream, &packed.places)?,
        ))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            // SAFETY: allocated here; freeing waits for what runs.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Work in order.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    stream: sys::CUstream,
}

// SAFETY: a stream belongs to the context, as in `Device`.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Stream> {
        device.current()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream {
            device: device.clone(),
            stream: stream.said("cuStreamCreate")?,
        })
    }

    /// Makes its device the one of this thread.
    pub(super) fn current(&self) -> Result<()> {
        self.device.current()
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// When something of it failed.
    pub fn wait(&self) -> Result<()> {
        self.device.current()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream) }.said("cuStreamSynchronize")
    }

    /// Copies to the device, and waits.
    ///
    /// # Errors
    /// When the data do not fill the region exactly, or the driver refuses.
    pub fn write<T: Plain>(&self, to: Region, data: &[T]) -> Result<()> {
        exact("cuMemcpyHtoD", to, std::mem::size_of_val(data))?;
        if data.is_empty() {
            return Ok(());
        }
        self.device.current()?;
        // SAFETY: the region is as long as the data, which live until the wait.
        unsafe { result::memcpy_htod_async(to.address, data, self.stream) }.said("cuMemcpyHtoD")?;
        self.wait()
    }

    /// Copies from the device, and waits.
    ///
    /// # Errors
    /// When the region does not fill `data` exactly, or the driver refuses.
    pub fn read<T: Plain>(&self, from: Region, data: &mut [T]) -> Result<()> {
        exact("cuMemcpyDtoH", from, std::mem::size_of_val(data))?;
        if data.is_empty() {
            return Ok(());
        }
        self.device.current()?;
        // SAFETY: the region is as long as the data, which live until the wait.
        unsafe { result::memcpy_dtoh_async(data, from.address, self.stream) }
            .said("cuMemcpyDtoH")?;
        self.wait()
    }

    /// Copies the start of pinned memory to the device, without a wait.
    ///
    /// # Errors
    /// When the memory is shorter than the region, or the driver refuses.
    ///
    /// # Safety
    /// The memory lives and is not written until the copy is done.
    pub(super) unsafe fn write_pinned(&self, to: Region, from: &Pinned) -> Result<()> {
        from.holds("cuMemcpyHtoD", to)?;
        self.device.current()?;
        // SAFETY: as long as the region; the rest is the caller's promise.
        unsafe {
            let data = std::slice::from_raw_parts(from.at.cast::<u8>(), to.bytes);
            result::memcpy_htod_async(to.address, data, self.stream)
        }
        .said("cuMemcpyHtoD")
    }

    /// Copies from the device to the start of pinned memory, without a wait.
    ///
    /// # Errors
    /// As [`write_pinned`](Stream::write_pinned).
    ///
    /// # Safety
    /// The memory lives and is not used until the copy is done.
    pub(super) unsafe fn read_pinned(&self, from: Region, to: &mut Pinned) -> Result<()> {
        to.holds("cuMemcpyDtoH", from)?;
        self.device.current()?;
        // SAFETY: as long as the region; the rest is the caller's promise.
        unsafe {
            let data = std::slice::from_raw_parts_mut(to.at.cast::<u8>(), from.bytes);
            result::memcpy_dtoh_async(data, from.address, self.stream)
        }
        .said("cuMemcpyDtoH")
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// When the regions are not of the same length, or the driver refuses.
    ///
    /// # Safety
    /// As [`launch`](Stream::launch); and the regions do not overlap.
    pub unsafe fn copy(&self, to: Region, from: Region) -> Result<()> {
        exact("cuMemcpyDtoD", to, from.bytes)?;
        self.device.current()?;
        // SAFETY: as long as each other, and alive.
        unsafe { result::memcpy_dtod_async(to.address, from.address, from.bytes, self.stream) }
            .said("cuMemcpyDtoD")
    }

    /// What other libraries of CUDA call this stream.
    #[doc(hidden)]
    pub fn raw(&self) -> sys::CUstream {
        self.stream
    }

    /// Sets every byte of a region.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn fill(&self, region: Region, byte: u8) -> Result<()> {
        self.device.current()?;
        // SAFETY: a region of device memory.
        unsafe { result::memset_d8_async(region.address, byte, region.bytes, self.stream) }
            .said("cuMemsetD8")
    }

    /// Runs a kernel after what came before.
    ///
    /// # Errors
    /// When the device has no such kernel, when its arguments are not those of its parameters, or when the driver
    /// refuses. What goes wrong in the kernel comes with a later call.
    ///
    /// # Safety
    /// The launch was made by [`launch`](super::launch) of regions in arenas of this stream's device that live until
    /// the kernel ends, and nothing else uses those that it writes meanwhile.
    pub unsafe fn launch(&self, modules: &Modules, launch: &Launch) -> Result<()> {
        let kernel = table::KERNELS.iter().find(|k| k.name == launch.kernel);
        let function = modules.functions.get(launch.kernel.as_str());
        let (Some(kernel), Some(function)) = (kernel, function) else {
            return Err(Error::NoKernel {
                kernel: launch.kernel.clone(),
                capability: modules.ptx.target,
            });
        };
        let kinds = launch.arguments.iter().map(|a| match a {
            Argument::Pointer(_) => Parameter::Pointer,
            Argument::Integer(_) => Parameter::Integer,
            Argument::Float(_) => Parameter::Float,
        });
        if !kinds.eq(kernel.parameters.iter().copied()) {
            return Err(Error::Argument {
                kernel: launch.kernel.clone(),
                what: format!("{:?} for {:?}", launch.arguments, kernel.parameters),
            });
        }
        self.device.current()?;
        let mut arguments: Vec<*mut c_void> = launch.arguments.iter().map(pointer).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: as many arguments as parameters, of their sizes; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                *function,
                (x, y, z),
                (launch.threads, 1, 1),
                0,
                self.stream,
                &mut arguments,
            )
        }
        .said("cuLaunchKernel")
    }

    /// Records what `work` launches on this stream, without running it.
    ///
    /// # Errors
    /// Those of `work`, and when it waits or copies, which a graph can't hold.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        self.device.current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and so is the graph until it is destroyed.
        unsafe {
            result::stream::begin_capture(self.stream, mode).said("cuStreamBeginCapture")?;
            let done = work(self);
            let graph = result::stream::end_capture(self.stream).said("cuStreamEndCapture");
            done?;
            let graph = graph?;
            let none = sys::CUgraphInstantiate_flags(0);
            let exec = result::graph::instantiate(graph, none).said("cuGraphInstantiate");
            let _ = result::graph::destroy(graph);
            Ok(Graph {
                device: self.device.clone(),
                exec: exec?,
            })
        }
    }

    /// Runs a captured graph after what came before.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// As [`launch`](Stream::launch), for everything that was captured.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.device.current()?;
        // SAFETY: both are alive.
        unsafe { result::graph::launch(graph.exec, self.stream) }.said("cuGraphLaunch")
    }

    /// The time when everything before is done.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn mark(&self) -> Result<Event> {
        self.device.current()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = Event {
            device: self.device.clone(),
            event: event.said("cuEventCreate")?,
        };
        // SAFETY: both are alive.
        unsafe { result::event::record(event.event, self.stream) }.said("cuEventRecord")?;
        Ok(event)
    }
}

pub(super) fn exact(call: &'static str, region: Region, bytes: usize) -> Result<()> {
    match region.bytes == bytes {
        true => Ok(()),
        false => Err(Error::Driver {
            call,
            what: format!("{bytes} bytes for a region of {}", region.bytes),
        }),
    }
}

/// Where an argument's value is.
pub(super) fn pointer(argument: &Argument) -> *mut c_void {
    match argument {
        Argument::Pointer(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Argument::Integer(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Argument::Float(v) => std::ptr::from_ref(v).cast_mut().cast(),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            // SAFETY: created here; work in it goes on.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// Captured launches, replayed as one.
#[derive(Debug)]
pub struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}

// SAFETY: a graph belongs to the context, as in `Device`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            // SAFETY: instantiated here.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// Memory of the host that a device copies from and to by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    device: Arc<Device>,
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: memory that is this value's own.
unsafe impl Send for Pinned {}

impl Pinned {
    /// # Errors
    /// When the system has no such memory.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Pinned> {
        device.current()?;
        // SAFETY: the context is current; flags 0.
        let at = unsafe { result::malloc_host(bytes, 0) }.said("cuMemHostAlloc")?;
        // SAFETY: just allocated; zeros, so that it may be read.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned {
            device: device.clone(),
            at,
            bytes,
        })
    }

    /// Its bytes, between copies.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised here.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.bytes) }
    }

    fn holds(&self, call: &'static str, region: Region) -> Result<()> {
        match region.bytes <= self.bytes {
            true => Ok(()),
            false => Err(Error::Driver {
                call,
                what: format!("{} bytes, {} are pinned", region.bytes, self.bytes),
            }),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            // SAFETY: allocated here.
            let _ = unsafe { result::free_host(self.at) };
        }
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

impl Event {
    /// Waits for it.
    ///
    /// # Errors
    /// When something before it failed.
    pub(super) fn wait(&self) -> Result<()> {
        self.device.current()?;
        // SAFETY: alive and recorded.
        unsafe { result::event::synchronize(self.event) }.said("cuEventSynchronize")
    }

    /// Milliseconds from this to a later one of the same stream; waits for it.
    ///
    /// # Errors
    /// When something before it failed.
    pub fn until(&self, later: &Event) -> Result<f32> {
        self.device.current()?;
        // SAFETY: both are alive and recorded.
        unsafe {
            result::event::synchronize(later.event).said("cuEventSynchronize")?;
            result::event::elapsed(self.event, later.event).said("cuEventElapsedTime")
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.current().is_ok() {
            // SAFETY: created here.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_or_device_is_an_error_that_says_so() {
        match Device::open(9_999) {
            Err(e @ Error::NoDriver) => {
                let text = "no CUDA device: the driver's library libcuda is not found";
                assert_eq!(e.to_string(), text);
            }
            Err(e @ Error::NoDevice { .. }) => {
                assert!(e.to_string().starts_with("no CUDA device "), "{e}");
            }
            other => panic!("{other:?}"),
        }
    }
}
