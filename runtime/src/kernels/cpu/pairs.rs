//! Index streams of two output rows at a time: where both have a weight, one load of the panel serves both.
//!
//! Rows are paired anew for each chunk, those together that share many columns. The columns of a pair come
//! sorted: first those of both rows, then as many of one row alone as of the other. So a pair has two loops
//! and neither looks at masks. What one row has more alone counts as shared, with a zero for the other row.

use super::packed::Values;
use super::panel::{Tile, step};
use super::simd::{LANES, Simd};
use super::weights::{BLOCK_ROWS, Grid, MatrixRows};
use crate::parallel;
use std::ops::Range;

/// The second row of a pair that has but one.
pub(super) const NONE: u32 = u32::MAX;

/// How many rows behind a row may become its partner.
const REACH: usize = 48;

/// Two rows of a block and chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The second one may be [`NONE`].
    pub rows: [u32; 2],
    /// Columns of which both rows take a weight.
    pub both: u32,
    /// Columns that each row has alone.
    pub apart: u32,
}

impl From<&[u32; 4]> for Pair {
    fn from(&[first, second, both, apart]: &[u32; 4]) -> Pair {
        Pair {
            rows: [first, second],
            both,
            apart,
        }
    }
}

impl Pair {
    /// Entries in `offsets`, and in `values`.
    pub fn lens(&self) -> (usize, usize) {
        let (both, apart) = (self.both as usize, self.apart as usize);
        (both + 2 * apart, 2 * (both + apart))
    }

    pub fn is_empty(&self) -> bool {
        self.both == 0 && self.apart == 0
    }
}

/// Where a block and chunk start in `pairs`, `offsets` and `values`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub pair: usize,
    pub offset: usize,
    pub value: usize,
}

/// The non-zeros of a matrix in the order of use: by chunk of columns, by block of rows, by pair.
#[derive(Debug)]
pub struct PairStream {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) chunk: usize,
    /// Columns of an activation panel.
    pub(super) width: usize,
    pub(super) nonzeros: usize,
    /// Of each block and chunk, those without columns last.
    pub(super) pairs: Vec<Pair>,
    /// At `c * blocks + b` for block `b` and chunk `c`.
    pub(super) starts: Vec<Start>,
    /// Panel offsets in elements: for each column of both rows one, then for each two columns of one row
    /// alone the first row's and the second's.
    pub(super) offsets: Values<u16>,
    /// For each column of both rows, and for each two of one row alone, the first row's and the second's.
    pub(super) values: Values<f32>,
}

impl PairStream {
    /// Packs a matrix: pairs first, so that nothing but the stream itself is allocated.
    pub fn pack(
        rows: usize,
        cols: usize,
        chunk: usize,
        width: usize,
        matrix: &impl MatrixRows,
    ) -> Self {
        let grid = Grid::new(rows, cols, chunk, width);
        let paired: Vec<(Vec<Pair>, usize)> = parallel::map(0..grid.len(), |i| {
            let (columns, rows) = grid.part(i);
            pair_up(rows, columns, matrix)
        });
        let mut pairs = Vec::with_capacity(rows.div_ceil(2) * grid.chunks);
        let mut starts = Vec::with_capacity(paired.len());
        let (mut offset, mut value) = (0, 0);
        for (list, _) in &paired {
            starts.push(Start {
                pair: pairs.len(),
                offset,
                value,
            });
            pairs.extend_from_slice(list);
            for (o, v) in list.iter().map(Pair::lens) {
                (offset, value) = (offset + o, value + v);
            }
        }
        let (mut offsets, mut values) = (vec![0u16; offset], vec![0f32; value]);
        let lens = |(list, _): &(Vec<Pair>, usize)| {
            let lens = list.iter().map(Pair::lens);
            lens.fold((0, 0), |s, l| (s.0 + l.0, s.1 + l.1))
        };
        grid.fill(
            &paired,
            lens,
            &mut offsets,
            &mut values,
            |columns, (list, _), o, v| {
                let mut lists: [Vec<(usize, f32)>; 2] = Default::default();
                let (mut o, mut v) = (o, v);
                for pair in list {
                    for (list, row) in lists.iter_mut().zip(pair.rows) {
                        list.clear();
                        if row != NONE {
                            let from = columns.start;
                            matrix.visit(row as usize, columns.clone(), |k, value| {
                                list.push(((k - from) * width, value));
                            });
                        }
                    }
                    let (len_o, len_v) = pair.lens();
                    let (first_o, rest_o) = o.split_at_mut(len_o);
                    let (first_v, rest_v) = v.split_at_mut(len_v);
                    (o, v) = (rest_o, rest_v);
                    fill(pair, &lists, first_o, first_v);
                }
            },
        );
        PairStream {
            rows,
            cols,
            chunk: grid.chunk,
            width,
            nonzeros: paired.iter().map(|p| p.1).sum(),
            pairs,
            starts,
            offsets: Values::Owned(offsets),
            values: Values::Owned(values),
        }
    }

