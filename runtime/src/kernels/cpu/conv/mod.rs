//! Convolutions and many-column linear layers as weight rows times packed activation panels.
//!
//! The columns are output pixels (or rows of a linear layer's input), up to 128 to a tile. Per chunk of
//! the inner dimension a tile's activations are packed into a panel that fits the first-level
//! cache, padding and stride resolved; then every weight row passes over it.

mod flat;
mod strided;

use super::Io;
use super::by_row;
use super::pairs::{PairStream, pair_rows};
use super::panel::{Tile, dense_rows, stream_rows};
use super::simd::{LANES, Simd, Task, first};
use super::weights::{IndexStream, PanelWeights, ROW_GROUP};
use flat::Flat;
use std::sync::Arc;
use strided::Strided;

/// A 2-D convolution's sizes; channels are per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ConvGeometry {
    pub batch: usize,
    pub groups: usize,
    /// Input channels of a group.
    pub channels: usize,
    pub input: [usize; 2],
    /// Output channels of a group.
    pub rows: usize,
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top and left.
    pub pads: [usize; 2],
}

/// Packed weights of every group and the folded bias, shared by sessions.
#[derive(Debug)]
pub struct PanelSet {
    /// One matrix per group.
    pub groups: Vec<PanelWeights>,
    /// One value per output channel of all groups, or empty.
    pub bias: Vec<f32>,
}

/// Where a panel's columns come from.
#[derive(Debug)]
enum Source {
    /// Output pixels; each plane is one shifted run.
    Flat(Flat),
    /// Output pixels, row by row.
    Rows(Strided),
    /// Rows of a `[columns, inner]` matrix.
    Matrix,
}

/// One planned panel product.
#[derive(Debug)]
pub struct Conv {
    weights: Arc<PanelSet>,
    source: Source,
    batch: usize,
    /// Columns of one image: output pixels, or rows of the matrix.
    columns: usize,
    /// Input elements of one group of one image.
    input_len: usize,
    clamp: (f32, f32),
}

impl Conv {
    /// A convolution of `[batch, groups * channels, h, w]`.
    pub fn new(geometry: ConvGeometry, weights: Arc<PanelSet>, clamp: (f32, f32)) -> Conv {
        let g = geometry;
        Conv {
            source: if Flat::fits(&g) {
                Source::Flat(Flat::new(&g))
            } else {
                Source::Rows(Strided::new(g))
            },
            weights,
            batch: g.batch,
            columns: g.output[0] * g.output[1],
            input_len: g.channels * g.input[0] * g.input[1],
            clamp,
        }
    }

    /// A linear layer over `columns` rows: `x [columns, inner]` to `[columns, rows]`.
    pub fn linear(columns: usize, weights: Arc<PanelSet>, clamp: (f32, f32)) -> Conv {
        Conv {
            source: Source::Matrix,
            batch: 1,
            columns,
            input_len: 0,
            weights,
            clamp,
        }
    }

    /// Scratch elements of one thread.
    pub fn scratch_len(&self) -> usize {
        let most =
            |f: fn(&PanelWeights) -> usize| self.weights.groups.iter().map(f).max().unwrap_or(0);
        let (chunk, width) = (most(PanelWeights::chunk), most(PanelWeights::width));
        let split = match &self.source {
            Source::Flat(flat) => flat.scratch_len(chunk, width),
            _ => 0,
        };
        let rows = most(PanelWeights::rows).next_multiple_of(ROW_GROUP);
        (chunk + 2 * rows) * width + split
    }

