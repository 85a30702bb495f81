//! AVX-512 (F, VL, BW, DQ): a vector is one `zmm`.

use crate::kernels::cpu::simd::{Element, Kind, LANES, PAIR_OF, Simd, TWO_OF_FOUR, Task, first};
use std::arch::x86_64::*;

/// The AVX-512 token; with `VBMI2` it has those instructions too, with `BF16` those and VNNI as well.
#[derive(Clone, Copy)]
pub struct Avx512<const VBMI2: bool, const BF16: bool>;

/// The lanes that half bytes name, by their lower three bits: the fourth follows from them.
static LANES_OF: [i64; 8] = {
    let mut table = [0; 8];
    let mut bits = 0;
    while bits < 16u8 {
        if bits.count_ones() == 2 {
            let [a, b] = TWO_OF_FOUR[bits as usize];
            table[(bits & 7) as usize] = a as i64 | (b as i64) << 32;
        }
        bits += 1;
    }
    table
};

/// The same as words, by half bytes.
static WORDS_OF: [i32; 16] = {
    let mut table = [0; 16];
    let mut bits = 0;
    while bits < 16 {
        let [a, b] = TWO_OF_FOUR[bits];
        table[bits] = a as i32 | (b as i32) << 16;
        bits += 1;
    }
    table
};

