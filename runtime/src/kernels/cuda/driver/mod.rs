//! The driver: a device by its context, and what it has: modules, memory, streams.

mod memory;
mod modules;
mod stream;

pub use memory::{Arena, Plain};
pub(super) use memory::{Pinned, exact};
pub use modules::Modules;
#[cfg(test)]
pub(super) use stream::pointer;
pub use stream::{Event, Graph, Stream};

use super::backend::Limits;
use super::error::{Error, Result};
use super::library::probe;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
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
