//! Rows in the bitmask encodings: any elements, or two of each four columns.

use super::{Cursor, Layout, Rows, SLACK, Source, prefetch_part, start};
use crate::kernels::cpu::simd::{Element, I8, Kind, LANES, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// The bitmask encoding; with `HALF` two of each four columns are stored.
#[derive(Clone, Copy)]
pub(super) struct Masked<E, const HALF: bool> {
    mask: *const u8,
    stride: usize,
    /// Where the weight's first value is, or would be if the block's copy were all of it.
    values: *const u8,
    /// Where each row starts, if it is not known.
    offsets: *const u8,
    /// Values of a row, if that is known.
    half: usize,
    element: PhantomData<E>,
}

/// A place in a bitmask row.
#[derive(Clone, Copy)]
pub(super) struct MaskCursor<E, const HALF: bool> {
    mask: *const u8,
    values: *const u8,
    element: PhantomData<E>,
}

impl<E: Element, const HALF: bool> Source for Masked<E, HALF> {
    type Cursor = MaskCursor<E, HALF>;

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
        let (offsets, inner) = (offsets.as_deref(), rows.inner);
        let end = start(offsets, block.end, inner, stored);
        let mut base = whole.values;
        if end + SLACK > stored {
            let first = start(offsets, block.start, inner, stored);
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
            offsets: offsets.as_ref().map_or(std::ptr::null(), |o| o.as_ptr()),
            half: rows.inner / 2,
            element: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> MaskCursor<E, HALF> {
        let start = match HALF {
            true => row * self.half,
            false => {
                // SAFETY: there is an offset for each row.
                let start = unsafe { self.offsets.add(row * 8).cast::<i64>().read_unaligned() };
                i64::from_le(start) as usize
            }
        };
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
        let offsets = offsets.as_deref();
        let first = start(offsets, block.start, rows.inner, stored);
        let end = start(offsets, block.end, rows.inner, stored);
        let bytes = first * E::SIZE..end * E::SIZE;
        prefetch_part::<S>(values.as_ptr(), bytes, part, parts);
    }
}

impl<E: Element, const HALF: bool> Cursor for MaskCursor<E, HALF> {
    type Element = E;

    const HALF: bool = HALF;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self) -> S::V {
        // SAFETY: the caller's promise; whole vectors may be read, as `Source::of` saw to.
        unsafe {
            let bits = u16::from_le(self.mask.cast::<u16>().read_unaligned());
            self.mask = self.mask.add(2);
            let v = S::expand::<E>(self.values, bits);
            let count = match HALF {
                true => LANES / 2,
                false => S::count(bits),
            };
            self.values = self.values.add(count * E::SIZE);
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
        !HALF && S::PAIRS && E::KIND == Kind::Bf16
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
    unsafe fn half<S: Simd>(&mut self, n: usize) -> (S::V, S::Places) {
        // SAFETY: the caller's promise; whole vectors may be read, as `Source::of` saw to.
        unsafe {
            let bits = match n {
                32 => u32::from_le(self.mask.cast::<u32>().read_unaligned()),
                _ => self.bits(n) as u32,
            };
            let v = S::widen::<E>(self.values);
            self.mask = self.mask.add(n / 8);
            self.values = self.values.add(n / 2 * E::SIZE);
            (v, S::places(bits))
        }
    }

    #[inline(always)]
    unsafe fn half_words<S: Simd>(&mut self, n: usize) -> (S::V, u64) {
        // SAFETY: as `half`.
        unsafe {
            let bits = match n {
                64 => u64::from_le(self.mask.cast::<u64>().read_unaligned()),
                _ => self.bits(n),
            };
            let v = S::words(self.values, 2 * LANES);
            self.mask = self.mask.add(n / 8);
            self.values = self.values.add(n / 2 * E::SIZE);
            (v, bits)
        }
    }

    #[inline(always)]
    fn has_words<S: Simd>() -> bool {
        match E::KIND {
            Kind::Bf16 => S::DOT,
            Kind::F16 => S::HALVES,
            _ => false,
        }
    }

    #[inline(always)]
    unsafe fn words<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: as `next`, for `n`; the mask has a byte for each eight weights.
        unsafe {
            let bits = match n {
                32 => u32::from_le(self.mask.cast::<u32>().read_unaligned()),
                _ => self.bits(n) as u32,
            };
            self.mask = self.mask.wrapping_add(4);
            let v = S::expand_words(self.values, bits);
            let count = match HALF {
                true => n / 2,
                false => bits.count_ones() as usize,
            };
            self.values = self.values.add(count * E::SIZE);
            v
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe {
            S::prefetch(self.values.wrapping_add(bytes));
            // With so little work for each byte the mask would be waited for.
            if HALF {
                S::prefetch(self.mask.wrapping_add(bytes / (4 * E::SIZE)));
            }
        }
    }
}

impl<E, const HALF: bool> MaskCursor<E, HALF> {
    /// The bits of the next `n <= 64` weights.
    ///
    /// # Safety
    /// The row has that many more weights.
    #[inline(always)]
    unsafe fn bits(&self, n: usize) -> u64 {
        let mut bits = 0;
        for i in 0..n.div_ceil(8) {
            // SAFETY: the mask has a byte for each eight weights.
            bits |= unsafe { u64::from(*self.mask.add(i)) } << (8 * i);
        }
        bits
    }
}

impl MaskCursor<I8, false> {
    /// The next `n <= 64` bytes; others are 0.
    ///
    /// # Safety
    /// As [`Cursor::bytes`].
    #[inline(always)]
    pub(super) unsafe fn expand_bytes<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: whole vectors may be read; the mask has a byte for each eight weights.
        unsafe {
            let bits = match n {
                64 => u64::from_le(self.mask.cast::<u64>().read_unaligned()),
                _ => self.bits(n),
            };
            self.mask = self.mask.wrapping_add(8);
            let v = S::expand_bytes(self.values, bits);
            self.values = self.values.add(bits.count_ones() as usize);
            v
        }
    }
}
