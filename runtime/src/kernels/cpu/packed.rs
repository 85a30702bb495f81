//! Packed weights as bytes: what a pack cache keeps. Everything that is read is checked: bytes that do
//! not describe sound weights are an error, never a read out of bounds.

use super::conv::PanelSet;
use super::pairs::{NONE, Pair, PairStream, Start};
use super::room::Plain;
use super::weights::{BLOCK_ROWS, DensePanels, IndexStream, PanelWeights, even_chunk};
use crate::model::Bytes;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::ops::{Deref, Range};

/// Numbers of packed weights: made here, or in a mapped file.
#[derive(Debug)]
pub enum Values<T: Plain> {
    /// Made here.
    Owned(Vec<T>),
    /// In a file, aligned for `T`.
    Stored(Bytes, PhantomData<T>),
}

impl<T: Plain> Values<T> {
    /// Bytes as numbers; `None` where they are not aligned, no whole number of them, or the machine is
    /// not little-endian.
    fn stored(bytes: Bytes) -> Option<Values<T>> {
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(align_of::<T>());
        let whole = bytes.len().is_multiple_of(size_of::<T>());
        (aligned && whole && cfg!(target_endian = "little"))
            .then_some(Values::Stored(bytes, PhantomData))
    }

    fn bytes(&self) -> &[u8] {
        let values: &[T] = self;
        // SAFETY: numbers without padding are bytes.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }
}

impl<T: Plain> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Values::Owned(values) => values,
            // SAFETY: length and alignment were checked, and the bytes do not move or change.
            Values::Stored(b, _) => unsafe {
                std::slice::from_raw_parts(b.as_ptr().cast(), b.len() / size_of::<T>())
            },
        }
    }
}

/// What numbers are a multiple of in the file.
const ALIGN: usize = 64;

/// Writes `set` behind `at` bytes of a file, numbers aligned.
pub fn write(set: &PanelSet, at: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut out = Counted { out, at };
    out.number(set.groups.len())?;
    out.number(set.bias.len())?;
    for value in &set.bias {
        out.bytes(&value.to_le_bytes())?;
    }
    for group in &set.groups {
        match group {
            PanelWeights::Dense(d) => {
                for n in [0, d.rows, d.cols, d.chunk, d.group] {
                    out.number(n)?;
                }
                out.aligned(d.values.bytes())?;
            }
            PanelWeights::Stream(s) => {
                for n in [1, s.rows, s.cols, s.chunk, s.width, s.values.len()] {
                    out.number(n)?;
                }
                for (row, count) in &s.row_counts {
                    out.bytes(&row.to_le_bytes())?;
                    out.bytes(&count.to_le_bytes())?;
                }
                out.aligned(s.values.bytes())?;
                out.aligned(s.offsets.bytes())?;
            }
            PanelWeights::Pairs(p) => {
                let (values, offsets) = (p.values.len(), p.offsets.len());
                for n in [2, p.rows, p.cols, p.chunk, p.width, values, offsets] {
                    out.number(n)?;
                }
                for pair in &p.pairs {
                    for n in [pair.rows[0], pair.rows[1], pair.both, pair.apart] {
                        out.bytes(&n.to_le_bytes())?;
                    }
                }
                out.aligned(p.values.bytes())?;
                out.aligned(p.offsets.bytes())?;
            }
        }
    }
    Ok(())
}

struct Counted<'w> {
    out: &'w mut dyn Write,
    at: usize,
}

impl Counted<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.out.write_all(bytes)
    }

    fn number(&mut self, n: usize) -> io::Result<()> {
        self.bytes(&(n as u64).to_le_bytes())
    }

    fn aligned(&mut self, bytes: &[u8]) -> io::Result<()> {
        let gap = self.at.next_multiple_of(ALIGN) - self.at;
        self.bytes(&[0; ALIGN][..gap])?;
        self.bytes(bytes)
    }
}

/// Kinds of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Dense,
    Stream,
    Pairs,
}

