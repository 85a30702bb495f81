//! A scan for values that are not finite.

use crate::DType;
use crate::model::{Encoding, Weight};
use half::{bf16, f16};

/// Says which element of a floating-point weight is infinite or not a number, if one is.
pub(super) fn check(weight: &Weight) -> Result<(), String> {
    let (data, bitmask) = match weight.encoding() {
        Encoding::Dense(data) => (data, None),
        Encoding::Bitmask(b) => (&b.values, Some(b)),
    };
    let Some((stored, value)) = first(weight.dtype(), data) else {
        return Ok(());
    };
    let flat = match bitmask {
        None => stored,
        Some(b) => {
            let row = (0..b.rows)
                .rev()
                .find(|&r| b.row_start(r) <= stored)
                .unwrap_or(0);
            let column = b.row_columns(row).nth(stored - b.row_start(row));
            row * b.cols + column.unwrap_or(0)
        }
    };
    Err(format!("the value at flat index {flat} is {value}"))
}

/// The position and value of the first element that is not finite.
fn first(dtype: DType, data: &[u8]) -> Option<(usize, f32)> {
    match dtype {
        DType::F32 => find(data, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000)
            .map(|(i, b)| (i, f32::from_le_bytes(b))),
        DType::F16 => find(data, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00)
            .map(|(i, b)| (i, f16::from_le_bytes(b).to_f32())),
        DType::BF16 => find(data, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80)
            .map(|(i, b)| (i, bf16::from_le_bytes(b).to_f32())),
        DType::I64 | DType::I32 | DType::I8 | DType::U8 => None,
    }
}

/// The first element for which `bad` holds. Whole blocks are tested without a branch, so that the
/// test becomes SIMD code.
fn find<const N: usize>(data: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<(usize, [u8; N])> {
    const BLOCK: usize = 1024;
    let elements = data.as_chunks::<N>().0;
    elements
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |any, &e| any | bad(e)))
        .and_then(|block| {
            let start = block * BLOCK;
            let at = elements[start..].iter().position(|&e| bad(e))?;
            Some((start + at, elements[start + at]))
        })
}
