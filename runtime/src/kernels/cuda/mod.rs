//! Kernels on NVIDIA GPUs: our own, in `src/*.cu`, shipped as PTX, which the driver compiles for the device at hand.
//!
//! Nothing of CUDA is needed to build this or to start a program with it: the driver's library is opened when
//! [`Device::open`] asks for it, and that it, a symbol of it or a device is missing is an [`Error`].
//!
//! [`pack`] lays weights out as kernels read them, [`launch`] turns sizes and regions of memory into a [`Launch`],
//! checked; neither touches a device. `ptx.py` makes the PTX; `docs/cuda.md` has the layouts.

mod backend;
#[cfg(test)]
mod battery;
#[cfg(test)]
mod battery_conv;
mod blas;
mod blas_lt;
mod driver;
mod error;
mod gpu;
pub mod launch;
mod library;
#[cfg(test)]
pub(crate) mod machine;
pub mod pack;
mod staging;
mod table;

pub use backend::{Library, Limits, Machine, Recorded, Work};
pub use blas::Blas;
pub use blas_lt::BlasLt;
pub use driver::{Arena, Device, Event, Graph, Modules, Plain, Stream};
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use launch::{Argument, Launch, Region};
pub use table::{KERNELS, Kernel, Parameter, Ptx, ptx_for};
