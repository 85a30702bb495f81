//! Rows of signed bytes in the bitmask encoding, with a scale for each group of columns.

use super::masked::{MaskCursor, Masked};
use super::{Cursor, Rows, Scaling, Source};
use crate::kernels::cpu::simd::{Bf16, Element, I8, LANES, Simd};
use std::ops::Range;

/// The encoding.
#[derive(Clone, Copy)]
pub(super) struct Scaled {
    bytes: Masked<I8, false>,
    scales: *const u8,
    /// Groups of a row.
    groups: usize,
    digits: u32,
}

/// A place in a row.
#[derive(Clone, Copy)]
pub(super) struct ScaledCursor {
    bytes: MaskCursor<I8, false>,
    /// The row's scales.
    scales: *const u8,
    /// Binary digits of a group's columns.
    digits: u32,
    column: usize,
}

impl Scaled {
    #[inline(always)]
    fn new(rows: &Rows, bytes: Masked<I8, false>) -> Scaled {
        let Some(Scaling { group, scales }) = &rows.scaling else {
            unreachable!("the caller's promise")
        };
        Scaled {
            bytes,
            scales: scales.as_ptr(),
            groups: rows.inner.div_ceil(*group),
            digits: group.trailing_zeros(),
        }
    }
}

impl Source for Scaled {
    type Cursor = ScaledCursor;

    #[inline(always)]
    unsafe fn of(rows: &Rows, block: Range<usize>, scratch: *mut f32) -> Self {
        // SAFETY: the caller's promise.
        Scaled::new(rows, unsafe { Masked::of(rows, block, scratch) })
    }

    #[inline(always)]
    unsafe fn whole(rows: &Rows) -> Self {
        // SAFETY: the caller's promise.
        Scaled::new(rows, unsafe { Masked::whole(rows) })
    }

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> ScaledCursor {
        ScaledCursor {
            // SAFETY: the caller's promise.
            bytes: unsafe { self.bytes.row(row) },
            scales: self.scales.wrapping_add(row * self.groups * Bf16::SIZE),
            digits: self.digits,
            column: 0,
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(rows: &Rows, block: Range<usize>, part: usize, parts: usize) {
        // SAFETY: the caller's promise.
        unsafe { Masked::<I8, false>::prefetch::<S>(rows, block, part, parts) }
    }
}

impl ScaledCursor {
    /// The scale of the next column, which moves on by `n`.
    #[inline(always)]
    unsafe fn scale(&mut self, n: usize) -> f32 {
        let at = (self.column >> self.digits) * Bf16::SIZE;
        self.column += n;
        // SAFETY: the row has a scale for each group.
        let bits = unsafe { self.scales.add(at).cast::<[u8; 2]>().read() };
        f32::from_bits(u32::from(u16::from_le_bytes(bits)) << 16)
    }
}

impl Cursor for ScaledCursor {
    type Element = I8;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self) -> S::V {
        // SAFETY: the caller's promise; sixteen columns lie in one group.
        unsafe {
            let scale = S::splat(self.scale(LANES));
            S::mul(self.bytes.next::<S>(), scale)
        }
    }

    #[inline(always)]
    unsafe fn rest<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: as `next`.
        unsafe {
            let scale = S::splat(self.scale(n));
            S::mul(self.bytes.rest::<S>(n), scale)
        }
    }

    #[inline(always)]
    fn has_bytes<S: Simd>() -> bool {
        S::BYTES
    }

    #[inline(always)]
    unsafe fn bytes<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { self.bytes.expand_bytes::<S>(n) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, from: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.scales.add(from * Bf16::SIZE);
            match n {
                LANES.. => S::widen::<Bf16>(at),
                _ => S::widen_first::<Bf16>(at, n),
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe { self.bytes.prefetch::<S>(bytes) }
    }
}