// SAFETY: one intrinsic each, with the memory behaviour that `Simd` asks for; masked-off lanes
// are neither read nor written.
unsafe impl<const VBMI2: bool, const BF16: bool> Simd for Avx512<VBMI2, BF16> {
    type V = __m512;
    type Places = __m512i;
    const MR: usize = 6;
    const NV: usize = 4;
    const MANY: bool = true;
    const SELECT: usize = 4;
    const PAIRS: bool = VBMI2;
    const DOT: bool = VBMI2 && BF16;
    const BYTES: bool = VBMI2 && BF16;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        unsafe {
            match (VBMI2, BF16) {
                (_, true) => call_bf16::<Self, T>(task),
                (true, _) => call_vbmi2::<Self, T>(task),
                _ => call::<Self, T>(task),
            }
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_mask(p: *const f32, mask: u16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(mask, p) }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32, n: usize) -> __m512 {
        unsafe {
            let read = (2 * n.min(LANES)).saturating_sub(1);
            let low = Self::load_mask(p, first(read));
            let high = Self::load_mask(p.wrapping_add(LANES), first(read.saturating_sub(LANES)));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_maskz_permutex2var_ps(first(n), low, even, high)
        }
    }
    #[inline(always)]
    unsafe fn split(low: __m512, high: __m512) -> (__m512, __m512) {
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
            (
                _mm512_permutex2var_ps(low, even, high),
                _mm512_permutex2var_ps(low, odd, high),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_mask(p: *mut f32, v: __m512, mask: u16) {
        unsafe { _mm512_mask_storeu_ps(p, mask, v) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn where_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    unsafe fn scale(v: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    unsafe fn sum4(v: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let fold = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let low = _mm512_castps_pd(fold(v[0], v[1]));
            let high = _mm512_castps_pd(fold(v[2], v[3]));
            let (a, b) = (
                _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)),
            );
            // Every quarter holds a part of the four sums.
            let quarters = _mm512_add_ps(a, b);
            let halves = _mm256_add_ps(
                _mm512_castps512_ps256(quarters),
                _mm512_extractf32x8_ps::<1>(quarters),
            );
            let sums = _mm_add_ps(
                _mm256_castps256_ps128(halves),
                _mm256_extractf128_ps::<1>(halves),
            );
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }
    #[inline(always)]
    unsafe fn widen<E: Element>(p: *const u8) -> __m512 {
        unsafe {
            match E::KIND {
                Kind::F32 => _mm512_loadu_ps(p.cast()),
                Kind::I8 => bytes16(_mm_loadu_si128(p.cast())),
                _ => widen16::<E>(_mm256_loadu_si256(p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn widen_first<E: Element>(p: *const u8, n: usize) -> __m512 {
        unsafe {
            match E::KIND {
                Kind::F32 => _mm512_maskz_loadu_ps(first(n), p.cast()),
                Kind::I8 => bytes16(_mm_maskz_loadu_epi8(first(n), p.cast())),
                _ => widen16::<E>(_mm256_maskz_loadu_epi16(first(n), p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn expand<E: Element>(p: *const u8, mask: u16) -> __m512 {
        unsafe {
            let packed = in_register(Self::widen::<E>(p));
            _mm512_maskz_expand_ps(mask, packed)
        }
    }
    #[inline(always)]
    unsafe fn expand_pairs(p: *const u8, mask: u32) -> (__m512, __m512) {
        unsafe {
            let packed = in_register(_mm512_loadu_ps(p.cast()));
            let words = _mm512_maskz_expand_epi16(mask, _mm512_castps_si512(packed));
            let even = _mm512_slli_epi32::<16>(words);
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn places(mask: u32) -> __m512i {
        unsafe {
            let shifts = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
            let groups = _mm512_srlv_epi64(_mm512_set1_epi32(mask as i32), shifts);
            let table = _mm512_loadu_si512(LANES_OF.as_ptr().cast());
            let lanes = _mm512_permutexvar_epi64(groups, table);
            let first = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
            _mm512_or_si512(lanes, first)
        }
    }
    #[inline(always)]
    unsafe fn select(x: *const f32, places: __m512i) -> __m512 {
        unsafe {
            let (low, high) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(LANES)));
            _mm512_permutex2var_ps(low, places, high)
        }
    }
    #[inline(always)]
    unsafe fn store_places(places: __m512i, first: u32, out: *mut u32) {
        unsafe {
            let places = _mm512_add_epi32(places, _mm512_set1_epi32(first as i32));
            _mm512_storeu_si512(out.cast(), places);
        }
    }
    #[inline(always)]
    unsafe fn word_places(mask: u64) -> __m512 {
        unsafe {
            let words = of_groups(mask, &WORDS_OF);
            let first = _mm512_or_si512(group_bits(), _mm512_slli_epi32::<16>(group_bits()));
            _mm512_castsi512_ps(_mm512_or_si512(words, first))
        }
    }
    #[inline(always)]
    unsafe fn word_pairs(low: __m512, high: __m512) -> [__m512; 6] {
        unsafe {
            let (low, high) = (_mm512_castps_si512(low), _mm512_castps_si512(high));
            let even = _mm512_set1_epi32(0xffff);
            let (a, b) = (_mm512_and_si512(low, even), _mm512_srli_epi32::<16>(low));
            let (c, d) = (
                _mm512_slli_epi32::<16>(high),
                _mm512_andnot_si512(even, high),
            );
            let pair = |a, b| _mm512_castsi512_ps(_mm512_or_si512(a, b));
            [
                _mm512_castsi512_ps(low),
                pair(a, c),
                pair(b, c),
                pair(a, d),
                pair(b, d),
                _mm512_castsi512_ps(high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(mask: u64, first: u32, out: *mut u32) {
        unsafe {
            let pairs = of_groups(mask, &PAIR_OF);
            let six =
                _mm512_setr_epi32(0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78, 84, 90);
            let first = _mm512_add_epi32(six, _mm512_set1_epi32(first as i32));
            _mm512_storeu_si512(out.cast(), _mm512_add_epi32(pairs, first));
        }
    }
    #[inline(always)]
    unsafe fn select_words(x: *const f32, places: __m512) -> __m512 {
        unsafe {
            let load = |x: *const f32| _mm512_castps_si512(_mm512_loadu_ps(x));
            let places = _mm512_castps_si512(places);
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(
                load(x),
                places,
                load(x.add(LANES)),
            ))
        }
    }
    #[inline(always)]
    unsafe fn lookup<const N: usize>(x: *const f32, indices: *const u8) -> [__m512; N] {
        unsafe {
            let indices = _mm512_cvtepu8_epi32(_mm_loadu_si128(indices.cast()));
            let mut found = [_mm512_setzero_ps(); N];
            for (n, found) in found.iter_mut().enumerate() {
                let vector = |w: usize| _mm512_loadu_ps(x.add((w * N + n) * LANES));
                *found = _mm512_permutex2var_ps(vector(0), indices, vector(1));
            }
            found
        }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        unsafe {
            // Half of the last kept bit, less one where that bit is 0: ties go to even. NaN stays.
            let x = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
            let cut = _mm512_and_si512(up, _mm512_set1_epi32(!0xffff));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_mov_ps(_mm512_castsi512_ps(cut), nan, v)
        }
    }
    #[inline(always)]
    unsafe fn round_words<E: Element>(low: __m512, high: __m512) -> __m512 {
        unsafe { bits(_mm512_cvtne2ps_pbh(high, low)) }
    }
    #[inline(always)]
    unsafe fn words(p: *const u8, n: usize) -> __m512 {
        unsafe {
            match n {
                32 => _mm512_loadu_ps(p.cast()),
                _ => _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1 << n) - 1, p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn expand_words(p: *const u8, mask: u32) -> __m512 {
        unsafe {
            let packed = in_register(_mm512_loadu_ps(p.cast()));
            let words = _mm512_maskz_expand_epi16(mask, _mm512_castps_si512(packed));
            _mm512_castsi512_ps(words)
        }
    }
    #[inline(always)]
    unsafe fn dot<E: Element>(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_dpbf16_ps(sum, pairs(a), pairs(b)) }
    }
    #[inline(always)]
    unsafe fn expand_bytes(p: *const u8, mask: u64) -> __m512 {
        unsafe {
            let packed = in_register(_mm512_loadu_ps(p.cast()));
            let bytes = _mm512_maskz_expand_epi8(mask, _mm512_castps_si512(packed));
            _mm512_castsi512_ps(bytes)
        }
    }
    #[inline(always)]
    unsafe fn round_bytes(p: *const f32, n: usize, group: usize) -> (__m512, u64, [f32; 2]) {
        unsafe {
            let (mut x, mut size) = ([_mm512_setzero_ps(); 4], [_mm512_setzero_si512(); 4]);
            for i in 0..4 {
                let left = n.saturating_sub(i * LANES);
                x[i] = Self::load_mask(p.wrapping_add(i * LANES), first(left));
                size[i] = _mm512_castps_si512(_mm512_abs_ps(x[i]));
            }
            // As bits NaN is above infinity, so that it stays.
            let low = _mm512_reduce_max_epi32(_mm512_max_epi32(size[0], size[1]));
            let high = _mm512_reduce_max_epi32(_mm512_max_epi32(size[2], size[3]));
            let largest = match group {
                32 => [low, high],
                _ => [low.max(high); 2],
            };
            let largest = largest.map(|bits| f32::from_bits(bits as u32));
            let inverse = |m: f32| if m > 0.0 { 127.0 / m } else { 0.0 };
            let inverse = [inverse(largest[0]), inverse(largest[1])];
            let (mut bytes, mut negative) = (_mm512_setzero_si512(), 0);
            for i in (0..4).rev() {
                let factor = _mm512_set1_ps(inverse[i / 2]);
                let q = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], factor));
                negative = negative << 16 | u64::from(_mm512_movepi32_mask(q));
                let narrow = _mm512_cvtepi32_epi8(_mm512_abs_epi32(q));
                // Quarters move up by one; this one becomes the lowest.
                bytes = _mm512_alignr_epi64::<6>(bytes, bytes);
                bytes = _mm512_inserti32x4::<0>(bytes, narrow);
            }
            let scales = [largest[0] / 127.0, largest[1] / 127.0];
            (_mm512_castsi512_ps(bytes), negative, scales)
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(w: __m512, x: __m512, negative: u64) -> __m512 {
        unsafe {
            let (w, zero) = (_mm512_castps_si512(w), _mm512_setzero_si512());
            let w = _mm512_mask_sub_epi8(w, negative, zero, w);
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero, _mm512_castps_si512(x), w))
        }
    }
    #[inline(always)]
    unsafe fn pick(scales: __m512, block: usize, group: usize) -> __m512 {
        unsafe {
            let index = match group {
                32 => {
                    let halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
                    _mm512_add_epi32(halves, _mm512_set1_epi32(2 * block as i32))
                }
                _ => _mm512_set1_epi32(block as i32),
            };
            _mm512_permutexvar_ps(index, scales)
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: [__m512; LANES]) -> [__m512; LANES] {
        unsafe {
            let mut a = v;
            // Pairs of lanes, then of 64-bit lanes, then 128-bit quarters twice.
            for i in (0..LANES).step_by(2) {
                let (x, y) = (v[i], v[i + 1]);
                (a[i], a[i + 1]) = (_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
            }
            let mut b = a;
            for i in (0..LANES).step_by(4) {
                let pair = |x: __m512, y: __m512| {
                    let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
                    (
                        _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)),
                    )
                };
                (b[i], b[i + 1]) = pair(a[i], a[i + 2]);
                (b[i + 2], b[i + 3]) = pair(a[i + 1], a[i + 3]);
            }
            // `b[4 * g + j]` holds column `4 * q + j` of rows `4 * g..` in quarter `q`.
            let mut out = v;
            for j in 0..4 {
                let (g0, g1, g2, g3) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
                let low01 = _mm512_shuffle_f32x4(g0, g1, 0b01_00_01_00);
                let high01 = _mm512_shuffle_f32x4(g0, g1, 0b11_10_11_10);
                let low23 = _mm512_shuffle_f32x4(g2, g3, 0b01_00_01_00);
                let high23 = _mm512_shuffle_f32x4(g2, g3, 0b11_10_11_10);
                out[j] = _mm512_shuffle_f32x4(low01, low23, 0b10_00_10_00);
                out[4 + j] = _mm512_shuffle_f32x4(low01, low23, 0b11_01_11_01);
                out[8 + j] = _mm512_shuffle_f32x4(high01, high23, 0b10_00_10_00);
                out[12 + j] = _mm512_shuffle_f32x4(high01, high23, 0b11_01_11_01);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// The same value, which the compiler cannot take from memory again: `vexpandps` of a memory operand
/// takes several times as long as of a register (Zen 4 and 5).
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn in_register(mut v: __m512) -> __m512 {
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags));
    }
    v
}

/// The first bits of sixteen half bytes, which are the first words of their groups.
#[inline(always)]
unsafe fn group_bits() -> __m512i {
    // SAFETY: the caller runs with AVX-512F.
    unsafe { _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60) }
}

/// For each half byte of `mask` its entry in a table.
#[inline(always)]
unsafe fn of_groups(mask: u64, table: &[i32; 16]) -> __m512i {
    // SAFETY: the caller runs with AVX-512F and VBMI. Of a byte's upper half nothing is used.
    unsafe {
        let groups = _mm512_multishift_epi64_epi8(group_bits(), _mm512_set1_epi64(mask as i64));
        _mm512_permutexvar_epi32(groups, _mm512_loadu_si512(table.as_ptr().cast()))
    }
}

/// Sixteen signed bytes as f32.
#[inline(always)]
unsafe fn bytes16(v: __m128i) -> __m512 {
    // SAFETY: the caller runs with AVX-512F.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)) }
}

/// The same bits as pairs of bfloat16.
#[inline(always)]
fn pairs(v: __m512) -> __m512bh {
    // SAFETY: 64 bytes of which every pattern is valid.
    unsafe { std::mem::transmute(v) }
}

/// The same bits as sixteen f32.
#[inline(always)]
fn bits(v: __m512bh) -> __m512 {
    // SAFETY: as `pairs`.
    unsafe { std::mem::transmute(v) }
}

#[inline(always)]
unsafe fn widen16<E: Element>(v: __m256i) -> __m512 {
    // SAFETY: the caller runs with AVX-512F.
    unsafe {
        match E::KIND {
            Kind::F16 => _mm512_cvtph_ps(v),
            _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))),
        }
    }
}

/// Enables the features for a task.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,popcnt,bmi1,bmi2")]
#[inline(never)]
unsafe fn call<S: Simd, T: Task>(task: T) -> T::Output {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { task.run::<S>() }
}

/// The same with VBMI and VBMI2.
#[target_feature(
    enable = "avx512vbmi,avx512vbmi2,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,popcnt,bmi1,bmi2"
)]
#[inline(never)]
unsafe fn call_vbmi2<S: Simd, T: Task>(task: T) -> T::Output {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { task.run::<S>() }
}

/// The same with VNNI and BF16.
#[target_feature(
    enable = "avx512bf16,avx512vnni,avx512vbmi,avx512vbmi2,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,popcnt,bmi1,bmi2"
)]
#[inline(never)]
unsafe fn call_bf16<S: Simd, T: Task>(task: T) -> T::Output {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { task.run::<S>() }
}
