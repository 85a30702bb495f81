//! Weight matrices packed for the panel kernels: dense row groups, or index streams.

use super::simd::LANES;
use rayon::prelude::*;

/// Columns of an activation panel of dense weights: what one pass of the kernel covers.
pub const PANEL: usize = 64;

/// Most columns of an activation panel of an index stream, where registers hold that many.
const WIDE_PANEL: usize = 128;

/// Columns of the activation panels of an index stream that is used on `columns` columns. A wide panel
/// shares each weight's load among more of them; all panels of a layer are about equally wide.
pub fn stream_width(columns: usize, many_registers: bool) -> usize {
    let most = match many_registers {
        true => WIDE_PANEL,
        false => PANEL,
    } / LANES;
    let vectors = columns.div_ceil(LANES).max(1);
    vectors.div_ceil(vectors.div_ceil(most)) * LANES
}

/// Rows of a block of an index stream: the unit that threads share out.
pub const BLOCK_ROWS: usize = 128;

/// Rows of an activation panel that stay in the first-level cache beside everything else.
pub fn chunk_rows(l1_bytes: usize, width: usize) -> usize {
    (l1_bytes * 3 / 4 / (width * 4)).clamp(32, 256)
}

/// Non-zeros of a row and chunk below which the sums cost more than a panel in the second-level cache.
const FEW: f64 = 8.0;

/// Whether an index stream of this density uses longer chunks than the first-level cache holds.
pub fn is_long(l1_bytes: usize, width: usize, density: f64) -> bool {
    (chunk_rows(l1_bytes, width) as f64) * density < FEW
}

/// Rows of an index stream's chunks, which may leave the first-level cache.
pub fn stream_rows(l1_bytes: usize, width: usize, density: f64) -> usize {
    let times = if is_long(l1_bytes, width, density) {
        3
    } else {
        1
    };
    times * chunk_rows(l1_bytes, width)
}

/// A weight matrix `[rows, cols]`, packed.
#[derive(Debug)]
pub enum PanelWeights {
    /// Every element.
    Dense(DensePanels),
    /// The non-zeros.
    Stream(IndexStream),
}

