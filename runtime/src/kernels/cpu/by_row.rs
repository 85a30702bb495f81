//! Dense panel products whose vectors are output rows: a tile is two vectors of rows times a few columns.
//!
//! Columns need not fill vectors: a 7x7 plane of 49 pixels takes 49 columns here and 64 lanes in
//! [`panel`](super::panel). The sums of a group of rows lie column by column and are transposed at the end.

use super::panel::Tile;
use super::simd::{LANES, Simd, first};
use super::weights::{DensePanels, ROW_GROUP};

/// Most columns of a register tile.
pub(crate) const MOST_COLUMNS: usize = 10;

/// Vectors of a group of rows.
const VECTORS: usize = ROW_GROUP / LANES;

/// One row group and chunk of dense weights on a tile of `count` columns.
///
/// # Safety
/// The CPU has the features of `S`; the pointers of `tile` hold what [`Tile`] says, `partial` whole groups
/// of rows; the weights are packed in groups of [`ROW_GROUP`].
#[inline(always)]
pub(super) unsafe fn rows<S: Simd>(
    weights: &DensePanels,
    group: usize,
    chunk: usize,
    count: usize,
    tile: &Tile<'_>,
) {
    let depth = weights.chunk.min(weights.cols - chunk * weights.chunk);
    let row = group * ROW_GROUP;
    let rows = ROW_GROUP.min(weights.rows - row);
    debug_assert_eq!(weights.group, ROW_GROUP);
    // SAFETY: the group lies within the packed values.
    unsafe {
        let w = weights.values.as_ptr().add(weights.start(group, chunk));
        let sums = tile.partial.add(row * tile.width);
        let bias: [S::V; VECTORS] = std::array::from_fn(|v| match tile.bias.is_empty() {
            true => S::splat(0.0),
            false => {
                let left = rows.saturating_sub(v * LANES);
                S::load_mask(
                    tile.bias.as_ptr().wrapping_add(row + v * LANES),
                    first(left),
                )
            }
        });
        let parts = count.div_ceil(MOST_COLUMNS);
        for part in 0..parts {
            let from = part * count / parts;
            let to = (part + 1) * count / parts;
            macro_rules! columns {
                ($($n:literal)*) => {
                    match to - from {
                        $($n => block::<S, $n>(w, depth, from, (part, parts), bias, sums, tile),)*
                        _ => unreachable!("parts have 1 to 10 columns"),
                    }
                };
            }
            columns!(1 2 3 4 5 6 7 8 9 10);
        }
        if tile.last {
            finish::<S>(row, rows, count, sums, tile);
        }
    }
}

#[inline(always)]
unsafe fn block<S: Simd, const C: usize>(
    mut w: *const f32,
    depth: usize,
    column: usize,
    (part, parts): (usize, usize),
    bias: [S::V; VECTORS],
    sums: *mut f32,
    tile: &Tile<'_>,
) {
    // SAFETY: as `rows`.
    unsafe {
        let at = sums.add(column * ROW_GROUP);
        let mut totals: [[S::V; VECTORS]; C] = match tile.first {
            true => [bias; C],
            false => std::array::from_fn(|c| {
                std::array::from_fn(|v| S::load(at.add(c * ROW_GROUP + v * LANES)))
            }),
        };
        let mut x = tile.panel.add(column);
        // Every part asks for its share of the next group's weights.
        let share = (ROW_GROUP / parts).max(1);
        let mut next = w.wrapping_add(ROW_GROUP * depth + part * share * depth);
        for _ in 0..depth {
            let lines: [S::V; VECTORS] = std::array::from_fn(|v| S::load(w.add(v * LANES)));
            for (c, totals) in totals.iter_mut().enumerate() {
                let x = S::splat(*x.add(c));
                for v in 0..VECTORS {
                    totals[v] = S::fma(x, lines[v], totals[v]);
                }
            }
            S::prefetch(next.cast());
            next = next.wrapping_add(share);
            x = x.add(tile.width);
            w = w.add(ROW_GROUP);
        }
        for (c, totals) in totals.into_iter().enumerate() {
            for (v, total) in totals.into_iter().enumerate() {
                S::store(at.add(c * ROW_GROUP + v * LANES), total);
            }
        }
    }
}

/// Transposes a group's sums, adds the residual, clamps and writes.
#[inline(always)]
unsafe fn finish<S: Simd>(
    row: usize,
    rows: usize,
    count: usize,
    sums: *const f32,
    tile: &Tile<'_>,
) {
    let (low, high) = (tile.clamp.0, tile.clamp.1);
    // SAFETY: as `rows`.
    unsafe {
        let (low, high) = (S::splat(low), S::splat(high));
        for from in (0..rows).step_by(LANES) {
            for column in (0..count).step_by(LANES) {
                let left = count - column;
                let lines: [S::V; LANES] = std::array::from_fn(|i| match i < left {
                    true => S::load(sums.add((column + i) * ROW_GROUP + from)),
                    false => S::splat(0.0),
                });
                let mask = first(left);
                let lines = S::transpose(lines).into_iter();
                for (i, mut y) in lines.enumerate().take(rows - from) {
                    let at = (row + from + i) * tile.stride + column;
                    if !tile.residual.is_null() {
                        y = S::add(y, S::load_mask(tile.residual.add(at), mask));
                    }
                    S::store_mask(tile.out.add(at), S::min(high, S::max(low, y)), mask);
                }
            }
        }
    }
}
