//! Rows of which every element is stored.

use super::{Cursor, Layout, Rows, Source, prefetch_part};
use crate::kernels::cpu::simd::{Element, Kind, LANES, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// Every element is stored.
#[derive(Clone, Copy)]
pub(super) struct Dense<E> {
    values: *const u8,
    stride: usize,
    element: PhantomData<E>,
}

/// A place in a dense row.
#[derive(Clone, Copy)]
pub(super) struct DenseCursor<E> {
    next: *const u8,
    element: PhantomData<E>,
}

impl<E: Element> Source for Dense<E> {
    type Cursor = DenseCursor<E>;

    #[inline(always)]
    unsafe fn of(rows: &Rows, _: Range<usize>, _: *mut f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::whole(rows) }
    }

    #[inline(always)]
    unsafe fn whole(rows: &Rows) -> Self {
        let (Layout::Dense(values) | Layout::Bitmask { values, .. }) = &rows.layout;
        Dense {
            values: values.as_ptr(),
            stride: rows.inner * E::SIZE,
            element: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> DenseCursor<E> {
        DenseCursor {
            next: self.values.wrapping_add(row * self.stride),
            element: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(rows: &Rows, block: Range<usize>, part: usize, parts: usize) {
        let stride = rows.inner * E::SIZE;
        // SAFETY: the layout is the caller's promise.
        let all = unsafe { Self::whole(rows) };
        let bytes = block.start * stride..block.end * stride;
        prefetch_part::<S>(all.values, bytes, part, parts);
    }
}

impl<E: Element> Cursor for DenseCursor<E> {
    type Element = E;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let v = S::widen::<E>(self.next);
            self.next = self.next.add(LANES * E::SIZE);
            v
        }
    }

    #[inline(always)]
    unsafe fn rest<S: Simd>(&mut self, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::widen_first::<E>(self.next, n) }
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
        // SAFETY: the caller's promise.
        unsafe {
            let v = S::words(self.next, n);
            self.next = self.next.wrapping_add(2 * LANES * E::SIZE);
            v
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe { S::prefetch(self.next.wrapping_add(bytes)) }
    }
}