    /// Resident bytes.
    pub(super) fn byte_len(&self) -> usize {
        self.values.len() * 4
            + self.offsets.len() * 2
            + self.pairs.len() * size_of::<Pair>()
            + self.starts.len() * size_of::<Start>()
    }

    /// Pairs of a block and chunk, and where their columns start.
    pub(super) fn part(&self, block: usize, chunk: usize) -> (&[Pair], Start) {
        let rows = BLOCK_ROWS.min(self.rows - block * BLOCK_ROWS);
        let start = self.starts[chunk * self.rows.div_ceil(BLOCK_ROWS) + block];
        (
            &self.pairs[start.pair..start.pair + rows.div_ceil(2)],
            start,
        )
    }
}

/// Pairs the rows of a block in a chunk of columns, and counts their non-zeros.
fn pair_up(
    rows: Range<usize>,
    columns: Range<usize>,
    matrix: &impl MatrixRows,
) -> (Vec<Pair>, usize) {
    let words = columns.len().div_ceil(64);
    let mut masks = vec![0u64; rows.len() * words];
    let count = |mask: &[u64]| mask.iter().map(|w| w.count_ones()).sum::<u32>();
    // Rows and their numbers of columns, the fullest first: partners are about equally full.
    let mut left: Vec<(usize, u32)> = Vec::with_capacity(rows.len());
    for (i, row) in rows.clone().enumerate() {
        let mask = &mut masks[i * words..][..words];
        matrix.visit(row, columns.clone(), |k, _| {
            let k = k - columns.start;
            mask[k / 64] |= 1 << (k % 64);
        });
        left.push((i, count(mask)));
    }
    left.sort_by_key(|row| std::cmp::Reverse(row.1));
    let nonzeros = left.iter().map(|row| row.1 as usize).sum();
    let mut pairs = Vec::with_capacity(rows.len().div_ceil(2));
    let number = |i: usize| (rows.start + i) as u32;
    left.reverse();
    while let Some((first, n)) = left.pop() {
        let mask = &masks[first * words..][..words];
        let shared = |other: usize| {
            let other = &masks[other * words..][..words];
            mask.iter()
                .zip(other)
                .map(|(a, b)| (a & b).count_ones())
                .sum::<u32>()
        };
        let reach = left.len().saturating_sub(REACH)..left.len();
        // A shared column saves a load; one that the fuller row has more costs the other a zero.
        let best = reach
            .rev()
            .map(|i| (i, left[i], shared(left[i].0)))
            .min_by_key(|(_, (_, m), both)| i64::from(n - m) - i64::from(*both));
        let Some((at, (second, m), both)) = best else {
            pairs.push(Pair {
                rows: [number(first), NONE],
                both: n,
                apart: 0,
            });
            break;
        };
        left.remove(at);
        let apart = n.min(m) - both;
        pairs.push(Pair {
            rows: [number(first), number(second)],
            both: n.max(m) - apart,
            apart,
        });
    }
    // Loops whose lengths repeat are foreseen.
    pairs.sort_by_key(|p| std::cmp::Reverse((p.apart / 4, p.both, p.apart)));
    pairs.sort_by_key(Pair::is_empty);
    (pairs, nonzeros)
}

/// Writes the columns of a pair whose rows are `lists`: offsets, ascending, and values.
fn fill(pair: &Pair, lists: &[Vec<(usize, f32)>; 2], offsets: &mut [u16], values: &mut [f32]) {
    let (both, apart) = (pair.both as usize, pair.apart as usize);
    let (shared, alone) = offsets.split_at_mut(both);
    let (shared_values, alone_values) = values.split_at_mut(2 * both);
    let (mut at, mut done, mut n) = ([0; 2], [0; 2], 0);
    loop {
        let next = [0, 1].map(|i| lists[i].get(at[i]).map_or(usize::MAX, |next| next.0));
        let offset = next[0].min(next[1]);
        if offset == usize::MAX {
            break;
        }
        let here = next.map(|n| n == offset);
        let mut weights = [0.0; 2];
        for i in 0..2 {
            if here[i] {
                weights[i] = lists[i][at[i]].1;
                at[i] += 1;
            }
        }
        let row = usize::from(!here[0]);
        if here == [true; 2] || done[row] == apart {
            shared[n] = offset as u16;
            shared_values[2 * n..2 * n + 2].copy_from_slice(&weights);
            n += 1;
        } else {
            alone[2 * done[row] + row] = offset as u16;
            alone_values[2 * done[row] + row] = weights[row];
            done[row] += 1;
        }
    }
    debug_assert_eq!((n, done), (both, [apart; 2]));
}

