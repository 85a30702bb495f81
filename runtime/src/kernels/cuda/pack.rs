//! Weights as kernels read them: made once, on the host, before they are uploaded.

use super::error::{Error, Result};
use crate::DType;
use crate::model::{Bitmask, Encoding, Weight};

/// Elements of a chunk: 32 lanes with a word of the mask each.
pub const CHUNK: usize = 1024;

/// The 16-bit floats that weights of a GPU have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Half {
    fn of(weight: &Weight) -> Result<Half> {
        match weight.dtype() {
            DType::F16 => Ok(Half::F16),
            DType::BF16 => Ok(Half::Bf16),
            other => Err(Error::Weight(format!(
                "values of {other}, kernels take F16 and BF16"
            ))),
        }
    }
}

/// Which elements of a matrix a chunk holds, and which of them a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 1024 columns of a row; bit `b` of lane `l` is column `32 b + l`.
    Vector,
    /// 16 rows by 64 columns; bit `8 s + e` of lane `4 g + t` is row `g + 8 (e / 2 % 2)`, column
    /// `16 s + 2 t + e % 2 + 8 (e / 4)`: four 16x16 operands of `mma.m16n8k16`.
    Matrix,
}

impl Form {
    /// Rows and columns of a chunk.
    pub const fn shape(self) -> (usize, usize) {
        match self {
            Form::Vector => (1, CHUNK),
            Form::Matrix => (16, 64),
        }
    }

    /// The lane that has an element of a chunk, and the bit.
    pub const fn place(self, row: usize, col: usize) -> (usize, usize) {
        match self {
            Form::Vector => (col % 32, col / 32),
            Form::Matrix => {
                let in_tile = col % 16;
                let lane = row % 8 * 4 + in_tile % 8 / 2;
                let element = in_tile % 2 + row / 8 * 2 + in_tile / 8 * 4;
                (lane, col / 16 * 8 + element)
            }
        }
    }

    /// Chunks of a matrix: in a band, which is a chunk high, and bands.
    pub const fn chunks(self, rows: usize, cols: usize) -> (usize, usize) {
        let (high, wide) = self.shape();
        (cols.div_ceil(wide), rows.div_ceil(high))
    }
}

/// A bitmask matrix in chunks, those of a band one after the other, as `chunk.h` says.
#[derive(Clone, Debug)]
pub struct Chunks {
    /// What the values are.
    pub half: Half,
    /// Which elements are where.
    pub form: Form,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// 32 words a chunk.
    pub masks: Vec<u32>,
    /// Where each chunk starts in `values`, in elements; even.
    pub starts: Vec<u32>,
    /// The stored elements in the order in which warps read them.
    pub values: Vec<u16>,
}

/// A dense matrix in rows of `stride` elements, a multiple of 8; those behind the columns are 0.
#[derive(Clone, Debug)]
pub struct Rows {
    /// What the values are.
    pub half: Half,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
    /// `rows * stride` elements.
    pub values: Vec<u16>,
}

/// A dense matrix in tiles of 16 rows by 64 columns, four 16x16 operands of `mma.m16n8k16`, eight elements a lane of each.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// What the values are.
    pub half: Half,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// 1024 elements a tile; those behind the rows and columns are 0.
    pub values: Vec<u16>,
}

/// A 2:4 matrix in tiles of 16 rows by 64 columns, as `mma.sp.m16n8k32` takes them.
#[derive(Clone, Debug)]
pub struct TwoFour {
    /// What the values are.
    pub half: Half,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// 512 elements a tile: of each half, of 32 columns, eight a lane.
    pub values: Vec<u16>,
    /// 32 words a tile: which columns those are, two bits an element.
    pub places: Vec<u32>,
}

/// Packs a bitmask matrix, 2:4 or not.
///
/// # Errors
/// When its values are not of 16 bits, when it is dense, or when it has 2^32 values or more.
pub fn chunks(weight: &Weight, form: Form) -> Result<Chunks> {
    let half = Half::of(weight)?;
    let bitmask = bitmask(weight)?;
    let (rows, cols) = (bitmask.rows, bitmask.cols);
    let (high, wide) = form.shape();
    let (across, bands) = form.chunks(rows, cols);
    let stored = bitmask.values.len() / 2;
    // An odd chunk is filled up.
    let room = stored + across * bands;
    if u32::try_from(room).is_err() {
        return Err(Error::Weight(format!(
            "{stored} values in one matrix, at most 2^32 are addressed"
        )));
    }
    let mut packed = Chunks {
        half,
        form,
        rows,
        cols,
        masks: vec![0; across * bands * 32],
        starts: Vec::with_capacity(across * bands),
        values: Vec::with_capacity(room),
    };
    let mut cells = vec![0u16; across * CHUNK];
    for band in 0..bands {
        let masks = &mut packed.masks[band * across * 32..(band + 1) * across * 32];
        for row in band * high..rows.min((band + 1) * high) {
            for (col, value) in bitmask.row_columns(row).zip(row_values(bitmask, row)) {
                let (lane, bit) = form.place(row % high, col % wide);
                let chunk = col / wide;
                masks[chunk * 32 + lane] |= 1 << bit;
                cells[chunk * CHUNK + lane * 32 + bit] = value;
            }
        }
        for chunk in 0..across {
            packed.starts.push(packed.values.len() as u32);
            let masks: &[u32; 32] = masks[chunk * 32..].first_chunk().unwrap_or(&[0; 32]);
            let cells = &cells[chunk * CHUNK..(chunk + 1) * CHUNK];
            order(masks, cells, &mut packed.values);
        }
    }
    Ok(packed)
}

