//! Slices of a tensor by index: rows of an embedding table, decoded from the bytes of the model.

use super::{Extent, Io};
use crate::DType;
use crate::model::{Bitmask, Bytes};
use half::{bf16, f16};

/// What slices are taken from.
#[derive(Clone, Debug)]
pub enum Data {
    /// An input of the kernel.
    Input,
    /// Every element, row-major, of a floating-point dtype.
    Dense(Bytes, DType),
    /// Mask and non-zeros, of a floating-point dtype.
    Bitmask(Bitmask, DType),
}

impl Data {
    /// Decodes `len` elements from element `start` on, which lie within one row of the matrix.
    ///
    /// # Safety
    /// `input` is there for [`Data::Input`] and has the elements; `out` has room for them.
    pub(super) unsafe fn read(
        &self,
        input: Option<*const f32>,
        start: usize,
        len: usize,
        out: *mut f32,
    ) {
        // SAFETY: the caller gives room for `len` elements, which an arena has initialised.
        let out = unsafe { std::slice::from_raw_parts_mut(out, len) };
        match self {
            Data::Input => {
                if let Some(x) = input {
                    // SAFETY: the caller gives the elements.
                    let x = unsafe { std::slice::from_raw_parts(x.add(start), len) };
                    out.copy_from_slice(x);
                }
            }
            Data::Dense(bytes, dtype) => {
                let size = dtype.size();
                decode(*dtype, &bytes[start * size..(start + len) * size], out);
            }
            Data::Bitmask(bits, dtype) => {
                out.fill(0.0);
                let (row, column) = (start / bits.cols, start % bits.cols);
                let size = dtype.size();
                for (i, c) in bits.row_columns(row).enumerate() {
                    if c >= column + len {
                        break;
                    }
                    if c >= column {
                        let at = (bits.row_start(row) + i) * size;
                        let one = &mut out[c - column..c - column + 1];
                        decode(*dtype, &bits.values[at..at + size], one);
                    }
                }
            }
        }
    }
}

/// Little-endian elements as f32.
#[inline(always)]
fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F16 => {
            for (b, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *out = f16::from_le_bytes(*b).to_f32();
            }
        }
        DType::BF16 => {
            for (b, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            for (b, out) in bytes.as_chunks::<4>().0.iter().zip(out) {
                *out = f32::from_le_bytes(*b);
            }
        }
    }
}

/// A planned `Gather` from `[outer, axis, inner]`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Gather {
    pub data: Data,
    pub outer: usize,
    pub axis: usize,
    pub inner: usize,
    /// Counts indices.
    pub indices: Extent,
}

impl Gather {
    /// Runs this member's share of the slices. The indices are the last input.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run(&self, io: &Io<'_>) {
        let (Some(&indices), true) = (io.inputs.last(), self.axis > 0) else {
            return;
        };
        let (active, last) = (self.indices.active(&io.sequence), self.axis as i64 - 1);
        for unit in io.member.share(self.outer * active) {
            let (o, i) = (unit / active, unit % active);
            // SAFETY: the plan sized indices and output; an index is brought into the axis here, though
            // those outside were refused before.
            unsafe {
                let index = indices.cast::<i64>().add(i).read_unaligned();
                let index = if index < 0 { index + last + 1 } else { index };
                let index = index.clamp(0, last) as usize;
                let start = (o * self.axis + index) * self.inner;
                let out = io.out.add((o * self.indices.len + i) * self.inner);
                let data = io.inputs.first().copied();
                self.data.read(data, start, self.inner, out);
            }
        }
    }
}
