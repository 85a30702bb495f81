//! Weight matrices packed for the panel kernels: dense row groups, or index streams.

use super::packed::Values;
use super::pairs::PairStream;
use super::simd::LANES;
use crate::parallel;
use std::ops::Range;

/// Columns of an activation panel of dense weights: what one pass of the kernel covers.
pub const PANEL: usize = 64;

/// Output rows that a register tile of dense weights holds where its vectors are rows.
pub const ROW_GROUP: usize = 2 * LANES;

/// Columns of the activation panels of an index stream that is used on `columns` columns, at most `widest`. A wide panel
/// shares each weight's load among more of them; all panels of a layer are about equally wide.
pub fn stream_width(columns: usize, widest: usize) -> usize {
    let most = widest / LANES;
    let vectors = columns.div_ceil(LANES).max(1);
    vectors.div_ceil(vectors.div_ceil(most)) * LANES
}

/// Rows of a block of an index stream: the unit that threads share out.
pub const BLOCK_ROWS: usize = 128;

/// Rows of an activation panel that stay in the first-level cache beside everything else.
pub fn chunk_rows(l1_bytes: usize, width: usize) -> usize {
    (l1_bytes * 3 / 4 / (width * 4)).clamp(32, 256)
}

/// The most rows of a panel of `width` columns: an offset is a u16 in elements.
pub fn largest_chunk(width: usize) -> usize {
    u16::MAX as usize / width.max(1)
}

/// A weight matrix as its maker reads it, row by row.
pub trait MatrixRows: Sync {
    /// Calls `f` with the column and value of each element of `row` in `columns` that is not zero,
    /// ascending.
    fn visit(&self, row: usize, columns: Range<usize>, f: impl FnMut(usize, f32));
}

/// A weight matrix `[rows, cols]`, packed.
#[derive(Debug)]
pub enum PanelWeights {
    /// Every element.
    Dense(DensePanels),
    /// The non-zeros, row by row.
    Stream(IndexStream),
    /// The non-zeros, two rows at a time.
    Pairs(PairStream),
}

impl PanelWeights {
    /// Output rows.
    pub fn rows(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.rows,
            PanelWeights::Stream(s) => s.rows,
            PanelWeights::Pairs(p) => p.rows,
        }
    }

    /// Rows of the activation panel: the inner dimension.
    pub fn cols(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.cols,
            PanelWeights::Stream(s) => s.cols,
            PanelWeights::Pairs(p) => p.cols,
        }
    }

    /// Columns of an activation panel.
    pub fn width(&self) -> usize {
        match self {
            PanelWeights::Dense(_) => PANEL,
            PanelWeights::Stream(s) => s.width,
            PanelWeights::Pairs(p) => p.width,
        }
    }

    /// Panel rows that are packed and used at a time.
    pub fn chunk(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.chunk,
            PanelWeights::Stream(s) => s.chunk,
            PanelWeights::Pairs(p) => p.chunk,
        }
    }

    /// Units of rows that threads share out.
    pub fn blocks(&self) -> usize {
        self.rows().div_ceil(self.block_rows())
    }

    /// Rows of such a unit.
    pub fn block_rows(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.group,
            PanelWeights::Stream(_) | PanelWeights::Pairs(_) => BLOCK_ROWS,
        }
    }

    /// Resident bytes.
    pub fn byte_len(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.values.len() * 4,
            PanelWeights::Stream(s) => {
                s.values.len() * 6 + s.row_counts.len() * 8 + s.starts.len() * 16
            }
            PanelWeights::Pairs(p) => p.byte_len(),
        }
    }

    /// Multiply-accumulates for one column of activations.
    pub fn macs(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.rows * d.cols,
            PanelWeights::Stream(s) => s.values.len(),
            PanelWeights::Pairs(p) => p.nonzeros,
        }
    }
}

/// Groups of `group` rows, interleaved, in the order of use: by chunk of columns, by group, by
/// column. Rows behind the last are 0.
#[derive(Debug)]
pub struct DensePanels {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) chunk: usize,
    pub(super) group: usize,
    pub(super) values: Values<f32>,
}

