//! AVX-512 (F, VL, BW, DQ): a vector is one `zmm`.

use crate::kernels::cpu::simd::{LANES, Simd, first};
use std::arch::x86_64::*;

/// The AVX-512 token.
#[derive(Clone, Copy)]
pub struct Avx512;

// SAFETY: one intrinsic each, with the memory behaviour that `Simd` asks for; masked-off lanes
// are neither read nor written.
unsafe impl Simd for Avx512 {
    type V = __m512;
    const MR: usize = 6;
    const NV: usize = 4;

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
    unsafe fn expand(p: *const f32, mask: u16) -> __m512 {
        // The register form: the memory form of `vexpandps` is slow on Zen 4.
        unsafe {
            let packed = Self::load_mask(p, first(mask.count_ones() as usize));
            _mm512_maskz_expand_ps(mask, packed)
        }
    }
}
