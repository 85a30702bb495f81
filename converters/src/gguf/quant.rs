//! Element types and the blocks of the quantised ones.

use half::f16;
use lacuna::DType;
use std::fmt;

/// An element type that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Every type that is read, its number in a file and its name.
const KINDS: [(u32, Kind, &str); 11] = [
    (0, Kind::F32, "F32"),
    (1, Kind::F16, "F16"),
    (30, Kind::BF16, "BF16"),
    (2, Kind::Q4_0, "Q4_0"),
    (3, Kind::Q4_1, "Q4_1"),
    (6, Kind::Q5_0, "Q5_0"),
    (7, Kind::Q5_1, "Q5_1"),
    (8, Kind::Q8_0, "Q8_0"),
    (12, Kind::Q4K, "Q4_K"),
    (13, Kind::Q5K, "Q5_K"),
    (14, Kind::Q6K, "Q6_K"),
];

/// Names of types that are known and not read.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|k| k.1 == *self).map_or("?", |k| k.2);
        f.write_str(name)
    }
}

impl Kind {
    /// The type with this number.
    pub fn of_id(id: u32) -> Result<Kind, String> {
        if let Some(found) = KINDS.iter().find(|k| k.0 == id) {
            return Ok(found.1);
        }
        let read: Vec<&str> = KINDS.iter().map(|k| k.2).collect();
        let name = match OTHERS.iter().find(|o| o.0 == id) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("the unknown type {id}"),
        };
        Err(format!(
            "elements of {name}; supported: {}",
            read.join(", ")
        ))
    }

    /// Elements and bytes of a block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Kind::F32 => (1, 4),
            Kind::F16 | Kind::BF16 => (1, 2),
            Kind::Q4_0 => (32, 18),
            Kind::Q4_1 => (32, 20),
            Kind::Q5_0 => (32, 22),
            Kind::Q5_1 => (32, 24),
            Kind::Q8_0 => (32, 34),
            Kind::Q4K => (256, 144),
            Kind::Q5K => (256, 176),
            Kind::Q6K => (256, 210),
        }
    }

    /// The dtype of the elements as they are; `None` for quantised ones.
    pub const fn plain(self) -> Option<DType> {
        match self {
            Kind::F32 => Some(DType::F32),
            Kind::F16 => Some(DType::F16),
            Kind::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

/// The elements of whole blocks as little-endian f32. `None` for types that are not quantised.
pub(super) fn dequantise(kind: Kind, data: &[u8]) -> Option<Vec<u8>> {
    Some(match kind {
        Kind::F32 | Kind::F16 | Kind::BF16 => return None,
        Kind::Q4_0 => blocks(data, q4_0),
        Kind::Q4_1 => blocks(data, q4_1),
        Kind::Q5_0 => blocks(data, q5_0),
        Kind::Q5_1 => blocks(data, q5_1),
        Kind::Q8_0 => blocks(data, q8_0),
        Kind::Q4K => blocks(data, q4_k),
        Kind::Q5K => blocks(data, q5_k),
        Kind::Q6K => blocks(data, q6_k),
    })
}

/// Applies `block` to every block of `B` bytes, which holds `N` elements.
fn blocks<const B: usize, const N: usize>(
    data: &[u8],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) -> Vec<u8> {
    let all = data.as_chunks::<B>().0;
    let mut out = Vec::with_capacity(all.len() * N * 4);
    let mut values = [0.0; N];
    for one in all {
        block(one, &mut values);
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn low(byte: u8) -> i32 {
    (byte & 15).into()
}

fn high(byte: u8) -> i32 {
    (byte >> 4).into()
}

/// A scale and 32 nibbles, of which 8 is zero; the low ones first.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &b) in block[2..].iter().enumerate() {
        out[j] = (low(b) - 8) as f32 * d;
        out[j + 16] = (high(b) - 8) as f32 * d;
    }
}

/// A scale, a minimum and 32 nibbles.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &b) in block[4..].iter().enumerate() {
        out[j] = low(b) as f32 * d + m;
        out[j + 16] = high(b) as f32 * d + m;
    }
}

/// The fifth bits of element `j` and `j + 16`, in place.
fn fifth(bits: [u8; 4], j: usize) -> (i32, i32) {
    let bits = u32::from_le_bytes(bits);
    let bit = |i: usize| ((bits >> i & 1) << 4) as i32;
    (bit(j), bit(j + 16))
}

/// A scale, 32 high bits and 32 nibbles, of which 16 is zero.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let bits = [block[2], block[3], block[4], block[5]];
    for (j, &b) in block[6..].iter().enumerate() {
        let (h0, h1) = fifth(bits, j);
        out[j] = ((low(b) | h0) - 16) as f32 * d;
        out[j + 16] = ((high(b) | h1) - 16) as f32 * d;
    }
}

/// A scale, a minimum, 32 high bits and 32 nibbles.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let bits = [block[4], block[5], block[6], block[7]];
    for (j, &b) in block[8..].iter().enumerate() {
        let (h0, h1) = fifth(bits, j);
        out[j] = (low(b) | h0) as f32 * d + m;
        out[j + 16] = (high(b) | h1) as f32 * d + m;
    }
}

/// A scale and 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, &b) in out.iter_mut().zip(&block[2..]) {
        *o = f32::from(b as i8) * d;
    }
}

/// Scale and minimum of sub-block `j` of eight, 6 bits each, packed in 12 bytes: the first four
/// plainly, the others in nibbles with their two high bits above the first ones.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4,
        )
    };
    (scale.into(), min.into())
}

/// Eight sub-blocks of 32 nibbles under a scale and a minimum each.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for j in 0..8 {
        let (scale, min) = scale_min(packed, j);
        let (scale, min) = (d * scale, dmin * min);
        let bytes = &quants[j / 2 * 32..][..32];
        for (o, &b) in out[j * 32..][..32].iter_mut().zip(bytes) {
            let q = if j % 2 == 0 { low(b) } else { high(b) };
            *o = scale * q as f32 - min;
        }
    }
}

/// As `q4_k`, with a fifth bit of every element: bit `j` of 32 bytes for sub-block `j`.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, bits, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for j in 0..8 {
        let (scale, min) = scale_min(packed, j);
        let (scale, min) = (d * scale, dmin * min);
        let bytes = &quants[j / 2 * 32..][..32];
        for (o, (&b, &h)) in out[j * 32..][..32].iter_mut().zip(bytes.iter().zip(bits)) {
            let q = if j % 2 == 0 { low(b) } else { high(b) };
            *o = scale * (q | i32::from(h >> j & 1) << 4) as f32 - min;
        }
    }
}

/// Sixteen sub-blocks of 16 six-bit elements, of which 32 is zero, under a signed scale each.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (lows, highs, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, o) in out.iter_mut().enumerate() {
        // Halves of 128 elements, in each of them four runs of 32.
        let (part, run, l) = (i / 128, i % 128 / 32, i % 32);
        let byte = lows[part * 64 + run % 2 * 32 + l];
        let four = if run < 2 { low(byte) } else { high(byte) };
        let two = i32::from(highs[part * 32 + l] >> (2 * run) & 3);
        let scale = f32::from(scales[i / 16] as i8);
        *o = d * scale * ((four | two << 4) - 32) as f32;
    }
}
