//! The panel kernels: rows of a weight matrix times a panel of activations `[chunk, width]`.
//!
//! Dense and sparse weights share everything but this inner loop. A sparse row keeps a tile's columns
//! in registers and walks its non-zeros; a dense row group keeps `MR x NV` vectors.

use super::simd::{LANES, Simd};
use super::weights::{DensePanels, IndexStream};

/// Where the sums of a tile come from and go to.
pub(super) struct Tile<'a> {
    /// Elements of a row of the panel.
    pub width: usize,
    /// Packed activations: `chunk` rows of `width`.
    pub panel: *const f32,
    /// Partial sums between chunks: `rows` of `width`.
    pub partial: *mut f32,
    /// One value per row, or empty.
    pub bias: &'a [f32],
    /// The output of row 0 at the tile's first column; row `r` is `r * stride` further.
    pub out: *mut f32,
    /// Added before the clamp, laid out as `out`; or null.
    pub residual: *const f32,
    /// Elements between output rows.
    pub stride: usize,
    /// Lanes of the tile's last vector that exist.
    pub last_mask: u16,
    /// Limits of the output.
    pub clamp: (f32, f32),
    /// This is the first chunk: sums start at the bias.
    pub first: bool,
    /// This is the last chunk: sums are finished and written out.
    pub last: bool,
}

impl Tile<'_> {
    #[inline(always)]
    pub(super) unsafe fn start<S: Simd, const Q: usize>(
        &self,
        row: usize,
        column: usize,
    ) -> [S::V; Q] {
        // SAFETY: `partial` holds every row of the matrix.
        unsafe {
            if self.first {
                let bias = if self.bias.is_empty() {
                    0.0
                } else {
                    *self.bias.get_unchecked(row)
                };
                [S::splat(bias); Q]
            } else {
                let p = self.partial.add(row * self.width + column);
                std::array::from_fn(|q| S::load(p.add(q * LANES)))
            }
        }
    }

    /// `vectors` is the number of vectors of the whole tile: the last one is masked.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd, const Q: usize>(
        &self,
        row: usize,
        column: usize,
        vectors: usize,
        sums: [S::V; Q],
    ) {
        // SAFETY: `partial` holds every row; `out` and `residual` hold the tile's columns.
        unsafe {
            if !self.last {
                let p = self.partial.add(row * self.width + column);
                for (q, sum) in sums.into_iter().enumerate() {
                    S::store(p.add(q * LANES), sum);
                }
                return;
            }
            let (low, high) = (S::splat(self.clamp.0), S::splat(self.clamp.1));
            let at = row * self.stride + column;
            for (q, mut sum) in sums.into_iter().enumerate() {
                let offset = at + q * LANES;
                let whole = column / LANES + q + 1 < vectors || self.last_mask == u16::MAX;
                if !self.residual.is_null() {
                    let r = self.residual.add(offset);
                    let r = if whole {
                        S::load(r)
                    } else {
                        S::load_mask(r, self.last_mask)
                    };
                    sum = S::add(sum, r);
                }
                sum = S::min(high, S::max(low, sum));
                if whole {
                    S::store(self.out.add(offset), sum);
                } else {
                    S::store_mask(self.out.add(offset), sum, self.last_mask);
                }
            }
        }
    }
}

/// One block and chunk of an index stream on a tile of `Q` vectors.
///
/// # Safety
/// The CPU has the features of `S`; the pointers of `tile` hold what [`Tile`] says.
#[inline(always)]
pub(super) unsafe fn stream_rows<S: Simd, const Q: usize>(
    weights: &IndexStream,
    block: usize,
    chunk: usize,
    tile: &Tile<'_>,
) {
    // Several sets of sums hide the latency that one or two vectors cannot.
    // SAFETY: the caller's promise.
    unsafe {
        match Q {
            1 => stream::<S, Q, 4>(weights, block, chunk, tile),
            2 => stream::<S, Q, 2>(weights, block, chunk, tile),
            _ => stream::<S, Q, 1>(weights, block, chunk, tile),
        }
    }
}

#[inline(always)]
unsafe fn stream<S: Simd, const Q: usize, const SETS: usize>(
    weights: &IndexStream,
    block: usize,
    chunk: usize,
    tile: &Tile<'_>,
) {
    let (rows, first) = weights.part(block, chunk);
    // SAFETY: a part's counts sum to its non-zeros, and offsets lie within the panel.
    unsafe {
        let mut offset = weights.offsets.as_ptr().add(first);
        let mut value = weights.values.as_ptr().add(first);
        for &(row, count) in rows {
            if count == 0 && !tile.first && !tile.last {
                break;
            }
            let row = row as usize;
            let mut sums = [[S::splat(0.0); Q]; SETS];
            sums[0] = tile.start::<S, Q>(row, 0);
            for _ in 0..count / 4 {
                // One load for four offsets: loads are what the loop is bound by.
                let four = u64::from_le(offset.cast::<u64>().read_unaligned());
                for j in 0..4 {
                    let offset = (four >> (16 * j)) as u16;
                    let x = tile.panel.add(offset as usize);
                    step::<S, Q>(x, *value.add(j), &mut sums[j % SETS]);
                }
                // Narrow tiles use weights up faster than the caches foresee.
                if Q <= 4 {
                    S::prefetch(value.wrapping_add(512).cast());
                    S::prefetch(offset.wrapping_add(512).cast());
                }
                (offset, value) = (offset.add(4), value.add(4));
            }
            for _ in 0..count % 4 {
                step::<S, Q>(tile.panel.add(*offset as usize), *value, &mut sums[0]);
                (offset, value) = (offset.add(1), value.add(1));
            }
            let mut total = sums[0];
            for set in &sums[1..] {
                for (sum, set) in total.iter_mut().zip(set) {
                    *sum = S::add(*sum, *set);
                }
            }
            tile.finish::<S, Q>(row, 0, Q, total);
        }
    }
}

