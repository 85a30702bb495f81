//! Copies between a host's memory and a device's through pinned memory, in halves: while the device takes one, the other
//! is filled.

use super::driver::{Device, Event, Pinned, Stream};
use super::error::Result;
use super::launch::Region;
use std::sync::Arc;

/// Bytes of a half.
const HALF: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Staging {
    halves: [Pinned; 2],
}

impl Staging {
    /// # Errors
    /// When the driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Staging> {
        Ok(Staging {
            halves: [Pinned::new(device, HALF)?, Pinned::new(device, HALF)?],
        })
    }

    /// # Errors
    /// When the data do not fill the region, or the driver refuses.
    pub fn write(&mut self, stream: &Stream, to: Region, data: &[u8]) -> Result<()> {
        super::driver::exact("cuMemcpyHtoD", to, data.len())?;
        let mut taken: [Option<Event>; 2] = [None, None];
        for (i, part) in data.chunks(HALF).enumerate() {
            if let Some(event) = taken[i % 2].take() {
                event.wait()?;
            }
            let at = Region {
                address: to.address + (i * HALF) as u64,
                bytes: part.len(),
            };
            let half = &mut self.halves[i % 2];
            half.bytes_mut()[..part.len()].copy_from_slice(part);
            // SAFETY: the half is not written again before the event, or the end of this call.
            unsafe { stream.write_pinned(at, half)? };
            taken[i % 2] = Some(stream.mark()?);
        }
        stream.wait()
    }

    /// # Errors
    /// As [`write`](Staging::write).
    pub fn read(&mut self, stream: &Stream, from: Region, data: &mut [u8]) -> Result<()> {
        super::driver::exact("cuMemcpyDtoH", from, data.len())?;
        for (i, part) in data.chunks_mut(HALF).enumerate() {
            let at = Region {
                address: from.address + (i * HALF) as u64,
                bytes: part.len(),
            };
            let half = &mut self.halves[0];
            // SAFETY: the half is read after the wait.
            unsafe { stream.read_pinned(at, half)? };
            stream.wait()?;
            part.copy_from_slice(&half.bytes_mut()[..part.len()]);
        }
        Ok(())
    }
}