/// What the reader knows that a layer's weights are.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Groups.
    pub groups: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub cols: usize,
    /// Rows of a dense tile.
    pub group: usize,
    /// Most rows of a panel.
    pub chunk: usize,
    /// Columns of a panel.
    pub width: usize,
    /// What is packed.
    pub kind: Kind,
    /// Values of the bias.
    pub bias: usize,
}

/// Reads what [`write`] wrote behind `at` bytes of `file`; the numbers stay there.
pub fn read(file: &Bytes, at: usize, expected: &Expected) -> Result<PanelSet, String> {
    let e = expected;
    let mut from = Cursor { file, at };
    from.require(e.groups, "groups")?;
    from.require(e.bias, "values of the bias")?;
    let bias = from.take(e.bias.checked_mul(4).ok_or("too long")?)?;
    let bias = bias.as_chunks::<4>().0.iter();
    let bias = bias.map(|b| f32::from_le_bytes(*b)).collect();
    let mut groups = Vec::new();
    let chunk = even_chunk(e.cols, e.chunk, e.width);
    for _ in 0..e.groups {
        from.require(e.kind as usize, "kind")?;
        from.require(e.rows, "rows")?;
        from.require(e.cols, "columns")?;
        from.require(chunk, "rows of a panel")?;
        groups.push(match e.kind {
            Kind::Dense => {
                from.require(e.group, "rows of a tile")?;
                let len = e.rows.next_multiple_of(e.group).checked_mul(e.cols);
                PanelWeights::Dense(DensePanels {
                    rows: e.rows,
                    cols: e.cols,
                    chunk,
                    group: e.group,
                    values: from.values(len.ok_or("too long")?)?,
                })
            }
            Kind::Stream => PanelWeights::Stream(from.stream(e, chunk)?),
            Kind::Pairs => PanelWeights::Pairs(from.pairs(e, chunk)?),
        });
    }
    match from.at == file.len() {
        true => Ok(PanelSet { groups, bias }),
        false => Err(format!("{} bytes too many", file.len() - from.at)),
    }
}