/// Adds a weight times a row of the panel.
///
/// # Safety
/// The CPU has the features of `S`; `panel` is a row of `Q` vectors.
#[inline(always)]
pub(super) unsafe fn step<S: Simd, const Q: usize>(
    panel: *const f32,
    weight: f32,
    sums: &mut [S::V; Q],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = S::splat(weight);
        for (q, sum) in sums.iter_mut().enumerate() {
            *sum = S::fma(w, S::load(panel.add(q * LANES)), *sum);
        }
    }
}

/// One row group and chunk of dense weights on a tile of `vectors` vectors.
///
/// # Safety
/// The CPU has the features of `S`; the pointers of `tile` hold what [`Tile`] says; the weights are
/// packed in groups of `S::MR`.
#[inline(always)]
pub(super) unsafe fn dense_rows<S: Simd>(
    weights: &DensePanels,
    group: usize,
    chunk: usize,
    vectors: usize,
    tile: &Tile<'_>,
) {
    let from = chunk * weights.chunk;
    let depth = weights.chunk.min(weights.cols - from);
    let rows = weights.group.min(weights.rows - group * weights.group);
    debug_assert_eq!(weights.group, S::MR);
    // SAFETY: the group lies within the packed values.
    unsafe {
        let w = weights.values.as_ptr().add(weights.start(group, chunk));
        let row = group * weights.group;
        let mut v = 0;
        while v < vectors {
            let left = vectors - v;
            let column = v * LANES;
            match S::NV.min(left) {
                4.. => dense_tile::<S, 4>(w, depth, row, rows, column, vectors, tile),
                3 => dense_tile::<S, 3>(w, depth, row, rows, column, vectors, tile),
                2 => dense_tile::<S, 2>(w, depth, row, rows, column, vectors, tile),
                _ => dense_tile::<S, 1>(w, depth, row, rows, column, vectors, tile),
            }
            v += S::NV.min(left);
        }
    }
}

#[inline(always)]
unsafe fn dense_tile<S: Simd, const Q: usize>(
    w: *const f32,
    depth: usize,
    row: usize,
    rows: usize,
    column: usize,
    vectors: usize,
    tile: &Tile<'_>,
) {
    // SAFETY: as `dense_rows`.
    unsafe {
        match (S::MR, rows) {
            (6, 6) => dense_block::<S, 6, Q, 6>(w, depth, row, column, vectors, tile),
            (6, 5) => dense_block::<S, 5, Q, 6>(w, depth, row, column, vectors, tile),
            (6, 4) => dense_block::<S, 4, Q, 6>(w, depth, row, column, vectors, tile),
            (6, 3) => dense_block::<S, 3, Q, 6>(w, depth, row, column, vectors, tile),
            (6, 2) => dense_block::<S, 2, Q, 6>(w, depth, row, column, vectors, tile),
            (6, _) => dense_block::<S, 1, Q, 6>(w, depth, row, column, vectors, tile),
            (_, 4) => dense_block::<S, 4, Q, 4>(w, depth, row, column, vectors, tile),
            (_, 3) => dense_block::<S, 3, Q, 4>(w, depth, row, column, vectors, tile),
            (_, 2) => dense_block::<S, 2, Q, 4>(w, depth, row, column, vectors, tile),
            _ => dense_block::<S, 1, Q, 4>(w, depth, row, column, vectors, tile),
        }
    }
}

#[inline(always)]
unsafe fn dense_block<S: Simd, const R: usize, const Q: usize, const STRIDE: usize>(
    mut w: *const f32,
    depth: usize,
    row: usize,
    column: usize,
    vectors: usize,
    tile: &Tile<'_>,
) {
    // SAFETY: as `dense_rows`.
    unsafe {
        let mut sums: [[S::V; Q]; R] = std::array::from_fn(|r| tile.start::<S, Q>(row + r, column));
        let mut p = tile.panel.add(column);
        for _ in 0..depth {
            let x: [S::V; Q] = std::array::from_fn(|q| S::load(p.add(q * LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let w = S::splat(*w.add(r));
                for q in 0..Q {
                    sums[q] = S::fma(w, x[q], sums[q]);
                }
            }
            S::prefetch(w.wrapping_add(48 * STRIDE).cast());
            p = p.add(tile.width);
            w = w.add(STRIDE);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            tile.finish::<S, Q>(row + r, column, vectors, sums);
        }
    }
}