impl DensePanels {
    /// Packs a matrix for register tiles of `group` rows.
    pub fn pack(
        rows: usize,
        cols: usize,
        group: usize,
        chunk: usize,
        matrix: &impl MatrixRows,
    ) -> Self {
        let (groups, chunk) = (rows.div_ceil(group), even_chunk(cols, chunk, PANEL));
        let mut values = vec![0.0; rows.next_multiple_of(group) * cols];
        let part = (groups * group * chunk).max(1);
        parallel::chunks_mut(&mut values, part, |c, out| {
            let from = c * chunk;
            let depth = chunk.min(cols - from);
            for r in 0..rows {
                let out = &mut out[r / group * depth * group + r % group..];
                matrix.visit(r, from..from + depth, |k, v| out[(k - from) * group] = v);
            }
        });
        DensePanels {
            rows,
            cols,
            chunk,
            group,
            values: Values::Owned(values),
        }
    }

    /// Where the values of a group and chunk start.
    pub(super) fn start(&self, group: usize, chunk: usize) -> usize {
        let from = chunk * self.chunk;
        let depth = self.chunk.min(self.cols - from);
        (self.rows.div_ceil(self.group) * from + group * depth) * self.group
    }
}

/// The parts that a stream is packed in: a block of rows and a chunk of columns each, all blocks of a chunk together.
pub(super) struct Grid {
    rows: usize,
    cols: usize,
    pub chunk: usize,
    pub chunks: usize,
    blocks: usize,
}

impl Grid {
    /// Of a matrix, for chunks of about `chunk` columns and panels of `width`.
    pub fn new(rows: usize, cols: usize, chunk: usize, width: usize) -> Grid {
        let chunk = even_chunk(cols, chunk, width);
        Grid {
            rows,
            cols,
            chunk,
            chunks: cols.div_ceil(chunk).max(1),
            blocks: rows.div_ceil(BLOCK_ROWS),
        }
    }

    pub fn len(&self) -> usize {
        self.chunks * self.blocks
    }

    /// Columns and rows of a part.
    pub fn part(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (c, b) = (i / self.blocks, i % self.blocks);
        (
            c * self.chunk..((c + 1) * self.chunk).min(self.cols),
            b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(self.rows),
        )
    }

    /// Fills offsets and values, part by part, in parallel: `lens` tells how many of each `list` has, and `fill`
    /// gets the columns, the list, and the room for it.
    pub fn fill<L: Sync>(
        &self,
        lists: &[L],
        lens: impl Fn(&L) -> (usize, usize),
        offsets: &mut [u16],
        values: &mut [f32],
        fill: impl Fn(Range<usize>, &L, &mut [u16], &mut [f32]) + Sync,
    ) {
        let mut parts = Vec::with_capacity(lists.len());
        let (mut o, mut v) = (offsets, values);
        for (i, list) in lists.iter().enumerate() {
            let (len_o, len_v) = lens(list);
            let (first_o, rest_o) = o.split_at_mut(len_o);
            let (first_v, rest_v) = v.split_at_mut(len_v);
            (o, v) = (rest_o, rest_v);
            parts.push((self.part(i).0, list, first_o, first_v));
        }
        parallel::map(parts, |(columns, list, o, v)| fill(columns, list, o, v));
    }
}

/// The non-zeros in the order of use: by chunk of columns, by block of rows, by row.
///
/// Inside a block and chunk, rows are sorted by their number of non-zeros: the inner loop's trip
/// count then repeats, which the branch predictor learns.
#[derive(Debug)]
pub struct IndexStream {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) chunk: usize,
    /// Columns of an activation panel.
    pub(super) width: usize,
    /// `(row, non-zeros)` of each row of each block and chunk; rows without any come last.
    pub(super) row_counts: Vec<(u32, u32)>,
    /// Where block `b` and chunk `c` start in `row_counts` and in `values`, at `c * blocks + b`.
    pub(super) starts: Vec<(usize, usize)>,
    /// Panel offsets in elements: the row within the chunk times the width.
    pub(super) offsets: Values<u16>,
    pub(super) values: Values<f32>,
}