struct Cursor<'f> {
    file: &'f Bytes,
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Result<Bytes, String> {
        let end = self.at.checked_add(len).ok_or("too long")?;
        let part = self.file.slice(self.at..end);
        self.at = end;
        part.ok_or_else(|| format!("it ends at byte {} of {end}", self.file.len()))
    }

    fn number(&mut self) -> Result<usize, String> {
        let bytes = self.take(8)?;
        let bytes: [u8; 8] = bytes[..].try_into().map_err(|_| "no number")?;
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|e| e.to_string())
    }

    fn require(&mut self, wanted: usize, what: &str) -> Result<(), String> {
        match self.number()? {
            n if n == wanted => Ok(()),
            n => Err(format!("{n} {what}, the layer has {wanted}")),
        }
    }

    fn values<T: Plain>(&mut self, len: usize) -> Result<Values<T>, String> {
        self.at = self.at.checked_next_multiple_of(ALIGN).ok_or("too long")?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or("too long")?;
        Values::stored(self.take(bytes)?).ok_or_else(|| "it is not aligned".into())
    }

    fn stream(&mut self, e: &Expected, chunk: usize) -> Result<IndexStream, String> {
        self.require(e.width, "columns of a panel")?;
        let total = self.number()?;
        let (blocks, chunks) = (e.rows.div_ceil(BLOCK_ROWS), e.cols.div_ceil(chunk).max(1));
        let counts = e.rows.checked_mul(chunks).and_then(|n| n.checked_mul(8));
        let counts = self.take(counts.ok_or("too long")?)?;
        let number = |b: &[u8; 4]| u32::from_le_bytes(*b);
        let row_counts: Vec<(u32, u32)> = counts
            .as_chunks::<4>()
            .0
            .chunks_exact(2)
            .map(|p| (number(&p[0]), number(&p[1])))
            .collect();
        let values: Values<f32> = self.values(total)?;
        let offsets: Values<u16> = self.values(total)?;

        let mut starts = Vec::with_capacity(blocks * chunks);
        let (mut row, mut value) = (0usize, 0usize);
        for c in 0..chunks {
            let depth = chunk.min(e.cols - (c * chunk).min(e.cols));
            for b in 0..blocks {
                let rows = b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(e.rows);
                starts.push((row, value));
                let part = &row_counts[row..row + rows.len()];
                row += rows.len();
                // Each row once, and the kernel stops at the first one without values.
                let mut seen = [false; BLOCK_ROWS];
                let mut most = u32::MAX;
                let mut len = 0usize;
                for &(r, n) in part {
                    let within = (r as usize).wrapping_sub(rows.start);
                    if within >= rows.len() || std::mem::replace(&mut seen[within], true) {
                        return Err(format!("row {r} of block {b}"));
                    }
                    if n > most || n as usize > depth {
                        return Err(format!("{n} values of row {r}"));
                    }
                    most = n;
                    len += n as usize;
                }
                let end = value.checked_add(len).filter(|end| *end <= total);
                let end = end.ok_or_else(|| format!("more than {total} values"))?;
                let highest = offsets[value..end].iter().copied().max().unwrap_or(0);
                if end > value && highest as usize > (depth - 1) * e.width {
                    return Err(format!("offset {highest} of a panel of {depth} rows"));
                }
                value = end;
            }
        }
        if value != total {
            return Err(format!("{total} values, the rows count {value}"));
        }
        Ok(IndexStream {
            rows: e.rows,
            cols: e.cols,
            chunk,
            width: e.width,
            row_counts,
            starts,
            offsets,
            values,
        })
    }

    fn pairs(&mut self, e: &Expected, chunk: usize) -> Result<PairStream, String> {
        self.require(e.width, "columns of a panel")?;
        let (value_len, offset_len) = (self.number()?, self.number()?);
        let (blocks, chunks) = (e.rows.div_ceil(BLOCK_ROWS), e.cols.div_ceil(chunk).max(1));
        // Blocks are even: only the last may have a row without a partner.
        let len = e.rows.div_ceil(2).checked_mul(chunks);
        let bytes = self.take(len.and_then(|n| n.checked_mul(16)).ok_or("too long")?)?;
        let numbers = bytes.as_chunks::<4>().0.iter();
        let numbers: Vec<u32> = numbers.map(|b| u32::from_le_bytes(*b)).collect();
        let pairs: Vec<Pair> = numbers.as_chunks::<4>().0.iter().map(Pair::from).collect();
        let values: Values<f32> = self.values(value_len)?;
        let offsets: Values<u16> = self.values(offset_len)?;

        let mut starts = Vec::with_capacity(blocks * chunks);
        let (mut pair, mut offset, mut value) = (0usize, 0usize, 0usize);
        for c in 0..chunks {
            let depth = chunk.min(e.cols - (c * chunk).min(e.cols));
            for b in 0..blocks {
                let rows = b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(e.rows);
                starts.push(Start {
                    pair,
                    offset,
                    value,
                });
                let part = &pairs[pair..pair + rows.len().div_ceil(2)];
                pair += part.len();
                let lens = check_pairs(part, rows, depth).map_err(|e| format!("block {b}: {e}"))?;
                let end = offset.checked_add(lens.0).filter(|end| *end <= offset_len);
                let end = end.ok_or_else(|| format!("more than {offset_len} offsets"))?;
                let highest = offsets[offset..end].iter().copied().max().unwrap_or(0);
                if end > offset && highest as usize > (depth - 1) * e.width {
                    return Err(format!("offset {highest} of a panel of {depth} rows"));
                }
                (offset, value) = (end, value.checked_add(lens.1).ok_or("too long")?);
            }
        }
        if (offset, value) != (offset_len, value_len) {
            let counted = format!("the pairs count {offset} and {value}");
            return Err(format!(
                "{offset_len} offsets, {value_len} values, {counted}"
            ));
        }
        Ok(PairStream {
            rows: e.rows,
            cols: e.cols,
            chunk,
            width: e.width,
            nonzeros: values.iter().filter(|v| **v != 0.0).count(),
            pairs,
            starts,
            offsets,
            values,
        })
    }
}