/// Appends the values of a chunk in the order in which a warp reads them; of a lane, the highest bit comes first.
fn order(masks: &[u32; 32], cells: &[u16], values: &mut Vec<u16>) {
    let mut left = *masks;
    let mut take = |lane: usize| {
        let bit = left[lane].ilog2();
        left[lane] ^= 1 << bit;
        cells[lane * 32 + bit as usize]
    };
    let pairs = |lane: usize| masks[lane].count_ones() / 2;
    let most = (0..32).map(pairs).max().unwrap_or(0);
    for pair in 0..most {
        for lane in (0..32).filter(|&l| pairs(l) > pair) {
            values.extend([take(lane), take(lane)]);
        }
    }
    for lane in (0..32).filter(|&l| masks[l].count_ones() % 2 == 1) {
        values.push(take(lane));
    }
    if values.len() % 2 == 1 {
        values.push(0);
    }
}

/// Packs a dense matrix.
///
/// # Errors
/// When its values are not of 16 bits, or when it is sparse.
pub fn rows(weight: &Weight) -> Result<Rows> {
    let half = Half::of(weight)?;
    let Encoding::Dense(data) = weight.encoding() else {
        return Err(Error::Weight("a sparse matrix, dense is needed".into()));
    };
    let (rows, cols) = weight.matrix();
    let stride = cols.next_multiple_of(8);
    let mut values = vec![0u16; rows * stride];
    let (elements, _) = data.as_chunks::<2>();
    for (i, element) in elements.iter().enumerate() {
        values[i / cols * stride + i % cols] = u16::from_le_bytes(*element);
    }
    Ok(Rows {
        half,
        rows,
        cols,
        stride,
        values,
    })
}

/// Packs a dense matrix for tensor cores.
///
/// # Errors
/// As [`rows`].
pub fn tiles(weight: &Weight) -> Result<Tiles> {
    let packed = rows(weight)?;
    let (across, bands) = Form::Matrix.chunks(packed.rows, packed.cols);
    let mut values = vec![0; across * bands * CHUNK];
    for (row, line) in packed.values.chunks_exact(packed.stride.max(1)).enumerate() {
        for (col, value) in line[..packed.cols].iter().enumerate() {
            let (lane, bit) = Form::Matrix.place(row % 16, col % 64);
            let tile = row / 16 * across + col / 64;
            values[tile * CHUNK + bit / 8 * 256 + lane * 8 + bit % 8] = *value;
        }
    }
    Ok(Tiles {
        half: packed.half,
        rows: packed.rows,
        cols: packed.cols,
        values,
    })
}

/// Packs a 2:4 matrix. What is behind its rows and columns is stored as zeros.
///
/// # Errors
/// When its values are not of 16 bits, or when it is not stored 2:4.
pub fn two_four(weight: &Weight) -> Result<TwoFour> {
    let half = Half::of(weight)?;
    let bitmask = bitmask(weight)?;
    if !bitmask.is_two_four() {
        return Err(Error::Weight("a bitmask matrix, 2:4 is needed".into()));
    }
    let (rows, cols) = (bitmask.rows, bitmask.cols);
    let (across, bands) = Form::Matrix.chunks(rows, cols);
    let mut packed = TwoFour {
        half,
        rows,
        cols,
        values: vec![0; across * bands * 512],
        // Each two columns differ, whatever they are: 0 and 1.
        places: vec![0x4444_4444; across * bands * 32],
    };
    for row in 0..rows {
        let (band, r) = (row / 16, row % 16);
        for (i, (col, value)) in
            (bitmask.row_columns(row).zip(row_values(bitmask, row))).enumerate()
        {
            let tile = band * across + col / 64;
            // The i-th of a row is in the stored columns of its half tile, 16 wide.
            let (half, s) = (col % 64 / 32, i % 16);
            let lane = r % 8 * 4 + s % 8 / 2;
            let element = s % 2 + r / 8 * 2 + s / 8 * 4;
            packed.values[((tile * 2 + half) * 32 + lane) * 8 + element] = value;
            let holder = r % 8 * 4 + 2 * half + s / 8;
            let shift = r / 8 * 16 + s % 8 * 2;
            let word = &mut packed.places[tile * 32 + holder];
            *word = *word & !(3 << shift) | ((col % 4) as u32) << shift;
        }
    }
    Ok(packed)
}

fn bitmask(weight: &Weight) -> Result<&Bitmask> {
    match weight.encoding() {
        Encoding::Bitmask(bitmask) => Ok(bitmask),
        Encoding::Dense(_) => Err(Error::Weight(
            "a dense matrix, a sparse one is needed".into(),
        )),
    }
}

/// The stored elements of a row, from its first on.
fn row_values(bitmask: &Bitmask, row: usize) -> impl Iterator<Item = u16> + '_ {
    let (elements, _) = bitmask.values.as_chunks::<2>();
    let from = elements.get(bitmask.row_start(row)..).unwrap_or(&[]);
    from.iter().map(|e| u16::from_le_bytes(*e))
}
