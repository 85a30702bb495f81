//! Rows in the bitmask encoding.

use super::{Cursor, Layout, Rows, SLACK, Source, prefetch_part, start};
use crate::kernels::cpu::simd::{Element, I8, Kind, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// The bitmask encoding.
#[derive(Clone, Copy)]
pub(super) struct Masked<E> {
    mask: *const u8,
    stride: usize,
    /// Where the weight's first value is, or would be if the block's copy were all of it.
    values: *const u8,
    offsets: *const u8,
    element: PhantomData<E>,
}

/// A place in a bitmask row.
#[derive(Clone, Copy)]
pub(super) struct MaskCursor<E> {
    mask: *const u8,
    values: *const u8,
    element: PhantomData<E>,
}

impl<E: Element> Source for Masked<E> {
    type Cursor = MaskCursor<E>;

    #[inline(always)]
    unsafe fn of(rows: &Rows, block: Range<usize>, scratch: *mut f32) -> Self {
        let Layout::Bitmask {
            values, offsets, ..
        } = &rows.layout
        else {
            unreachable!("the caller's promise")
        };
        // SAFETY: the caller's promise.
        let whole = unsafe { Self::whole(rows) };
        let stored = values.len() / E::SIZE;
        let end = start(offsets, block.end, stored);
        let mut base = whole.values;
        if end + SLACK > stored {
            let first = start(offsets, block.start, stored);
            let scratch = scratch.cast::<u8>();
            // SAFETY: the weight's offsets were checked against its values; the scratch holds every
            // element of the block and the slack.
            unsafe {
                let (from, len) = (base.add(first * E::SIZE), (end - first) * E::SIZE);
                std::ptr::copy_nonoverlapping(from, scratch, len);
                scratch.add(len).write_bytes(0, SLACK * E::SIZE);
            }
            base = scratch.cast_const().wrapping_sub(first * E::SIZE);
        }
        Masked {
            values: base,
            ..whole
        }
    }

    #[inline(always)]
    unsafe fn whole(rows: &Rows) -> Self {
        let Layout::Bitmask {
            mask,
            values,
            offsets,
        } = &rows.layout
        else {
            unreachable!("the caller's promise")
        };
        Masked {
            mask: mask.as_ptr(),
            stride: rows.inner.div_ceil(8),
            values: values.as_ptr(),
            offsets: offsets.as_ptr(),
            element: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> MaskCursor<E> {
        // SAFETY: there is an offset for each row.
        let start = unsafe { self.offsets.add(row * 8).cast::<i64>().read_unaligned() };
        let start = i64::from_le(start) as usize;
        MaskCursor {
            mask: self.mask.wrapping_add(row * self.stride),
            values: self.values.wrapping_add(start * E::SIZE),
            element: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(rows: &Rows, block: Range<usize>, part: usize, parts: usize) {
        let Layout::Bitmask {
            mask,
            values,
            offsets,
        } = &rows.layout
        else {
            return;
        };
        let (stride, stored) = (rows.inner.div_ceil(8), values.len() / E::SIZE);
        let bytes = block.start * stride..block.end * stride;
        prefetch_part::<S>(mask.as_ptr(), bytes, part, parts);
        let first = start(offsets, block.start, stored);
        let end = start(offsets, block.end, stored);
        let bytes = first * E::SIZE..end * E::SIZE;
        prefetch_part::<S>(values.as_ptr(), bytes, part, parts);
    }
}

impl<E: Element> Cursor for MaskCursor<E> {
    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self) -> S::V {
        // SAFETY: the caller's promise; whole vectors may be read, as `Source::of` saw to.
        unsafe {
            let bits = u16::from_le(self.mask.cast::<u16>().read_unaligned());
            self.mask = self.mask.add(2);
            let v = S::expand::<E>(self.values, bits);
            self.values = self.values.add(S::count(bits) * E::SIZE);
            v
        }
    }

    #[inline(always)]
    unsafe fn rest<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: as `next`; the mask has a byte for each eight weights.
        unsafe {
            let mut bits = u16::from(*self.mask);
            if n > 8 {
                bits |= u16::from(*self.mask.add(1)) << 8;
            }
            S::expand::<E>(self.values, bits)
        }
    }

    #[inline(always)]
    fn has_pairs<S: Simd>() -> bool {
        S::PAIRS && E::KIND == Kind::Bf16
    }

    #[inline(always)]
    unsafe fn next_pairs<S: Simd>(&mut self) -> (S::V, S::V) {
        // SAFETY: as `next`, for 32.
        unsafe {
            let bits = u32::from_le(self.mask.cast::<u32>().read_unaligned());
            self.mask = self.mask.add(4);
            let v = S::expand_pairs(self.values, bits);
            self.values = self.values.add(bits.count_ones() as usize * E::SIZE);
            v
        }
    }

    #[inline(always)]
    fn has_words<S: Simd>() -> bool {
        S::DOT && E::KIND == Kind::Bf16
    }

    #[inline(always)]
    unsafe fn words<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: as `next`, for `n`; the mask has a byte for each eight weights.
        unsafe {
            let mut bits = 0;
            match n {
                32 => bits = u32::from_le(self.mask.cast::<u32>().read_unaligned()),
                _ => {
                    for i in 0..n.div_ceil(8) {
                        bits |= u32::from(*self.mask.add(i)) << (8 * i);
                    }
                }
            }
            self.mask = self.mask.wrapping_add(4);
            let v = S::expand_words(self.values, bits);
            self.values = self.values.add(bits.count_ones() as usize * E::SIZE);
            v
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe { S::prefetch(self.values.wrapping_add(bytes)) }
    }
}

impl MaskCursor<I8> {
    /// The next `n <= 64` bytes; others are 0.
    ///
    /// # Safety
    /// As [`Cursor::bytes`].
    #[inline(always)]
    pub(super) unsafe fn expand_bytes<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: whole vectors may be read; the mask has a byte for each eight weights.
        unsafe {
            let mut bits = 0;
            match n {
                64 => bits = u64::from_le(self.mask.cast::<u64>().read_unaligned()),
                _ => {
                    for i in 0..n.div_ceil(8) {
                        bits |= u64::from(*self.mask.add(i)) << (8 * i);
                    }
                }
            }
            self.mask = self.mask.wrapping_add(8);
            let v = S::expand_bytes(self.values, bits);
            self.values = self.values.add(bits.count_ones() as usize);
            v
        }
    }
}