/// The lengths of the pairs of a block and chunk. Each row stands once, and those without columns last, for
/// there the kernel stops.
fn check_pairs(part: &[Pair], rows: Range<usize>, depth: usize) -> Result<(usize, usize), String> {
    let mut seen = [false; BLOCK_ROWS];
    let mut take = |r: u32| {
        let within = (r as usize).wrapping_sub(rows.start);
        match within < rows.len() && !std::mem::replace(&mut seen[within], true) {
            true => Ok(()),
            false => Err(format!("row {r}")),
        }
    };
    let (mut lens, mut alone, mut ended) = ((0, 0), 0, false);
    for pair in part {
        take(pair.rows[0])?;
        match pair.rows[1] {
            NONE => alone += 1,
            row => take(row)?,
        }
        ended |= pair.is_empty();
        if pair.both as usize + pair.apart as usize > depth || ended && !pair.is_empty() {
            return Err(format!("columns of row {}", pair.rows[0]));
        }
        let (offsets, values) = pair.lens();
        lens = (lens.0 + offsets, lens.1 + values);
    }
    match alone == rows.len() % 2 {
        true => Ok(lens),
        false => Err(format!("{alone} rows without a partner")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::weights::{MatrixRows, PANEL};

    const KINDS: [Kind; 3] = [Kind::Dense, Kind::Stream, Kind::Pairs];

    struct Third;

    impl MatrixRows for Third {
        fn visit(&self, r: usize, columns: Range<usize>, mut f: impl FnMut(usize, f32)) {
            for k in columns.filter(|k| (k + r).is_multiple_of(3)) {
                f(k, (r * 100 + k) as f32);
            }
        }
    }

    fn sample(kind: Kind) -> (Vec<u8>, Expected) {
        let (rows, cols, chunk) = (131, 200, 96);
        let width = if kind == Kind::Dense { PANEL } else { 112 };
        let weights = match kind {
            Kind::Stream => {
                PanelWeights::Stream(IndexStream::pack(rows, cols, chunk, width, &Third))
            }
            Kind::Pairs => PanelWeights::Pairs(PairStream::pack(rows, cols, chunk, width, &Third)),
            Kind::Dense => PanelWeights::Dense(DensePanels::pack(rows, cols, 6, chunk, &Third)),
        };
        let set = PanelSet {
            groups: vec![weights],
            bias: vec![1.0; rows],
        };
        let mut bytes = vec![7; 32];
        write(&set, bytes.len(), &mut bytes).unwrap();
        let expected = Expected {
            groups: 1,
            rows,
            cols,
            group: 6,
            chunk,
            width,
            kind,
            bias: rows,
        };
        (bytes, expected)
    }

    /// The bytes at an address that numbers of four bytes need.
    fn placed(bytes: &[u8]) -> Bytes {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        crate::model::file::map(file.path()).unwrap()
    }

    #[test]
    fn what_was_written_is_read_back() {
        for kind in KINDS {
            let (bytes, expected) = sample(kind);
            let set = read(&placed(&bytes), 32, &expected).unwrap();
            let mut again = vec![7; 32];
            write(&set, 32, &mut again).unwrap();
            assert!(again == bytes);
            assert_eq!(set.bias, [1.0; 131]);
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_harmless() {
        for kind in KINDS {
            let (bytes, expected) = sample(kind);
            for end in (32..bytes.len()).step_by(bytes.len() / 97) {
                assert!(
                    read(&placed(&bytes[..end]), 32, &expected).is_err(),
                    "{end}"
                );
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(read(&placed(&longer), 32, &expected).is_err());
            // Every number of the head, and every offset, set beyond what the layer has.
            let sizes = 48 + 131 * 4;
            let len = 40 + 8 * kind as usize;
            for at in (32..48).chain(sizes..sizes + len) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x40;
                assert!(read(&placed(&bad), 32, &expected).is_err(), "byte {at}");
            }
            if kind != Kind::Dense {
                let counts = sizes + len;
                for at in [counts, counts + 4, counts + 3, bytes.len() - 1] {
                    let mut bad = bytes.clone();
                    bad[at] = 0xff;
                    assert!(read(&placed(&bad), 32, &expected).is_err(), "byte {at}");
                }
            }
            let other = Expected {
                cols: expected.cols + 1,
                ..expected
            };
            assert!(read(&placed(&bytes), 32, &other).is_err());
        }
    }
}
