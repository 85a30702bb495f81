//! Chunks of weights of which two of each four columns are stored: nothing is expanded. Each stored weight is
//! multiplied with the line of the panel of its column; each two words of four with the line of their pair, of
//! which a panel has all six.

// Loops and not closures: those are too often left as calls, without the instructions of `S`.
#![allow(clippy::needless_range_loop)]

use super::Tile;
use crate::kernels::cpu::rows::Cursor;
use crate::kernels::cpu::simd::{Bf16, LANES, Simd};

/// What rows are filled up to; every register tile's rows divide it.
pub(super) const ROWS: usize = 12;

/// Most entries of a row's chunk, of weights and of pairs of words. Their lines are behind them, and the next row
/// behind those: rows close together do not fight for places in the first-level cache.
const ENTRIES: usize = 48;
const PAIRS: usize = 16;

/// Most entries of a row's chunk.
const fn entries_of(words: bool) -> usize {
    if words { PAIRS } else { ENTRIES }
}

/// Elements from the entries of a row to those of the next.
pub(super) const fn stride(words: bool) -> usize {
    2 * entries_of(words)
}

/// Lines of the pairs of `columns` columns.
pub(super) const fn word_lines(columns: usize) -> usize {
    columns / 4 * 6
}

/// The lines of a chunk, of at most `depth`: those of whole bytes of the mask.
pub(super) fn depth(depth: usize, words: bool) -> usize {
    match words {
        true => depth.min(6 * PAIRS) / word_lines(8) * word_lines(8),
        false => depth.min(2 * ENTRIES),
    }
}

/// The entries of the next columns of a row, which have `len` lines: stored weights, or pairs of words, and the
/// lines that they are multiplied with. Up to whole vectors is written.
///
/// # Safety
/// The row has these columns; `out` holds `stride` elements.
#[inline(always)]
pub(super) unsafe fn entries<S: Simd, C: Cursor, const WORDS: bool>(
    cursor: &mut C,
    len: usize,
    out: *mut f32,
) {
    let (columns, step) = match WORDS {
        true => (len / 6 * 4, 4 * LANES),
        false => (len, 2 * LANES),
    };
    for k in (0..columns).step_by(step) {
        let n = step.min(columns - k);
        // SAFETY: a chunk has no more entries than there is room for.
        unsafe {
            let out = out.add(k / step * LANES);
            let lines = out.add(const { entries_of(WORDS) }).cast::<u32>();
            match WORDS {
                true => {
                    let (words, bits) = cursor.half_words::<S>(n);
                    S::store(out, words);
                    S::store_pairs(bits, word_lines(k) as u32, lines);
                }
                false => {
                    let (weights, places) = cursor.half::<S>(n);
                    S::store(out, weights);
                    S::store_places(places, k as u32, lines);
                }
            }
        }
    }
}

/// Writes the lines of the pairs of columns whose own pairs `lines` has, two of each four.
///
/// # Safety
/// There is room for them.
#[inline(always)]
pub(super) unsafe fn store_pairs<S: Simd>(lines: &[S::V], out: *mut f32, width: usize) {
    for (group, pairs) in lines.as_chunks::<2>().0.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let six = S::word_pairs(pairs[0], pairs[1]);
            for i in 0..6 {
                S::store(out.add((6 * group + i) * width), six[i]);
            }
        }
    }
}

impl Tile {
    /// Register tiles over a panel of `vectors` vectors.
    ///
    /// # Safety
    /// The weights are entries of whole tiles of rows.
    #[inline(always)]
    pub(super) unsafe fn select<S: Simd, const WORDS: bool>(&self, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match (S::MANY, vectors) {
                (true, 1) => self.rows_of::<S, 6, 1, WORDS>(),
                (true, 2) => self.rows_of::<S, 4, 2, WORDS>(),
                (true, 3) => self.rows_of::<S, 3, 3, WORDS>(),
                (true, _) => self.rows_of::<S, 3, 4, WORDS>(),
                (false, 1) => self.rows_of::<S, 4, 1, WORDS>(),
                (false, 2) => self.rows_of::<S, 2, 2, WORDS>(),
                (false, 3) => self.rows_of::<S, 1, 3, WORDS>(),
                (false, _) => self.rows_of::<S, 1, 4, WORDS>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn rows_of<S: Simd, const M: usize, const W: usize, const WORDS: bool>(&self) {
        let entries = match WORDS {
            true => self.depth / 6,
            false => self.depth / 2,
        };
        for row in (0..self.rows).step_by(M) {
            // SAFETY: the caller's promise; lines lie in the panel.
            unsafe {
                let at = self.sums.add(row * W * LANES);
                let mut sums = [[S::splat(0.0); W]; M];
                if !self.first {
                    for m in 0..M {
                        for q in 0..W {
                            sums[m][q] = S::load(at.add((m * W + q) * LANES));
                        }
                    }
                }
                let weights = self.weights.add(row * const { stride(WORDS) });
                for e in 0..entries {
                    for m in 0..M {
                        let entry = weights.add(m * const { stride(WORDS) } + e);
                        let weight = S::splat(*entry);
                        let line = *entry.add(const { entries_of(WORDS) }).cast::<u32>() as usize;
                        let x = self.panel.add(line * W * LANES);
                        for q in 0..W {
                            let x = S::load(x.add(q * LANES));
                            sums[m][q] = match WORDS {
                                true => S::dot::<Bf16>(weight, x, sums[m][q]),
                                false => S::fma(weight, x, sums[m][q]),
                            };
                        }
                    }
                }
                for m in 0..M {
                    for q in 0..W {
                        S::store(at.add((m * W + q) * LANES), sums[m][q]);
                    }
                }
            }
        }
    }
}
