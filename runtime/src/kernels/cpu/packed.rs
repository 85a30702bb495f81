//! Packed weights as bytes: what a pack cache keeps. Everything that is read is checked: bytes that do
//! not describe sound weights are an error, never a read out of bounds.

use super::conv::PanelSet;
use super::room::Plain;
use super::weights::{BLOCK_ROWS, DensePanels, IndexStream, PanelWeights, even_chunk};
use crate::model::Bytes;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::ops::Deref;

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

/// A hash of 128 bits that reads some bytes a cycle: multiplications of 64 by 64 bits, folded. It tells
/// weights apart and finds damage; it does not withstand someone who looks for a collision.
pub struct Hash {
    lanes: [u64; 4],
    len: u64,
}

const PRIMES: [u64; 4] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0xd6e8_feb8_6659_fd93,
];

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Default for Hash {
    fn default() -> Hash {
        Hash {
            lanes: PRIMES,
            len: 0,
        }
    }
}

impl Hash {
    /// Takes in bytes, and where they end.
    pub fn write(&mut self, bytes: &[u8]) {
        let (blocks, tail) = bytes.as_chunks::<32>();
        let mut last = [0; 32];
        last[..tail.len()].copy_from_slice(tail);
        for block in blocks.iter().chain((!tail.is_empty()).then_some(&last)) {
            let (words, _) = block.as_chunks::<8>();
            for ((lane, word), prime) in self.lanes.iter_mut().zip(words).zip(PRIMES) {
                // The lane stays in the sum: a product of 0 would forget what came before.
                *lane = fold(*lane ^ u64::from_le_bytes(*word), prime).wrapping_add(*lane);
            }
        }
        self.len = fold(self.len ^ bytes.len() as u64, PRIMES[3]).wrapping_add(1);
    }

    /// The hash of everything so far.
    pub fn finish(&self) -> u128 {
        let [a, b, c, d] = self.lanes;
        let mix = |x: u64, y: u64| fold(x ^ self.len ^ PRIMES[0], y ^ PRIMES[1]);
        let high = mix(mix(a, b), c ^ d.rotate_left(32));
        let low = mix(mix(c, d), a ^ b.rotate_left(17));
        u128::from(high) << 64 | u128::from(low)
    }
}

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
    /// Index streams, or dense.
    pub stream: bool,
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
        from.require(usize::from(e.stream), "kind")?;
        from.require(e.rows, "rows")?;
        from.require(e.cols, "columns")?;
        from.require(chunk, "rows of a panel")?;
        groups.push(match e.stream {
            false => {
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
            true => PanelWeights::Stream(from.stream(e, chunk)?),
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::weights::{MatrixRows, PANEL};
    use std::ops::Range;

    struct Third;

    impl MatrixRows for Third {
        fn visit(&self, r: usize, columns: Range<usize>, mut f: impl FnMut(usize, f32)) {
            for k in columns.filter(|k| (k + r).is_multiple_of(3)) {
                f(k, (r * 100 + k) as f32);
            }
        }
    }

    fn sample(stream: bool) -> (Vec<u8>, Expected) {
        let (rows, cols, chunk) = (130, 200, 96);
        let width = if stream { 112 } else { PANEL };
        let weights = match stream {
            true => PanelWeights::Stream(IndexStream::pack(rows, cols, chunk, width, &Third)),
            false => PanelWeights::Dense(DensePanels::pack(rows, cols, 6, chunk, &Third)),
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
            stream,
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
        for stream in [false, true] {
            let (bytes, expected) = sample(stream);
            let set = read(&placed(&bytes), 32, &expected).unwrap();
            let mut again = vec![7; 32];
            write(&set, 32, &mut again).unwrap();
            assert!(again == bytes);
            assert_eq!(set.bias, [1.0; 130]);
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_harmless() {
        for stream in [false, true] {
            let (bytes, expected) = sample(stream);
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
            let (sizes, len) = (48 + 130 * 4, if stream { 48 } else { 40 });
            for at in (32..48).chain(sizes..sizes + len) {
                let mut bad = bytes.clone();
                bad[at] ^= 0x40;
                assert!(read(&placed(&bad), 32, &expected).is_err(), "byte {at}");
            }
            if stream {
                let counts = 48 + 130 * 4 + 48;
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

    #[test]
    fn hashes_tell_lengths_places_and_bits_apart() {
        let hash = |parts: &[&[u8]]| {
            let mut hash = Hash::default();
            parts.iter().for_each(|p| hash.write(p));
            hash.finish()
        };
        let long: Vec<u8> = (0..100).collect();
        let mut all = vec![hash(&[]), hash(&[b""]), hash(&[b"\0"]), hash(&[b"\0\0"])];
        all.extend([hash(&[b"a", b"b"]), hash(&[b"ab"]), hash(&[b"b", b"a"])]);
        for bit in 0..800 {
            let mut flipped = long.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            all.push(hash(&[&flipped]));
        }
        all.push(hash(&[&long]));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
