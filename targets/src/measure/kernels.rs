//! The two loops that are measured, compiled once for each instruction set and picked at run time.

use std::hint::black_box;

/// [`read`] takes its data in pieces of this many bytes.
pub const CHUNK: usize = 512;

/// Multiply-adds on `CHAINS` independent vectors of `LANES`: enough chains to hide the latency,
/// few enough to stay in registers. Returns the operations done.
#[inline(always)]
fn chains<const LANES: usize, const CHAINS: usize>() -> f64 {
    const ROUNDS: usize = 20_000;
    let (factor, term) = (black_box([0.5f32; LANES]), black_box([1.0f32; LANES]));
    let mut sums = black_box([[0.0f32; LANES]; CHAINS]);
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            for ((s, f), t) in sum.iter_mut().zip(&factor).zip(&term) {
                *s = s.mul_add(*f, *t);
            }
        }
    }
    black_box(sums);
    (2 * LANES * CHAINS * ROUNDS) as f64
}

/// Loads every byte of `data`, `passes` times, adding 32-bit words into `WORDS` sums so that the
/// loads stay.
#[inline(always)]
fn sum<const BYTES: usize, const WORDS: usize>(data: &[u8], passes: usize) {
    let mut sums = [0u32; WORDS];
    for _ in 0..passes {
        for piece in black_box(data).as_chunks::<BYTES>().0 {
            for (s, word) in sums.iter_mut().zip(piece.as_chunks::<4>().0) {
                *s = s.wrapping_add(u32::from_le_bytes(*word));
            }
        }
    }
    black_box(sums);
}

/// Multiply-adds from registers with the widest vectors here. Returns the operations done.
#[allow(unsafe_code)]
pub fn multiply_add() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512() -> f64 {
            chains::<16, 10>()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2() -> f64 {
            chains::<8, 12>()
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions are there.
            return unsafe { avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the instructions are there.
            return unsafe { avx2() };
        }
    }
    // NEON is part of the aarch64 baseline; elsewhere this is what the compiler makes of it.
    chains::<4, 16>()
}

/// Reads `data`, whole [`CHUNK`]s of it, `passes` times with the widest vectors here.
#[allow(unsafe_code)]
pub fn read(data: &[u8], passes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(data: &[u8], passes: usize) {
            sum::<512, 128>(data, passes);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(data: &[u8], passes: usize) {
            sum::<256, 64>(data, passes);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions are there.
            return unsafe { avx512(data, passes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the instructions are there.
            return unsafe { avx2(data, passes) };
        }
    }
    sum::<128, 32>(data, passes);
}
