//! What a session's tests do not reach: the end of a mapping, and runs of fewer tokens than planned.

use super::chunk::Chunk;
use super::linear::{Linear, round_groups};
use super::rows::Rows;
use super::team::Team;
use super::{Io, Isa, Kernel, Sequence};
use crate::DType;
use crate::model::{Bitmask, Bytes, Encoding, Scales, Storage, Weight};
use std::io::Write;
use std::sync::Arc;

/// The bytes at the very end of a page; the page behind it is mapped but behind the end of its file,
/// so that reading there is a fault.
pub(super) fn at_page_end(bytes: &[u8]) -> Bytes {
    const PAGE: usize = 1 << 16;
    let len = bytes.len().next_multiple_of(PAGE);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xff; len - bytes.len()]).unwrap();
    file.write_all(bytes).unwrap();
    // SAFETY: nobody else has the file.
    let map = unsafe { memmap2::MmapOptions::new().len(len + PAGE).map(&file) };
    let all = Bytes::mapped(Arc::new(map.unwrap()));
    all.slice(len - bytes.len()..len).unwrap()
}

/// A weight with every tensor at the end of a page, and its values.
fn weight(outer: usize, inner: usize, dtype: DType, storage: Storage) -> (Weight, Vec<f32>) {
    let mut bytes = Vec::new();
    for i in 0..outer * inner {
        let v = (i * 37 % 101) as f32 / 64.0 - 0.75;
        let zero = match storage {
            Storage::Dense => false,
            Storage::Bitmask => (i * 31 % 7) < 3,
            Storage::TwoFour => (i + i / 4) % 4 < 2,
        };
        let v = if zero { 0.0 } else { v };
        match dtype {
            DType::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
            _ => bytes.extend(v.to_le_bytes()),
        }
    }
    let shape = vec![outer, inner];
    if dtype == DType::I8 {
        let dense = Weight::dense(shape.clone(), DType::F32, bytes.into()).unwrap();
        let scaled = dense
            .to_scaled(if storage == Storage::Dense { 64 } else { 32 })
            .unwrap();
        let values = scaled.to_f32().unwrap();
        let scales = scaled.scales().unwrap();
        let scales = Scales {
            group: scales.group,
            values: at_page_end(&scales.values),
        };
        let Encoding::Bitmask(b) = scaled.encoding() else {
            panic!("not encoded")
        };
        return (Weight::scaled(shape, moved(b), scales).unwrap(), values);
    }
    let dense = Weight::dense(shape.clone(), dtype, at_page_end(&bytes)).unwrap();
    let values = dense.to_f32().unwrap();
    let encoded = match storage {
        Storage::Dense => dense,
        storage => dense.store_as(storage).unwrap(),
    };
    let weight = match encoded.encoding() {
        Encoding::Dense(_) => encoded,
        Encoding::Bitmask(b) => Weight::bitmask(shape, dtype, moved(b)).unwrap(),
    };
    (weight, values)
}

/// The same with every tensor at the end of a page.
fn moved(b: &Bitmask) -> Bitmask {
    Bitmask {
        values: at_page_end(&b.values),
        mask: at_page_end(&b.mask),
        row_offsets: b.row_offsets.as_deref().map(at_page_end),
        ..*b
    }
}

struct Pointer(*mut f32);
// SAFETY: members write disjoint parts.
unsafe impl Sync for Pointer {}

/// Runs a kernel of one or two inputs on two threads, of which `residual` may be the output itself.
fn run(isa: Isa, kernel: &Kernel, x: &[f32], out: &mut [f32], in_place: bool, tokens: usize) {
    let len = kernel.scratch_len();
    let mut scratch = vec![f32::NAN; 2 * len];
    let (scratch, out) = (Pointer(scratch.as_mut_ptr()), Pointer(out.as_mut_ptr()));
    let x = Pointer(x.as_ptr().cast_mut());
    Team::new(2).unwrap().run(&|member| {
        let (scratch, out, x) = (&scratch, &out, &x);
        let inputs = [x.0.cast_const(), out.0.cast_const()];
        // SAFETY: the buffers have the kernel's sizes; the instruction set is there.
        unsafe {
            let io = Io {
                inputs: &inputs[..1 + usize::from(in_place)],
                out: out.0,
                scratch: scratch.0.add(member.index * len),
                sequence: Sequence {
                    tokens,
                    ..Sequence::NONE
                },
                member,
            };
            isa.run(kernel, &io);
        }
    });
}

#[test]
fn nothing_is_read_behind_a_mapping_and_no_token_behind_the_last_is_written() {
    for isa in Isa::available() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
            for storage in [Storage::Dense, Storage::Bitmask, Storage::TwoFour] {
                for (outer, mut inner) in [(1usize, 1usize), (5, 23), (31, 64), (50, 141)] {
                    if storage == Storage::TwoFour {
                        inner = inner.next_multiple_of(4);
                    }
                    let (weight, values) = weight(outer, inner, dtype, storage);
                    let counts = [1, 2, 5, 8, 9, 40, 130];
                    let cases = counts.into_iter().flat_map(|n| [(n, false), (n, true)]);
                    for (count, rounded) in cases {
                        let rows = Rows::new(&weight).unwrap();
                        let clamp = (f32::NEG_INFINITY, f32::INFINITY);
                        let bias: Arc<[f32]> = vec![0.5; outer].into();
                        let kernel = match count {
                            ..=8 => Kernel::Linear(Linear {
                                rows,
                                bias,
                                count,
                                tokens: true,
                                rounded,
                                clamp,
                            }),
                            _ => Kernel::Chunk(Chunk::new(rows, bias, count, true, rounded, clamp)),
                        };
                        let x: Vec<f32> = (0..count * inner)
                            .map(|i| (i * 29 % 53) as f32 / 32.0 - 0.8125)
                            .collect();
                        let mut seen = x.clone();
                        if let (true, Some(s)) = (rounded && count <= 8, weight.scales()) {
                            for n in 0..count {
                                let at = n * inner;
                                // SAFETY: both hold the row.
                                unsafe {
                                    let to = seen.as_mut_ptr().add(at);
                                    round_groups(x.as_ptr().add(at), to, inner, s.group);
                                }
                            }
                        }
                        for tokens in [count, count.div_ceil(2), 1] {
                            for in_place in [false, true] {
                                let mut out = vec![2.0; count * outer];
                                run(isa, &kernel, &x, &mut out, in_place, tokens);
                                let start = if in_place { 2.5 } else { 0.5 };
                                for (i, got) in out.iter().enumerate() {
                                    let (n, o) = (i / outer, i % outer);
                                    let want = match n < tokens {
                                        false => 2.0,
                                        true => (0..inner)
                                            .map(|k| values[o * inner + k] * seen[n * inner + k])
                                            .fold(start, |a, b| a + b),
                                    };
                                    assert!(
                                        (got - want).abs() < 1e-3,
                                        "{isa} {dtype} {storage:?} {outer}x{inner} @ {tokens}/{count}: \
                                         ({n}, {o}) is {got}, not {want}"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