impl IndexStream {
    /// Packs a matrix: counts first, so that nothing but the stream itself is allocated.
    pub fn pack(
        rows: usize,
        cols: usize,
        chunk: usize,
        width: usize,
        matrix: &impl MatrixRows,
    ) -> Self {
        let grid = Grid::new(rows, cols, chunk, width);
        let counted: Vec<Vec<(u32, u32)>> = parallel::map(0..grid.len(), |i| {
            let (columns, rows) = grid.part(i);
            let mut counts: Vec<(u32, u32)> = rows
                .map(|r| {
                    let mut n = 0;
                    matrix.visit(r, columns.clone(), |_, _| n += 1);
                    (r as u32, n)
                })
                .collect();
            counts.sort_by_key(|c| std::cmp::Reverse(c.1));
            counts
        });
        let mut row_counts = Vec::with_capacity(rows * grid.chunks);
        let mut starts = Vec::with_capacity(counted.len());
        let mut total = 0;
        for counts in &counted {
            starts.push((row_counts.len(), total));
            row_counts.extend_from_slice(counts);
            total += counts.iter().map(|c| c.1 as usize).sum::<usize>();
        }
        let (mut offsets, mut values) = (vec![0u16; total], vec![0f32; total]);
        let lens = |counts: &Vec<(u32, u32)>| {
            let len = counts.iter().map(|c| c.1 as usize).sum();
            (len, len)
        };
        grid.fill(
            &counted,
            lens,
            &mut offsets,
            &mut values,
            |columns, counts, o, v| {
                let mut at = 0;
                for &(r, _) in counts {
                    matrix.visit(r as usize, columns.clone(), |k, value| {
                        o[at] = ((k - columns.start) * width) as u16;
                        v[at] = value;
                        at += 1;
                    });
                }
            },
        );
        IndexStream {
            rows,
            cols,
            chunk: grid.chunk,
            width,
            row_counts,
            starts,
            offsets: Values::Owned(offsets),
            values: Values::Owned(values),
        }
    }

    /// Rows of a block and chunk, and where their non-zeros start.
    pub(super) fn part(&self, block: usize, chunk: usize) -> (&[(u32, u32)], usize) {
        let rows = BLOCK_ROWS.min(self.rows - block * BLOCK_ROWS);
        let (first, value) = self.starts[chunk * self.rows.div_ceil(BLOCK_ROWS) + block];
        (&self.row_counts[first..first + rows], value)
    }
}

/// Splits `cols` into equal chunks of at most `most` rows.
pub(super) fn even_chunk(cols: usize, most: usize, width: usize) -> usize {
    let most = most.clamp(1, largest_chunk(width));
    cols.div_ceil(cols.div_ceil(most).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_equal_and_offsets_fit() {
        assert_eq!(even_chunk(0, 96, 64), 1);
        assert_eq!(even_chunk(96, 96, 64), 96);
        assert_eq!(even_chunk(100, 96, 64), 50);
        assert!((even_chunk(1 << 20, 1 << 20, 128) - 1) * 128 <= u16::MAX as usize);
    }

    #[test]
    fn stream_holds_every_non_zero_once() {
        struct Fifth;
        impl MatrixRows for Fifth {
            fn visit(&self, r: usize, columns: Range<usize>, mut f: impl FnMut(usize, f32)) {
                let kept = |k: &usize| r != 3 && (k * 7 + r).is_multiple_of(5);
                for k in columns.filter(kept) {
                    f(k, (r * 1000 + k) as f32);
                }
            }
        }
        let row = |r: usize| {
            let mut list = Vec::new();
            Fifth.visit(r, 0..300, |k, v| list.push((k as u32, v)));
            list
        };
        let stream = IndexStream::pack(130, 300, 96, 112, &Fifth);
        let mut found = vec![Vec::new(); 130];
        for b in 0..2 {
            for c in 0..stream.cols.div_ceil(stream.chunk) {
                let (rows, mut at) = stream.part(b, c);
                for &(r, n) in rows {
                    for _ in 0..n {
                        let k = c * stream.chunk + stream.offsets[at] as usize / 112;
                        found[r as usize].push((k as u32, stream.values[at]));
                        at += 1;
                    }
                }
            }
        }
        for (r, found) in found.iter().enumerate() {
            assert_eq!(*found, row(r));
        }
    }
}
