//! Weight rows as the model holds them: dense or bitmask, of any float type, at any alignment.

use super::simd::{Bf16, Element, F16, F32, Kind, LANES, Simd};
use crate::DType;
use crate::model::{Bytes, Encoding, Weight};
use std::marker::PhantomData;
use std::ops::Range;

/// A weight matrix `[outer, inner]`, executed from the model's own bytes.
#[derive(Clone, Debug)]
pub struct Rows {
    dtype: DType,
    outer: usize,
    inner: usize,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    Dense(Bytes),
    Bitmask {
        mask: Bytes,
        values: Bytes,
        /// Where each row starts in `values`, in elements; i64.
        offsets: Bytes,
    },
}

impl Rows {
    /// The rows of a weight of a floating-point dtype; clones no bytes.
    pub fn new(weight: &Weight) -> Option<Rows> {
        let (outer, inner) = weight.matrix();
        weight.dtype().is_float().then(|| Rows {
            dtype: weight.dtype(),
            outer,
            inner,
            layout: match weight.encoding() {
                Encoding::Dense(values) => Layout::Dense(values.clone()),
                Encoding::Bitmask(b) => Layout::Bitmask {
                    mask: b.mask.clone(),
                    values: b.values.clone(),
                    offsets: b.row_offsets.clone(),
                },
            },
        })
    }

    /// The dtype of the stored values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows of the matrix: the layer's outputs.
    pub fn outer(&self) -> usize {
        self.outer
    }

    /// Columns of the matrix: the layer's inputs.
    pub fn inner(&self) -> usize {
        self.inner
    }
    /// Stored values.
    pub fn stored(&self) -> usize {
        let (Layout::Dense(values) | Layout::Bitmask { values, .. }) = &self.layout;
        values.len() / self.dtype.size()
    }

    /// Bytes that a run reads.
    pub fn byte_len(&self) -> usize {
        match &self.layout {
            Layout::Dense(values) => values.len(),
            Layout::Bitmask {
                mask,
                values,
                offsets,
            } => mask.len() + values.len() + offsets.len(),
        }
    }

    /// Elements of scratch that [`Source::of`] needs for blocks of `rows` rows.
    pub(super) fn scratch_len(&self, rows: usize) -> usize {
        match &self.layout {
            Layout::Dense(_) => 0,
            Layout::Bitmask { .. } => rows * self.inner + SLACK,
        }
    }

    /// Calls `visit` with the element type and layout as types.
    #[inline(always)]
    pub(super) unsafe fn visit<S: Simd>(&self, visit: &mut impl Visit<S>) {
        // SAFETY: the caller's promise to `visit`.
        unsafe {
            match (&self.layout, self.dtype) {
                (Layout::Dense(_), DType::F16) => visit.rows::<Dense<F16>>(),
                (Layout::Dense(_), DType::BF16) => visit.rows::<Dense<Bf16>>(),
                (Layout::Dense(_), _) => visit.rows::<Dense<F32>>(),
                (Layout::Bitmask { .. }, DType::F16) => visit.rows::<Masked<F16>>(),
                (Layout::Bitmask { .. }, DType::BF16) => visit.rows::<Masked<Bf16>>(),
                (Layout::Bitmask { .. }, _) => visit.rows::<Masked<F32>>(),
            }
        }
    }
}

/// Values behind a place that may be read with it: those of [`Cursor::next_pairs`].
const SLACK: usize = 2 * LANES;

/// What [`Rows::visit`] calls.
pub(super) trait Visit<S: Simd> {
    /// # Safety
    /// The CPU has the features of `S`.
    unsafe fn rows<R: Source>(&mut self);
}

/// Access to a block of rows in one layout.
pub(super) trait Source: Copy {
    /// A place in one row.
    type Cursor: Cursor;

    /// Access to the rows `block`, not empty. Where reading whole vectors would pass the
    /// end of the weight, the block's values are copied to `scratch` first.
    ///
    /// # Safety
    /// `rows` has this layout; `scratch` holds [`Rows::scratch_len`] elements.
    unsafe fn of(rows: &Rows, block: Range<usize>, scratch: *mut f32) -> Self;

    /// The start of a row.
    ///
    /// # Safety
    /// The row lies in the block.
    unsafe fn row(&self, row: usize) -> Self::Cursor;

    /// Asks for part `part` of `parts` of the bytes of rows `block`.
    ///
    /// # Safety
    /// `rows` has this layout.
    unsafe fn prefetch<S: Simd>(rows: &Rows, block: Range<usize>, part: usize, parts: usize);
}

/// A place in a row, which moves right.
pub(super) trait Cursor: Copy {
    /// The next sixteen weights.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has sixteen more weights.
    unsafe fn next<S: Simd>(&mut self) -> S::V;

    /// The last `n < 16` weights of a row; other lanes are 0.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has `n` more weights.
    unsafe fn rest<S: Simd>(&mut self, n: usize) -> S::V;

    /// Whether [`next_pairs`](Cursor::next_pairs) is there, and faster.
    fn has_pairs<S: Simd>() -> bool {
        false
    }

    /// The next 32 weights: the even ones, then the odd ones.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has 32 more weights, and pairs.
    unsafe fn next_pairs<S: Simd>(&mut self) -> (S::V, S::V) {
        unreachable!("only called where there are pairs")
    }

    /// Asks for the values `bytes` further.
    ///
    /// # Safety
    /// The CPU has the features of `S`.
    unsafe fn prefetch<S: Simd>(&self, bytes: usize);
}

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
        let all = unsafe { Self::of(rows, block.clone(), std::ptr::null_mut()) };
        let bytes = block.start * stride..block.end * stride;
        prefetch_part::<S>(all.values, bytes, part, parts);
    }
}

impl<E: Element> Cursor for DenseCursor<E> {
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
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe { S::prefetch(self.next.wrapping_add(bytes)) }
    }
}

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

/// Where row `row` starts, in elements.
#[inline(always)]
fn start(offsets: &[u8], row: usize, stored: usize) -> usize {
    match offsets.as_chunks::<8>().0.get(row) {
        Some(bytes) => i64::from_le_bytes(*bytes) as usize,
        None => stored,
    }
}

impl<E: Element> Source for Masked<E> {
    type Cursor = MaskCursor<E>;

    #[inline(always)]
    unsafe fn of(rows: &Rows, block: Range<usize>, scratch: *mut f32) -> Self {
        let Layout::Bitmask {
            mask,
            values,
            offsets,
        } = &rows.layout
        else {
            unreachable!("the caller's promise")
        };
        let stored = values.len() / E::SIZE;
        let end = start(offsets, block.end, stored);
        let mut base = values.as_ptr();
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
            mask: mask.as_ptr(),
            stride: rows.inner.div_ceil(8),
            values: base,
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
    unsafe fn prefetch<S: Simd>(&self, bytes: usize) {
        // SAFETY: any address may be asked for.
        unsafe { S::prefetch(self.values.wrapping_add(bytes)) }
    }
}

#[inline(always)]
fn prefetch_part<S: Simd>(base: *const u8, bytes: Range<usize>, part: usize, parts: usize) {
    let len = bytes.len();
    let mut at = bytes.start + part * len / parts;
    let end = bytes.start + (part + 1) * len / parts;
    while at < end {
        // SAFETY: any address may be asked for.
        unsafe { S::prefetch(base.wrapping_add(at)) };
        at += 64;
    }
}
