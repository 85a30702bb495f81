//! The kernels of a device.

use super::super::error::{Error, Result};
use super::super::table::{self, KERNELS, Ptx, hopper_for, ptx_for};
use super::{Device, Said};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

/// The kernels that a device runs, compiled for it by the driver.
#[derive(Debug)]
pub struct Modules {
    device: Arc<Device>,
    pub(super) ptx: &'static Ptx,
    modules: Vec<sys::CUmodule>,
    pub(super) functions: HashMap<&'static str, sys::CUfunction>,
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
