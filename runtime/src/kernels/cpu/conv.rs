//! Convolutions and many-column linear layers as weight rows times packed activation panels.
//!
//! The columns are output pixels (or rows of a linear layer's input), up to 128 to a tile. Per chunk of
//! the inner dimension a tile's activations are packed into a panel that fits the first-level
//! cache, padding and stride resolved; then every weight row passes over it.

use super::Io;
use super::panel::{Tile, dense_rows, stream_rows};
use super::simd::{LANES, Simd, first};
use super::weights::PanelWeights;
use std::sync::Arc;

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
    /// Output pixels; same-size stride-1 convolutions read each plane as one shifted run.
    Flat(FlatMasks),
    /// Output pixels, row by row.
    Rows(Strided),
    /// Rows of a `[columns, inner]` matrix.
    Matrix,
}

/// Which lanes of a shifted plane lie inside the input, by kernel position and vector.
#[derive(Debug)]
struct FlatMasks {
    shifts: Vec<isize>,
    masks: Vec<u16>,
    vectors: usize,
    positions: usize,
    plane: usize,
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
        let flat = g.strides == [1, 1] && g.output == g.input;
        Conv {
            source: if flat {
                Source::Flat(FlatMasks::new(&g))
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
        (most(PanelWeights::chunk) + 2 * most(PanelWeights::rows)) * most(PanelWeights::width)
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
            let transposed = partial.add(rows * width);
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
                    Source::Flat(masks) => masks.pack::<S>(x, inner, from, vectors, panel, width),
                    Source::Rows(g) => g.pack::<S>(x, inner, column, count, panel, width),
                    Source::Matrix => {
                        pack_matrix::<S>(x.add(column * cols), cols, inner, count, panel, width)
                    }
                }
                tile.first = c == 0;
                tile.last = c + 1 == chunks;
                for block in blocks.clone() {
                    match weights {
                        PanelWeights::Dense(w) => dense_rows::<S>(w, block, c, vectors, &tile),
                        PanelWeights::Stream(w) => match vectors {
                            1 => stream_rows::<S, 1>(w, block, c, &tile),
                            2 => stream_rows::<S, 2>(w, block, c, &tile),
                            3 => stream_rows::<S, 3>(w, block, c, &tile),
                            4 => stream_rows::<S, 4>(w, block, c, &tile),
                            5 => stream_rows::<S, 5>(w, block, c, &tile),
                            6 => stream_rows::<S, 6>(w, block, c, &tile),
                            7 => stream_rows::<S, 7>(w, block, c, &tile),
                            _ => stream_rows::<S, 8>(w, block, c, &tile),
                        },
                    }
                }
            }
            if matrix {
                let per_block = match weights {
                    PanelWeights::Dense(w) => w.group,
                    PanelWeights::Stream(_) => super::weights::BLOCK_ROWS,
                };
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

impl FlatMasks {
    fn new(g: &ConvGeometry) -> FlatMasks {
        let [h, w] = g.input;
        let vectors = (h * w).div_ceil(LANES);
        let positions = g.kernel[0] * g.kernel[1];
        let mut shifts = Vec::with_capacity(positions);
        let mut masks = vec![0u16; positions * vectors];
        for position in 0..positions {
            let dy = (position / g.kernel[1] * g.dilations[0]) as isize - g.pads[0] as isize;
            let dx = (position % g.kernel[1] * g.dilations[1]) as isize - g.pads[1] as isize;
            shifts.push(dy * w as isize + dx);
            let inside = |i: usize, d: isize, n: usize| {
                (i as isize + d) >= 0 && (i as isize + d) < n as isize
            };
            for y in (0..h).filter(|&y| inside(y, dy, h)) {
                for x in (0..w).filter(|&x| inside(x, dx, w)) {
                    let p = y * w + x;
                    masks[position * vectors + p / LANES] |= 1 << (p % LANES);
                }
            }
        }
        FlatMasks {
            shifts,
            masks,
            vectors,
            positions,
            plane: h * w,
        }
    }

    #[inline(always)]
    unsafe fn pack<S: Simd>(
        &self,
        x: *const f32,
        inner: std::ops::Range<usize>,
        from: usize,
        vectors: usize,
        panel: *mut f32,
        width: usize,
    ) {
        let (mut channel, mut position) =
            (inner.start / self.positions, inner.start % self.positions);
        for (row, _) in inner.enumerate() {
            let shift = self.shifts[position] + (from * LANES) as isize;
            let masks = &self.masks[position * self.vectors + from..][..vectors];
            // SAFETY: masked lanes lie inside the channel's plane; others are not read.
            unsafe {
                let source = x.wrapping_add(channel * self.plane).wrapping_offset(shift);
                let out = panel.add(row * width);
                for (v, &mask) in masks.iter().enumerate() {
                    let p = source.wrapping_add(v * LANES);
                    let value = if mask == u16::MAX {
                        S::load(p)
                    } else {
                        S::load_mask(p, mask)
                    };
                    S::store(out.add(v * LANES), value);
                }
            }
            position += 1;
            if position == self.positions {
                (channel, position) = (channel + 1, 0);
            }
        }
    }
}

/// A convolution packed by output rows.
#[derive(Debug)]
struct Strided {
    geometry: ConvGeometry,
    /// By kernel column: output columns whose input lies inside the row.
    inside: Vec<std::ops::Range<usize>>,
}

impl Strided {
    fn new(geometry: ConvGeometry) -> Strided {
        let g = &geometry;
        let inside = (0..g.kernel[1]).map(|kx| {
            let at = |o: usize| (o * g.strides[1] + kx * g.dilations[1]).wrapping_sub(g.pads[1]);
            let first = (0..g.output[1]).find(|&o| at(o) < g.input[1]);
            let count = (0..g.output[1]).filter(|&o| at(o) < g.input[1]).count();
            first.map_or(0..0, |first| first..first + count)
        });
        Strided {
            inside: inside.collect(),
            geometry,
        }
    }

    /// Packs `count` output pixels from `column` on, for the inner rows `inner`.
    #[inline(always)]
    unsafe fn pack<S: Simd>(
        &self,
        x: *const f32,
        inner: std::ops::Range<usize>,
        column: usize,
        count: usize,
        panel: *mut f32,
        width: usize,
    ) {
        let g = &self.geometry;
        let ([h, w], [_, ow]) = (g.input, g.output);
        let positions = g.kernel[0] * g.kernel[1];
        let (mut channel, position) = (inner.start / positions, inner.start % positions);
        let (mut ky, mut kx) = (position / g.kernel[1], position % g.kernel[1]);
        let start = (column / ow, column % ow);
        for row in 0..inner.len() {
            let dy = (ky * g.dilations[0]).wrapping_sub(g.pads[0]);
            let dx = (kx * g.dilations[1]).wrapping_sub(g.pads[1]);
            let inside = &self.inside[kx];
            // SAFETY: only pixels inside the channel's plane are read, only `count` columns written.
            unsafe {
                let plane = x.add(channel * h * w);
                let out = panel.add(row * width);
                for v in 0..count.div_ceil(LANES) {
                    S::store(out.add(v * LANES), S::splat(0.0));
                }
                let (mut oy, mut ox) = start;
                let mut done = 0;
                while done < count {
                    let len = (ow - ox).min(count - done);
                    let y = (oy * g.strides[0]).wrapping_add(dy);
                    let (from, to) = (inside.start.max(ox), inside.end.min(ox + len));
                    if y < h && from < to {
                        let source = plane.add(y * w + (from * g.strides[1]).wrapping_add(dx));
                        let out = out.add(done + from - ox);
                        copy_strided::<S>(source, g.strides[1], to - from, out);
                    }
                    done += len;
                    (oy, ox) = (oy + 1, 0);
                }
            }
            kx += 1;
            if kx == g.kernel[1] {
                (ky, kx) = (ky + 1, 0);
                if ky == g.kernel[0] {
                    (channel, ky) = (channel + 1, 0);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn copy_strided<S: Simd>(source: *const f32, stride: usize, len: usize, out: *mut f32) {
    // SAFETY: the caller gives `(len - 1) * stride + 1` readable and `len` writable elements.
    unsafe {
        let mut i = 0;
        match stride {
            1 => {
                while i + LANES <= len {
                    S::store(out.add(i), S::load(source.add(i)));
                    i += LANES;
                }
                let mask = first(len - i);
                if i < len {
                    S::store_mask(out.add(i), S::load_mask(source.add(i), mask), mask);
                }
            }
            2 => {
                while i + LANES <= len {
                    S::store(out.add(i), S::load_even(source.add(2 * i), LANES));
                    i += LANES;
                }
                let n = len - i;
                if n > 0 {
                    S::store_mask(out.add(i), S::load_even(source.add(2 * i), n), first(n));
                }
            }
            _ => (0..len).for_each(|j| *out.add(j) = *source.add(j * stride)),
        }
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
