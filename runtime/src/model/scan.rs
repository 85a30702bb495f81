//! One pass over stored values: how many are not zero, and the first that may not be stored.

use crate::DType;
use half::{bf16, f16};
use std::ops::{AddAssign, BitOrAssign};

/// Elements that are looked at without a branch, so that the test becomes SIMD code; no more than a
/// u8 counts.
const PART: usize = 128;

/// What a pass found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scan {
    /// Values that are not zero of either sign.
    pub nonzeros: usize,
    /// The first value that is infinite or not a number, or -128 of I8, and where it stands.
    pub fault: Option<(usize, f32)>,
}

/// Scans little-endian values.
pub(super) fn scan(dtype: DType, data: &[u8]) -> Scan {
    let half = u16::from_le_bytes;
    match dtype {
        DType::F32 => pass(
            data,
            u32::from_le_bytes,
            |v| v & 0x7fff_ffff != 0,
            |v| v & 0x7f80_0000 == 0x7f80_0000,
            f32::from_bits,
        ),
        DType::F16 => pass(
            data,
            half,
            |v| v & 0x7fff != 0,
            |v| v & 0x7c00 == 0x7c00,
            |v| f16::from_bits(v).to_f32(),
        ),
        DType::BF16 => pass(
            data,
            half,
            |v| v & 0x7fff != 0,
            |v| v & 0x7f80 == 0x7f80,
            |v| bf16::from_bits(v).to_f32(),
        ),
        DType::I8 => pass(
            data,
            u8::from_le_bytes,
            |v| v != 0,
            |v| v == 0x80,
            |v| f32::from(v as i8),
        ),
        DType::U8 => pass(data, u8::from_le_bytes, |v| v != 0, |_| false, f32::from),
        DType::I32 => pass(data, u32::from_le_bytes, |v| v != 0, |_| false, |_| 0.0),
        DType::I64 => pass(data, u64::from_le_bytes, |v| v != 0, |_| false, |_| 0.0),
    }
}

fn pass<const N: usize, T>(
    data: &[u8],
    value: impl Fn([u8; N]) -> T,
    counts: impl Fn(T) -> bool,
    bad: impl Fn(T) -> bool,
    shown: impl Fn(T) -> f32,
) -> Scan
where
    T: Copy + From<bool> + Into<u64> + AddAssign + BitOrAssign,
{
    // Sums as wide as the values.
    let tally = |part: &[[u8; N]]| {
        let (mut n, mut any) = (T::from(false), T::from(false));
        for &e in part {
            let v = value(e);
            n += counts(v).into();
            any |= bad(v).into();
        }
        (n.into() as usize, any.into() != 0)
    };
    let elements = data.as_chunks::<N>().0;
    let (parts, rest) = elements.as_chunks::<PART>();
    let (mut nonzeros, mut any) = tally(rest);
    for part in parts {
        let (n, bad) = tally(part);
        nonzeros += n;
        any |= bad;
    }
    let at = any.then(|| elements.iter().position(|&e| bad(value(e))));
    let fault = at.flatten().map(|at| (at, shown(value(elements[at]))));
    Scan { nonzeros, fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_either_sign_are_not_counted_and_the_first_fault_is_found() {
        for len in [0, 1, 5, PART - 1, PART, 3 * PART + 7, 5000] {
            let values: Vec<f32> = (0..len)
                .map(|i| [0.0, -0.0, 1.5, -2.0, 1e-40][i % 5])
                .collect();
            let count = |tiny: bool| {
                let counts = |v: &&f32| **v != 0.0 && (tiny || v.abs() > 1e-30);
                values.iter().filter(counts).count()
            };
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let bytes = |values: &[f32]| -> Vec<u8> {
                    let of = |v: &f32| match dtype {
                        DType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
                        DType::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
                        _ => v.to_le_bytes().to_vec(),
                    };
                    values.iter().flat_map(of).collect()
                };
                let clean = scan(dtype, &bytes(&values));
                let nonzeros = count(dtype != DType::F16);
                assert_eq!(
                    clean,
                    Scan {
                        nonzeros,
                        fault: None
                    },
                    "{dtype} {len}"
                );
                for at in [0, len / 2, len.saturating_sub(1)] {
                    if at >= len {
                        continue;
                    }
                    let mut values = values.clone();
                    values[at] = f32::NEG_INFINITY;
                    values[len - 1] = f32::NEG_INFINITY;
                    let fault = scan(dtype, &bytes(&values)).fault;
                    assert_eq!(fault, Some((at, f32::NEG_INFINITY)), "{dtype} {len}");
                }
            }
            let bytes: Vec<u8> = (0..len).map(|i| [0, 1, 0xff][i % 3]).collect();
            let nonzeros = bytes.iter().filter(|b| **b != 0).count();
            for dtype in [DType::I8, DType::U8] {
                assert_eq!(
                    scan(dtype, &bytes),
                    Scan {
                        nonzeros,
                        fault: None
                    }
                );
            }
        }
        let fault = scan(DType::I8, &[3, 0x80, 0x80]).fault;
        assert_eq!(fault, Some((1, -128.0)));
        assert_eq!(scan(DType::I64, &[0, 0, 0, 0, 0, 0, 0, 1]).nonzeros, 1);
    }
}