    /// Runs this member's share.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        let vectors = self.columns.div_ceil(LANES);
        let groups = self.weights.groups.len();
        let Some(weights) = self.weights.groups.first() else {
            return;
        };
        let size = io.member.size;
        let mut tiles = vectors.div_ceil(weights.width() / LANES);
        // Whole tiles are shared where they are even, rows of all tiles otherwise.
        if tiles >= 2 * size {
            tiles = tiles.next_multiple_of(size).min(vectors);
        }
        let units = self.batch * groups * tiles;
        let waste = |n: usize| (n.div_ceil(size) * size) as f64 / n.max(1) as f64;
        let by_units = waste(units) <= 1.05 || waste(units) <= waste(weights.blocks());
        let share = if by_units {
            io.member.share(units)
        } else {
            0..units
        };
        for unit in share {
            let (image, group, tile) =
                (unit / (groups * tiles), unit / tiles % groups, unit % tiles);
            let weights = &self.weights.groups[group];
            let blocks = weights.blocks();
            let blocks = if by_units {
                0..blocks
            } else {
                io.member.share(blocks)
            };
            let from = tile * vectors / tiles;
            let to = (tile + 1) * vectors / tiles;
            // SAFETY: the plan sized input, output and scratch for this geometry.
            unsafe { self.tile::<S>(io, image, group, weights, blocks, from, to) };
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        io: &Io<'_>,
        image: usize,
        group: usize,
        weights: &PanelWeights,
        blocks: std::ops::Range<usize>,
        from: usize,
        to: usize,
    ) {
        let (rows, cols, chunk) = (weights.rows(), weights.cols(), weights.chunk());
        let width = weights.width();
        let groups = self.weights.groups.len();
        let vectors = to - from;
        let column = from * LANES;
        let count = self.columns.min(to * LANES) - column;
        let matrix = matches!(self.source, Source::Matrix);
        // SAFETY: the offsets stay within buffers that the plan sized for this geometry.
        unsafe {
            let panel = io.scratch;
            let partial = panel.add(chunk * width);
            let sums = rows.next_multiple_of(ROW_GROUP) * width;
            let transposed = partial.add(sums);
            let split = transposed.add(sums);
            let x = io.inputs[0].add((image * groups + group) * self.input_len);
            let at = (image * groups + group) * rows * self.columns + column;
            let residual = io.inputs.get(1).copied().unwrap_or(std::ptr::null());
            let bias = &self.weights.bias;
            let mut tile = Tile {
                width,
                panel,
                partial,
                bias: if bias.is_empty() {
                    &[]
                } else {
                    &bias[group * rows..][..rows]
                },
                out: if matrix { transposed } else { io.out.add(at) },
                residual: if residual.is_null() || matrix {
                    std::ptr::null()
                } else {
                    residual.add(at)
                },
                stride: if matrix { width } else { self.columns },
                last_mask: first(count - (vectors - 1) * LANES),
                // What is added to a matrix is added as it is transposed.
                clamp: match matrix && !residual.is_null() {
                    true => (f32::NEG_INFINITY, f32::INFINITY),
                    false => self.clamp,
                },
                first: true,
                last: false,
            };
            let chunks = cols.div_ceil(chunk).max(1);
            for c in 0..chunks {
                let inner = c * chunk..((c + 1) * chunk).min(cols);
                match &self.source {
                    Source::Flat(flat) => {
                        flat.pack::<S>(x, inner, from, vectors, panel, width, split)
                    }
                    Source::Rows(g) => g.pack::<S>(x, inner, column, count, panel, width),
                    Source::Matrix => {
                        pack_matrix::<S>(x.add(column * cols), cols, inner, count, panel, width)
                    }
                }
                tile.first = c == 0;
                tile.last = c + 1 == chunks;
                for block in blocks.clone() {
                    macro_rules! by_vectors {
                        ($weights:ident) => {
                            match vectors {
                                1 => S::call(Part::<_, 1>($weights, block, c, &tile)),
                                2 => S::call(Part::<_, 2>($weights, block, c, &tile)),
                                3 => S::call(Part::<_, 3>($weights, block, c, &tile)),
                                4 => S::call(Part::<_, 4>($weights, block, c, &tile)),
                                5 => S::call(Part::<_, 5>($weights, block, c, &tile)),
                                6 => S::call(Part::<_, 6>($weights, block, c, &tile)),
                                7 => S::call(Part::<_, 7>($weights, block, c, &tile)),
                                _ => S::call(Part::<_, 8>($weights, block, c, &tile)),
                            }
                        };
                    }
                    match weights {
                        PanelWeights::Dense(w) if w.group == ROW_GROUP => {
                            by_row::rows::<S>(w, block, c, count, &tile)
                        }
                        PanelWeights::Dense(w) => dense_rows::<S>(w, block, c, vectors, &tile),
                        PanelWeights::Stream(w) => by_vectors!(w),
                        PanelWeights::Pairs(w) => by_vectors!(w),
                    }
                }
            }
            if matrix {
                let per_block = weights.block_rows();
                let rows_done = blocks.start * per_block..(blocks.end * per_block).min(rows);
                let (low, high) = (S::splat(self.clamp.0), S::splat(self.clamp.1));
                for n in (0..count).step_by(LANES) {
                    for r in rows_done.clone().step_by(LANES) {
                        let left = LANES.min(rows_done.end - r);
                        let lines: [S::V; LANES] = std::array::from_fn(|i| match i < left {
                            true => S::load(transposed.add((r + i) * width + n)),
                            false => S::splat(0.0),
                        });
                        let lines = S::transpose(lines);
                        for (i, mut y) in lines.into_iter().enumerate().take(count - n) {
                            let at = (column + n + i) * rows + r;
                            if !residual.is_null() {
                                y = S::add(y, S::load_mask(residual.add(at), first(left)));
                                y = S::min(high, S::max(low, y));
                            }
                            S::store_mask(io.out.add(at), y, first(left));
                        }
                    }
                }
            }
        }
    }
}

/// A block and a chunk of weights, on a tile of `Q` vectors.
struct Part<'t, W, const Q: usize>(&'t W, usize, usize, &'t Tile<'t>);

impl<const Q: usize> Task for Part<'_, IndexStream, Q> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { stream_rows::<S, Q>(self.0, self.1, self.2, self.3) }
    }
}

impl<const Q: usize> Task for Part<'_, PairStream, Q> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { pair_rows::<S, Q>(self.0, self.1, self.2, self.3) }
    }
}

/// Packs `count` rows of a matrix of `cols` columns as columns of the panel.
#[inline(always)]
unsafe fn pack_matrix<S: Simd>(
    x: *const f32,
    cols: usize,
    inner: std::ops::Range<usize>,
    count: usize,
    panel: *mut f32,
    width: usize,
) {
    for n in (0..count).step_by(LANES) {
        for k in inner.clone().step_by(LANES) {
            let left = LANES.min(inner.end - k);
            // SAFETY: the caller gives `count` rows of `cols` elements, and a row of the panel for
            // each of `inner`.
            unsafe {
                let rows: [S::V; LANES] = std::array::from_fn(|i| match n + i < count {
                    true => S::load_mask(x.add((n + i) * cols + k), first(left)),
                    false => S::splat(0.0),
                });
                let out = panel.add((k - inner.start) * width + n);
                for (i, line) in S::transpose(rows).into_iter().enumerate().take(left) {
                    S::store(out.add(i * width), line);
                }
            }
        }
    }
}