/// One block and chunk of pairs on a tile of `Q` vectors.
///
/// # Safety
/// The CPU has the features of `S`; the pointers of `tile` hold what [`Tile`] says.
#[inline(always)]
pub(super) unsafe fn pair_rows<S: Simd, const Q: usize>(
    weights: &PairStream,
    block: usize,
    chunk: usize,
    tile: &Tile<'_>,
) {
    // Several sets of sums hide the latency that few vectors cannot.
    // SAFETY: the caller's promise.
    unsafe {
        match Q {
            1 => pairs::<S, Q, 4, 4>(weights, block, chunk, tile),
            2 | 3 => pairs::<S, Q, 2, 2>(weights, block, chunk, tile),
            _ => pairs::<S, Q, 1, 2>(weights, block, chunk, tile),
        }
    }
}

/// `N` columns are taken at once, with `SETS` sets of sums in turn.
#[inline(always)]
unsafe fn pairs<S: Simd, const Q: usize, const SETS: usize, const N: usize>(
    weights: &PairStream,
    block: usize,
    chunk: usize,
    tile: &Tile<'_>,
) {
    let (list, start) = weights.part(block, chunk);
    let panel = tile.panel;
    // SAFETY: a part's pairs sum to its columns, and offsets lie within the panel.
    unsafe {
        let mut offset = weights.offsets.as_ptr().add(start.offset);
        let mut value = weights.values.as_ptr().add(start.value);
        for pair in list {
            if pair.is_empty() && !tile.first && !tile.last {
                break;
            }
            let [first, second] = pair.rows.map(|r| r as usize);
            let paired = pair.rows[1] != NONE;
            let mut a = [[S::splat(0.0); Q]; SETS];
            let mut b = [[S::splat(0.0); Q]; SETS];
            a[0] = tile.start::<S, Q>(first, 0);
            // Alone, a row is its own partner, whose weights are zeros.
            b[0] = tile.start::<S, Q>(if paired { second } else { first }, 0);
            for _ in 0..pair.both as usize / N {
                // One load for up to four offsets.
                let at = match N {
                    4 => u64::from_le(offset.cast::<u64>().read_unaligned()),
                    _ => u64::from(u32::from_le(offset.cast::<u32>().read_unaligned())),
                };
                for j in 0..N {
                    let x = panel.add((at >> (16 * j)) as u16 as usize);
                    let set = j % SETS;
                    both::<S, Q>(x, value.add(2 * j), &mut a[set], &mut b[set]);
                }
                if Q <= 4 {
                    S::prefetch(value.wrapping_add(512).cast());
                    S::prefetch(offset.wrapping_add(512).cast());
                }
                (offset, value) = (offset.add(N), value.add(2 * N));
            }
            for _ in 0..pair.both as usize % N {
                both::<S, Q>(panel.add(*offset as usize), value, &mut a[0], &mut b[0]);
                (offset, value) = (offset.add(1), value.add(2));
            }
            for _ in 0..pair.apart as usize / 2 {
                let at = u64::from_le(offset.cast::<u64>().read_unaligned());
                for j in 0..2 {
                    let (x, y) = ((at >> (32 * j)) as u16, (at >> (32 * j + 16)) as u16);
                    let (x, y) = (panel.add(x as usize), panel.add(y as usize));
                    step::<S, Q>(x, *value.add(2 * j), &mut a[j % SETS]);
                    step::<S, Q>(y, *value.add(2 * j + 1), &mut b[j % SETS]);
                }
                if Q <= 4 {
                    S::prefetch(value.wrapping_add(512).cast());
                    S::prefetch(offset.wrapping_add(512).cast());
                }
                (offset, value) = (offset.add(4), value.add(4));
            }
            if pair.apart % 2 == 1 {
                let (x, y) = (*offset as usize, *offset.add(1) as usize);
                step::<S, Q>(panel.add(x), *value, &mut a[0]);
                step::<S, Q>(panel.add(y), *value.add(1), &mut b[0]);
                (offset, value) = (offset.add(2), value.add(2));
            }
            tile.finish::<S, Q>(first, 0, Q, total::<S, Q, SETS>(a));
            if paired {
                tile.finish::<S, Q>(second, 0, Q, total::<S, Q, SETS>(b));
            }
        }
    }
}

#[inline(always)]
unsafe fn both<S: Simd, const Q: usize>(
    panel: *const f32,
    values: *const f32,
    a: &mut [S::V; Q],
    b: &mut [S::V; Q],
) {
    // SAFETY: `panel` is a row of the panel; there are two values.
    unsafe {
        let (v, w) = (S::splat(*values), S::splat(*values.add(1)));
        for q in 0..Q {
            let x = S::load(panel.add(q * LANES));
            a[q] = S::fma(v, x, a[q]);
            b[q] = S::fma(w, x, b[q]);
        }
    }
}

#[inline(always)]
unsafe fn total<S: Simd, const Q: usize, const SETS: usize>(sets: [[S::V; Q]; SETS]) -> [S::V; Q] {
    let mut total = sets[0];
    for set in &sets[1..] {
        for (sum, set) in total.iter_mut().zip(set) {
            // SAFETY: the caller's promise.
            *sum = unsafe { S::add(*sum, *set) };
        }
    }
    total
}
