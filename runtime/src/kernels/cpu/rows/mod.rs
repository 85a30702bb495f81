//! Weight rows as the model holds them: dense, bitmask or 2:4, of any float type, at any alignment.

mod dense;
mod masked;
mod scaled;

use super::simd::{Bf16, Element, F16, F32, LANES, Simd};
use crate::DType;
use crate::model::{Bytes, Encoding, Weight};
use dense::Dense;
use masked::Masked;
use scaled::Scaled;
use std::ops::Range;

/// A weight matrix `[outer, inner]`, executed from the model's own bytes.
#[derive(Clone, Debug)]
pub struct Rows {
    dtype: DType,
    outer: usize,
    inner: usize,
    layout: Layout,
    /// Rows, from the first one on, of which whole vectors may be read.
    whole: usize,
    /// Of signed bytes.
    scaling: Option<Scaling>,
}

/// A scale for each group of a row's columns.
#[derive(Clone, Debug)]
struct Scaling {
    group: usize,
    /// bfloat16.
    scales: Bytes,
}

#[derive(Clone, Debug)]
enum Layout {
    Dense(Bytes),
    Bitmask {
        mask: Bytes,
        values: Bytes,
        /// Where each row starts in `values`, in elements; i64. `None` where two of each four columns are
        /// stored.
        offsets: Option<Bytes>,
    },
}

impl Rows {
    /// The rows of a weight of a floating-point dtype or with scales; clones no bytes.
    pub fn new(weight: &Weight) -> Option<Rows> {
        let (outer, inner) = weight.matrix();
        let whole = match weight.encoding() {
            Encoding::Dense(_) => outer,
            Encoding::Bitmask(b) => {
                let stored = b.values.len() / weight.dtype().size();
                let offsets = b.row_offsets.as_deref();
                let end = |row: usize| start(offsets, row + 1, inner, stored);
                let fits = |row: usize| end(row) + SLACK <= stored;
                outer - (0..outer).rev().take_while(|&r| !fits(r)).count()
            }
        };
        weight.element_dtype().is_float().then(|| Rows {
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
            whole,
            scaling: weight.scales().map(|s| Scaling {
                group: s.group,
                scales: s.values.clone(),
            }),
        })
    }

    /// Columns of a group of signed bytes.
    pub(super) fn group(&self) -> Option<usize> {
        self.scaling.as_ref().map(|s| s.group)
    }

    /// Rows, from the first one on, that [`Source::whole`] gives access to.
    pub(super) fn whole(&self) -> usize {
        self.whole
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

    /// Whether every element is stored.
    pub fn is_dense(&self) -> bool {
        matches!(self.layout, Layout::Dense(_))
    }

    /// Whether two of each four columns are stored.
    pub(super) fn is_two_of_four(&self) -> bool {
        matches!(self.layout, Layout::Bitmask { offsets: None, .. })
    }

    /// Stored values.
    pub fn stored(&self) -> usize {
        let (Layout::Dense(values) | Layout::Bitmask { values, .. }) = &self.layout;
        values.len() / self.dtype.size()
    }

    /// Bytes that a run reads.
    pub fn byte_len(&self) -> usize {
        let scales = self.scaling.as_ref().map_or(0, |s| s.scales.len());
        scales
            + match &self.layout {
                Layout::Dense(values) => values.len(),
                Layout::Bitmask {
                    mask,
                    values,
                    offsets,
                } => mask.len() + values.len() + offsets.as_ref().map_or(0, |o| o.len()),
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
                (Layout::Bitmask { offsets: None, .. }, dtype) => match dtype {
                    DType::F16 => visit.rows::<Masked<F16, true>>(),
                    DType::BF16 => visit.rows::<Masked<Bf16, true>>(),
                    _ => visit.rows::<Masked<F32, true>>(),
                },
                (Layout::Bitmask { .. }, DType::F16) => visit.rows::<Masked<F16, false>>(),
                (Layout::Bitmask { .. }, DType::BF16) => visit.rows::<Masked<Bf16, false>>(),
                (Layout::Bitmask { .. }, DType::I8) => visit.rows::<Scaled>(),
                (Layout::Bitmask { .. }, _) => visit.rows::<Masked<F32, false>>(),
            }
        }
    }
}

/// Values behind a place that may be read with it: those of [`Cursor::bytes`].
const SLACK: usize = 4 * LANES;

/// Where row `row` starts, in elements.
#[inline(always)]
fn start(offsets: Option<&[u8]>, row: usize, inner: usize, stored: usize) -> usize {
    let Some(offsets) = offsets else {
        return row * (inner / 2);
    };
    match offsets.as_chunks::<8>().0.get(row) {
        Some(bytes) => i64::from_le_bytes(*bytes) as usize,
        None => stored,
    }
}

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

    /// Access to the first [`Rows::whole`] rows.
    ///
    /// # Safety
    /// `rows` has this layout.
    unsafe fn whole(rows: &Rows) -> Self;

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
    /// Whether two weights of each four columns are stored, and [`half`](Cursor::half) is there.
    const HALF: bool = false;

    /// The type of stored weights.
    type Element: Element;

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

    /// The weights, sixteen at most, that are stored of the next `n <= 32`, and where they stand; what is behind
    /// them is not told.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has `n` more weights, of which half are stored; fewer than 32 only
    /// in whole bytes of the mask, or at its end.
    unsafe fn half<S: Simd>(&mut self, _: usize) -> (S::V, S::Places) {
        unreachable!("only called where half of the weights are stored")
    }

    /// The words, 32 at most, that are stored of the next `n <= 64`, and their bits of the mask.
    ///
    /// # Safety
    /// As [`half`](Cursor::half), for 64 weights, and words.
    unsafe fn half_words<S: Simd>(&mut self, _: usize) -> (S::V, u64) {
        unreachable!("only called where half of the weights are stored")
    }

    /// Whether [`words`](Cursor::words) is there, and products of them.
    fn has_words<S: Simd>() -> bool {
        false
    }

    /// The next `n <= 32` words; others are 0.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has `n` more weights, and words; fewer than 32 only
    /// at its end.
    unsafe fn words<S: Simd>(&mut self, _: usize) -> S::V {
        unreachable!("only called where there are words")
    }

    /// Whether [`bytes`](Cursor::bytes) and [`scales`](Cursor::scales) are there.
    fn has_bytes<S: Simd>() -> bool {
        false
    }

    /// The next `n <= 64` bytes, without their scales; other bytes are 0.
    ///
    /// # Safety
    /// As [`words`](Cursor::words), for 64 bytes.
    unsafe fn bytes<S: Simd>(&mut self, _: usize) -> S::V {
        unreachable!("only called where there are bytes")
    }

    /// The scales of `n` groups of the row, sixteen at most, from group `from` on; others are 0.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the row has these groups, and bytes.
    unsafe fn scales<S: Simd>(&self, _: usize, _: usize) -> S::V {
        unreachable!("only called where there are bytes")
    }

    /// Asks for the values `bytes` further.
    ///
    /// # Safety
    /// The CPU has the features of `S`.
    unsafe fn prefetch<S: Simd>(&self, bytes: usize);
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
