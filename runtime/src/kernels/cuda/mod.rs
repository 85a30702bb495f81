//! Kernels on NVIDIA GPUs: our own, in `src/*.cu`, shipped as PTX, which the driver compiles for the device at hand.
//!
//! Nothing of CUDA is needed to build this or to start a program with it: the driver's library is opened when
//! [`Device::open`] asks for it, and that it, a symbol of it or a device is missing is an [`Error`].
//!
//! [`pack`] lays weights out as kernels read them, [`launch`] turns sizes and regions of memory into a [`Launch`],
//! checked; neither touches a device. `ptx.py` makes the PTX; `docs/cuda.md` has the layouts.

mod device;
mod error;
#[cfg(test)]
mod host;
#[cfg(test)]
mod host_battery;
pub mod launch;
pub mod pack;
mod table;

pub use device::{Arena, Device, Event, Graph, Modules, Stream};
pub use error::{Error, Result};
pub use launch::{Argument, Launch, Region};
pub use table::{KERNELS, Kernel, Parameter, Ptx, ptx_for};