impl PanelWeights {
    /// Output rows.
    pub fn rows(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.rows,
            PanelWeights::Stream(s) => s.rows,
        }
    }

    /// Rows of the activation panel: the inner dimension.
    pub fn cols(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.cols,
            PanelWeights::Stream(s) => s.cols,
        }
    }

    /// Columns of an activation panel.
    pub fn width(&self) -> usize {
        match self {
            PanelWeights::Dense(_) => PANEL,
            PanelWeights::Stream(s) => s.width,
        }
    }

    /// Panel rows that are packed and used at a time.
    pub fn chunk(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.chunk,
            PanelWeights::Stream(s) => s.chunk,
        }
    }

    /// Units of rows that threads share out.
    pub fn blocks(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.rows.div_ceil(d.group),
            PanelWeights::Stream(s) => s.rows.div_ceil(BLOCK_ROWS),
        }
    }

    /// Resident bytes.
    pub fn byte_len(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.values.len() * 4,
            PanelWeights::Stream(s) => {
                s.values.len() * 6 + s.row_counts.len() * 8 + s.starts.len() * 16
            }
        }
    }

    /// Multiply-accumulates for one column of activations.
    pub fn macs(&self) -> usize {
        match self {
            PanelWeights::Dense(d) => d.rows * d.cols,
            PanelWeights::Stream(s) => s.values.len(),
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
    pub(super) values: Vec<f32>,
}

impl DensePanels {
    /// Packs a row-major matrix for register tiles of `group` rows.
    pub fn pack(dense: &[f32], rows: usize, cols: usize, group: usize, chunk: usize) -> Self {
        let mut panels = DensePanels {
            rows,
            cols,
            chunk: even_chunk(cols, chunk, PANEL),
            group,
            values: vec![0.0; rows.next_multiple_of(group) * cols],
        };
        let (groups, chunk) = (rows.div_ceil(group), panels.chunk);
        panels
            .values
            .par_chunks_mut((groups * group * chunk).max(1))
            .enumerate()
            .for_each(|(c, out)| {
                let from = c * chunk;
                let depth = chunk.min(cols - from);
                for (r, row) in dense.chunks_exact(cols).enumerate() {
                    let out = &mut out[r / group * depth * group + r % group..];
                    for (k, &v) in row[from..][..depth].iter().enumerate() {
                        out[k * group] = v;
                    }
                }
            });
        panels
    }

    /// Where the values of a group and chunk start.
    pub(super) fn start(&self, group: usize, chunk: usize) -> usize {
        let from = chunk * self.chunk;
        let depth = self.chunk.min(self.cols - from);
        (self.rows.div_ceil(self.group) * from + group * depth) * self.group
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
    pub(super) offsets: Vec<u16>,
    pub(super) values: Vec<f32>,
}

impl IndexStream {
    /// Packs rows given as ascending columns and values.
    pub fn pack(
        rows: usize,
        cols: usize,
        chunk: usize,
        width: usize,
        row: impl Fn(usize) -> (Vec<u32>, Vec<f32>) + Sync,
    ) -> Self {
        let chunk = even_chunk(cols, chunk, width);
        let chunks = cols.div_ceil(chunk).max(1);
        let blocks: Vec<Block> = (0..rows.div_ceil(BLOCK_ROWS))
            .into_par_iter()
            .map(|b| {
                let range = b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(rows);
                Block::pack(range, chunk, chunks, width, &row)
            })
            .collect();
        let mut stream = IndexStream {
            rows,
            cols,
            chunk,
            width,
            row_counts: Vec::with_capacity(rows * chunks),
            starts: Vec::with_capacity(blocks.len() * chunks),
            offsets: Vec::with_capacity(blocks.iter().map(|b| b.offsets.len()).sum()),
            values: Vec::with_capacity(blocks.iter().map(|b| b.offsets.len()).sum()),
        };
        for c in 0..chunks {
            for block in &blocks {
                let rows = block.row_counts.len() / chunks;
                let counts = &block.row_counts[c * rows..][..rows];
                let values: usize = counts.iter().map(|c| c.1 as usize).sum();
                let from = block.starts[c];
                stream
                    .starts
                    .push((stream.row_counts.len(), stream.values.len()));
                stream.row_counts.extend(counts);
                stream.offsets.extend(&block.offsets[from..][..values]);
                stream.values.extend(&block.values[from..][..values]);
            }
        }
        stream
    }

    /// Rows of a block and chunk, and where their non-zeros start.
    pub(super) fn part(&self, block: usize, chunk: usize) -> (&[(u32, u32)], usize) {
        let rows = BLOCK_ROWS.min(self.rows - block * BLOCK_ROWS);
        let (first, value) = self.starts[chunk * self.rows.div_ceil(BLOCK_ROWS) + block];
        (&self.row_counts[first..first + rows], value)
    }
}

#[derive(Default)]
struct Block {
    row_counts: Vec<(u32, u32)>,
    /// Where each chunk's non-zeros start.
    starts: Vec<usize>,
    offsets: Vec<u16>,
    values: Vec<f32>,
}

impl Block {
    fn pack(
        range: std::ops::Range<usize>,
        chunk: usize,
        chunks: usize,
        width: usize,
        row: &impl Fn(usize) -> (Vec<u32>, Vec<f32>),
    ) -> Block {
        let rows: Vec<(usize, Vec<u32>, Vec<f32>)> = range
            .map(|r| {
                let (columns, values) = row(r);
                (r, columns, values)
            })
            .collect();
        let mut block = Block::default();
        for c in 0..chunks {
            block.starts.push(block.values.len());
            let (low, high) = ((c * chunk) as u32, ((c + 1) * chunk) as u32);
            let mut parts: Vec<_> = rows
                .iter()
                .map(|(r, columns, values)| {
                    let from = columns.partition_point(|&k| k < low);
                    let to = columns.partition_point(|&k| k < high);
                    (*r, &columns[from..to], &values[from..to])
                })
                .collect();
            parts.sort_by_key(|(_, columns, _)| std::cmp::Reverse(columns.len()));
            for (r, columns, values) in parts {
                block.row_counts.push((r as u32, columns.len() as u32));
                let offset = |&k: &u32| ((k - low) as usize * width) as u16;
                block.offsets.extend(columns.iter().map(offset));
                block.values.extend_from_slice(values);
            }
        }
        block
    }
}

/// Splits `cols` into equal chunks of at most `most` rows.
fn even_chunk(cols: usize, most: usize, width: usize) -> usize {
    // A panel offset is a u16 in elements.
    let most = most.clamp(1, u16::MAX as usize / width);
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
        let row = |r: usize| {
            let columns: Vec<u32> = (0..300)
                .filter(|k| (k * 7 + r as u32).is_multiple_of(5))
                .collect();
            let values = columns
                .iter()
                .map(|&k| (r * 1000) as f32 + k as f32)
                .collect();
            if r == 3 {
                (vec![], vec![])
            } else {
                (columns, values)
            }
        };
        let stream = IndexStream::pack(130, 300, 96, 112, row);
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
            let (columns, values) = row(r);
            assert_eq!(*found, columns.into_iter().zip(values).collect::<Vec<_>>());
        }
    }
}
