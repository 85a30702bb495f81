//! Memory of a device, and of the host where a device copies from and to.

use super::super::error::{Error, Result};
use super::super::launch::{self, Region};
use super::super::pack::{Chunks, Rows, Tiles, TwoFour};
use super::{Device, Said, Stream};
use cudarc::driver::result;
use std::ffi::c_void;
use std::sync::Arc;

/// Regions of an arena start at multiples of it.
const ALIGNMENT: usize = 256;

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

pub(in crate::kernels::cuda) fn exact(
    call: &'static str,
    region: Region,
    bytes: usize,
) -> Result<()> {
    match region.bytes == bytes {
        true => Ok(()),
        false => Err(Error::Driver {
            call,
            what: format!("{bytes} bytes for a region of {}", region.bytes),
        }),
    }
}

/// Memory of the host that a device copies from and to by itself.
#[derive(Debug)]
pub(in crate::kernels::cuda) struct Pinned {
    device: Arc<Device>,
    pub(super) at: *mut c_void,
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

    pub(super) fn holds(&self, call: &'static str, region: Region) -> Result<()> {
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
