//! Work in order: copies, launches, captured graphs, events.

use super::super::error::{Error, Result};
use super::super::launch::{Argument, Launch, Region};
use super::super::table::{KERNELS, Parameter};
use super::{Device, Modules, Pinned, Plain, Said, exact};
use cudarc::driver::result;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

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
    pub(in crate::kernels::cuda) fn current(&self) -> Result<()> {
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
    pub(in crate::kernels::cuda) unsafe fn write_pinned(
        &self,
        to: Region,
        from: &Pinned,
    ) -> Result<()> {
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
    pub(in crate::kernels::cuda) unsafe fn read_pinned(
        &self,
        from: Region,
        to: &mut Pinned,
    ) -> Result<()> {
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
        let kernel = KERNELS.iter().find(|k| k.name == launch.kernel);
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

/// Where an argument's value is.
pub(in crate::kernels::cuda) fn pointer(argument: &Argument) -> *mut c_void {
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
    pub(in crate::kernels::cuda) fn wait(&self) -> Result<()> {
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
