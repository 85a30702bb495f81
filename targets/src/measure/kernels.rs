//! The two loops that are measured, compiled once for each instruction set and picked at run time.

#![allow(unsafe_code)]

use std::hint::black_box;

/// [`read`] takes its data in pieces of this many bytes.
pub const CHUNK: usize = 512;

/// Rounds of one call of [`multiply_add`].
const ROUNDS: usize = 20_000;

/// A function that multiplies and adds on `$chains` independent vectors: enough to hide the latency,
/// few enough to stay in registers. Intrinsics, because a sum that the optimiser spills or calls libm
/// for measures something else. Returns the operations done.
macro_rules! chains {
    ($name:ident, $feature:literal, $lanes:literal, $chains:literal, $splat:path, $fma:path) => {
        #[target_feature(enable = $feature)]
        #[allow(unused_unsafe)] // Some of the intrinsics are safe inside such a function.
        fn $name() -> f64 {
            // SAFETY: the instructions are enabled here.
            unsafe {
                let (factor, term) = ($splat(black_box(0.5)), $splat(black_box(1.0)));
                let mut sums = [$splat(black_box(0.0)); $chains];
                for _ in 0..ROUNDS {
                    for sum in &mut sums {
                        *sum = $fma(*sum, factor, term);
                    }
                }
                black_box(sums);
            }
            (2 * $lanes * $chains * ROUNDS) as f64
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;
#[cfg(target_arch = "x86_64")]
chains!(
    fma_avx512,
    "avx512f",
    16,
    10,
    arch::_mm512_set1_ps,
    arch::_mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
chains!(
    fma_avx2,
    "avx2,fma",
    8,
    12,
    arch::_mm256_set1_ps,
    arch::_mm256_fmadd_ps
);

/// `a * b + c`, with the multiplied operands first as on x86.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon_fma(
    a: std::arch::aarch64::float32x4_t,
    b: std::arch::aarch64::float32x4_t,
    c: std::arch::aarch64::float32x4_t,
) -> std::arch::aarch64::float32x4_t {
    std::arch::aarch64::vfmaq_f32(c, a, b)
}
#[cfg(target_arch = "aarch64")]
chains!(
    fma_neon,
    "neon",
    4,
    16,
    std::arch::aarch64::vdupq_n_f32,
    neon_fma
);

/// The same in plain code, where no instruction set is known.
fn fma_portable() -> f64 {
    let mut sums = black_box([0.0f32; 16]);
    for _ in 0..ROUNDS {
        for s in &mut sums {
            *s = *s * 0.5 + 1.0;
        }
    }
    black_box(sums);
    (2 * 16 * ROUNDS) as f64
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
pub fn multiply_add() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions are there.
            return unsafe { fma_avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the instructions are there.
            return unsafe { fma_avx2() };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the instructions are there.
        return unsafe { fma_neon() };
    }
    fma_portable()
}

/// Reads `data`, whole [`CHUNK`]s of it, `passes` times with the widest vectors here.
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
