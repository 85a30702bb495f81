//! The bitmask encodings of a matrix: any elements of a row, or two of each four.

use super::Bytes;

/// The bitmask encoding of a matrix `[rows, cols]`.
///
/// Bit `c % 8` (least significant first) of byte `r * ceil(cols / 8) + c / 8` of `mask` is 1 where
/// element `(r, c)` is stored; `values` are the stored elements, row-major. A stored value may be 0.
#[derive(Clone, Debug)]
pub struct Bitmask {
    /// Rows: the output features or channels.
    pub rows: usize,
    /// Columns: everything behind the first axis.
    pub cols: usize,
    /// The stored elements, little-endian.
    pub values: Bytes,
    /// `rows * ceil(cols / 8)` bytes; the bits behind `cols` are 0.
    pub mask: Bytes,
    /// `rows` little-endian i64: where each row starts in `values`, in elements. `None` of a matrix that is
    /// stored 2:4: of each four columns two are, so that row `r` starts at `r * cols / 2`.
    pub row_offsets: Option<Bytes>,
}

impl Bitmask {
    /// Bytes of a mask row.
    pub fn mask_stride(&self) -> usize {
        self.cols.div_ceil(8)
    }

    /// The mask of one row.
    pub fn mask_row(&self, row: usize) -> &[u8] {
        let stride = self.mask_stride();
        &self.mask[row * stride..(row + 1) * stride]
    }

    /// Whether two of each four columns are stored.
    pub fn is_two_four(&self) -> bool {
        self.row_offsets.is_none()
    }

    /// Where `row` starts in `values`, in elements.
    pub fn row_start(&self, row: usize) -> usize {
        let Some(offsets) = &self.row_offsets else {
            return row * (self.cols / 2);
        };
        let at = row * 8;
        let bytes: [u8; 8] = offsets[at..at + 8].try_into().unwrap_or_default();
        i64::from_le_bytes(bytes) as usize
    }

    /// Columns of the stored elements of `row`, ascending.
    pub fn row_columns(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.mask_row(row).iter().enumerate().flat_map(|(i, &b)| {
            let mut left = b;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros() as usize;
                    left &= left - 1;
                    i * 8 + bit
                })
            })
        })
    }

    /// Checks sizes, padding bits, and that the row offsets are the running count of the mask, or that it
    /// has two bits for each four columns.
    pub(super) fn check(&self, element: usize) -> Result<(), String> {
        let (rows, cols) = (self.rows, self.cols);
        // Rows without columns would be bounded by nothing in a file.
        if self.is_two_four() && (cols == 0 || !cols.is_multiple_of(4)) {
            return Err(format!("stored 2:4, but {cols} columns are no groups of 4"));
        }
        let mask_len = rows
            .checked_mul(cols.div_ceil(8))
            .ok_or("shape overflows")?;
        if self.mask.len() != mask_len {
            return Err(format!(
                "bitmask has {} bytes, shape [{rows}, {cols}] needs {mask_len}",
                self.mask.len()
            ));
        }
        let padding = match cols % 8 {
            0 => 0u8,
            used => 0xff << used,
        };
        if let Some(row) =
            (0..rows).find(|&r| (self.mask_row(r).last()).is_some_and(|last| last & padding != 0))
        {
            return Err(format!(
                "bitmask row {row} has bits set behind column {cols}"
            ));
        }
        let count = match &self.row_offsets {
            Some(offsets) => self.check_offsets(offsets)?,
            None => self.check_two_four()?,
        };
        if count.checked_mul(element) != Some(self.values.len()) {
            return Err(format!(
                "{} bytes of values, the mask counts {count} of {element} bytes",
                self.values.len()
            ));
        }
        Ok(())
    }

    /// The stored elements, where every row starts at as many as the mask counts before it.
    fn check_offsets(&self, offsets: &Bytes) -> Result<usize, String> {
        let rows = self.rows;
        if rows.checked_mul(8) != Some(offsets.len()) {
            return Err(format!(
                "row_offsets has {} bytes, {rows} rows need {}",
                offsets.len(),
                rows.saturating_mul(8)
            ));
        }
        let mut count = 0usize;
        for r in 0..rows {
            if self.row_start(r) != count {
                return Err(format!(
                    "row_offsets[{r}] is {}, the mask counts {count}",
                    self.row_start(r) as i64
                ));
            }
            count += popcount(self.mask_row(r));
        }
        Ok(count)
    }

    /// The stored elements, where each four columns have two.
    fn check_two_four(&self) -> Result<usize, String> {
        let (rows, cols) = (self.rows, self.cols);
        for r in 0..rows {
            let (whole, rest) = self.mask_row(r).split_at(cols / 8);
            // Without a branch, so that it becomes SIMD code.
            let bad = whole.iter().fold(0, |bad, &b| bad | (pairs(b) ^ 0x22));
            let rest = rest.iter().fold(0, |bad, &b| bad | (pairs(b) ^ 0x02));
            if bad | rest == 0 {
                continue;
            }
            let row = self.mask_row(r).iter();
            let mut groups = row.flat_map(|b| [b & 15, b >> 4]).take(cols / 4);
            let group = groups.position(|g| g.count_ones() != 2).unwrap_or(0);
            let bits = self.mask_row(r)[group / 2] >> (group % 2 * 4) & 15;
            let (from, to) = (4 * group, 4 * group + 3);
            return Err(format!(
                "bitmask row {r} keeps {} of columns {from} to {to}, 2:4 keeps two",
                bits.count_ones()
            ));
        }
        Ok(rows * (cols / 2))
    }
}

/// The bits set of each half of a byte.
#[inline(always)]
fn pairs(b: u8) -> u8 {
    let twos = b - (b >> 1 & 0x55);
    (twos & 0x33) + (twos >> 2 & 0x33)
}

/// The number of bits set.
fn popcount(bytes: &[u8]) -> usize {
    let (words, tail) = bytes.as_chunks::<8>();
    let words: u32 = words
        .iter()
        .map(|w| u64::from_le_bytes(*w).count_ones())
        .sum();
    let tail: u32 = tail.iter().map(|b| b.count_ones()).sum();
    (words + tail) as usize
}
