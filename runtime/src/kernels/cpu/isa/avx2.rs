//! AVX2 with FMA and F16C: a vector is two `ymm`.

use crate::kernels::cpu::simd::{Element, Kind, LANES, Simd, TWO_OF_FOUR, Task, first};
use std::arch::x86_64::*;

/// The AVX2+FMA+F16C token.
#[derive(Clone, Copy)]
pub struct Avx2;

#[inline(always)]
unsafe fn lane_mask(bits: u8) -> __m256i {
    // SAFETY: the caller runs with AVX2.
    unsafe {
        let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let bits = _mm256_set1_epi32(i32::from(bits));
        _mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit)
    }
}

/// Lane indices that expand a packed prefix to the set bits of a byte.
static EXPAND: [[i32; 8]; 256] = {
    let mut table = [[0i32; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if bits >> lane & 1 == 1 {
                table[bits][lane] = next;
                next += 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
};

/// Lane indices of the two of each four lanes that a byte names, twice.
static SELECT: [[i32; 8]; 256] = {
    let mut table = [[0i32; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut lane = 0;
        while lane < 8 {
            let group = lane / 2 % 2;
            let two = TWO_OF_FOUR[bits >> (4 * group) & 15];
            table[bits][lane] = (4 * group) as i32 + two[lane % 2] as i32;
            lane += 1;
        }
        bits += 1;
    }
    table
};

#[inline(always)]
unsafe fn widen8<E: Element>(p: *const u8) -> __m256 {
    // SAFETY: as `Simd::widen`, for eight lanes.
    unsafe {
        match E::KIND {
            Kind::F32 => _mm256_loadu_ps(p.cast()),
            Kind::I8 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
            Kind::F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            Kind::Bf16 => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
    }
}

#[inline(always)]
unsafe fn expand8<E: Element>(p: *const u8, bits: u8) -> __m256 {
    // SAFETY: as `Simd::expand`, for eight lanes.
    unsafe {
        let index = _mm256_loadu_si256(EXPAND[bits as usize].as_ptr().cast());
        let spread = _mm256_permutevar8x32_ps(widen8::<E>(p), index);
        _mm256_and_ps(spread, _mm256_castsi256_ps(lane_mask(bits)))
    }
}

#[inline(always)]
unsafe fn transpose8(v: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller runs with AVX2.
    unsafe {
        let mut a = v;
        for i in (0..8).step_by(2) {
            a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
            a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
        }
        let mut b = a;
        for i in (0..8).step_by(4) {
            b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0b01_00_01_00);
            b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0b11_10_11_10);
            b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0b01_00_01_00);
            b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0b11_10_11_10);
        }
        let mut out = v;
        for j in 0..4 {
            out[j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
            out[4 + j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
        }
        out
    }
}

#[inline(always)]
unsafe fn even8(p: *const f32, n: usize) -> __m256 {
    // SAFETY: as `Simd::load_even`, for eight lanes.
    unsafe {
        let read = (2 * n.min(8)).saturating_sub(1);
        let bits = first(read);
        let low = _mm256_maskload_ps(p, lane_mask(bits as u8));
        let high = _mm256_maskload_ps(p.wrapping_add(8), lane_mask((bits >> 8) as u8));
        let pairs = _mm256_shuffle_ps(low, high, 0b10_00_10_00);
        let ordered = _mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0b11_01_10_00);
        let keep = lane_mask(first(n.min(8)) as u8);
        _mm256_and_ps(_mm256_castpd_ps(ordered), _mm256_castsi256_ps(keep))
    }
}

/// Where elements of a column lie among those of `N` that take turns by vectors.
#[inline(always)]
unsafe fn places<const N: usize>(indices: __m128i) -> __m256i {
    // SAFETY: the caller runs with AVX2.
    unsafe {
        let indices = _mm256_cvtepu8_epi32(indices);
        let vectors = _mm256_srli_epi32::<4>(indices);
        let step = _mm256_set1_epi32(((N - 1) * LANES) as i32);
        _mm256_add_epi32(indices, _mm256_mullo_epi32(vectors, step))
    }
}

#[inline(always)]
unsafe fn scale8(v: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller runs with AVX2.
    unsafe {
        // Two factors, so that neither leaves the range of normal numbers.
        let (n, bias) = (_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        let half = _mm256_srai_epi32(n, 1);
        let rest = _mm256_sub_epi32(n, half);
        let low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
        let high = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
        let v = _mm256_mul_ps(v, _mm256_castsi256_ps(low));
        _mm256_mul_ps(v, _mm256_castsi256_ps(high))
    }
}

type V = (__m256, __m256);

// SAFETY: pairs of intrinsics with the memory behaviour that `Simd` asks for; masked-off lanes
// are neither read nor written.
unsafe impl Simd for Avx2 {
    type V = V;
    type Places = [__m256i; 4];
    const MR: usize = 6;
    const NV: usize = 1;
    const MANY: bool = false;
    const SELECT: usize = 8;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        unsafe { call::<Self, T>(task) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_mask(p: *const f32, mask: u16) -> V {
        unsafe {
            (
                _mm256_maskload_ps(p, lane_mask(mask as u8)),
                _mm256_maskload_ps(p.wrapping_add(8), lane_mask((mask >> 8) as u8)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32, n: usize) -> V {
        unsafe {
            let high = even8(p.wrapping_add(LANES), n.saturating_sub(8));
            (even8(p, n), high)
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn store_mask(p: *mut f32, v: V, mask: u16) {
        unsafe {
            _mm256_maskstore_ps(p, lane_mask(mask as u8), v.0);
            _mm256_maskstore_ps(p.wrapping_add(8), lane_mask((mask >> 8) as u8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        unsafe {
            (
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn where_less(a: V, b: V, x: V, y: V) -> V {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1);
            (
                _mm256_blendv_ps(y.0, x.0, low),
                _mm256_blendv_ps(y.1, x.1, high),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale(v: V, n: V) -> V {
        unsafe { (scale8(v.0, n.0), scale8(v.1, n.1)) }
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(v.0, v.1);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps(eight, 1),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn widen<E: Element>(p: *const u8) -> V {
        unsafe { (widen8::<E>(p), widen8::<E>(p.add(8 * E::SIZE))) }
    }
    #[inline(always)]
    unsafe fn widen_first<E: Element>(p: *const u8, n: usize) -> V {
        unsafe {
            if E::KIND == Kind::F32 {
                return Self::load_mask(p.cast(), first(n));
            }
            let mut copy = [0u16; LANES];
            std::ptr::copy_nonoverlapping(p, copy.as_mut_ptr().cast(), n.min(LANES) * E::SIZE);
            Self::widen::<E>(copy.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn expand<E: Element>(p: *const u8, mask: u16) -> V {
        unsafe {
            let low = mask as u8;
            let rest = p.add(low.count_ones() as usize * E::SIZE);
            (expand8::<E>(p, low), expand8::<E>(rest, (mask >> 8) as u8))
        }
    }
    #[inline(always)]
    unsafe fn places(mask: u32) -> [__m256i; 4] {
        let row = |byte: u8| SELECT[usize::from(byte)].as_ptr();
        mask.to_le_bytes()
            .map(|byte| unsafe { _mm256_loadu_si256(row(byte).cast()) })
    }
    #[inline(always)]
    unsafe fn select(x: *const f32, places: [__m256i; 4]) -> V {
        unsafe {
            let two = |i: usize| {
                let one =
                    |i: usize| _mm256_permutevar8x32_ps(_mm256_loadu_ps(x.add(8 * i)), places[i]);
                _mm256_blend_ps::<0xf0>(one(i), one(i + 1))
            };
            (two(0), two(2))
        }
    }
    #[inline(always)]
    unsafe fn store_places(places: [__m256i; 4], first: u32, out: *mut u32) {
        for (i, places) in places.into_iter().enumerate() {
            unsafe {
                let first = _mm_set1_epi32((first + 8 * i as u32) as i32);
                let four = _mm_add_epi32(_mm256_castsi256_si128(places), first);
                _mm_storeu_si128(out.add(4 * i).cast(), four);
            }
        }
    }
    #[inline(always)]
    unsafe fn lookup<const N: usize>(x: *const f32, indices: *const u8) -> [V; N] {
        unsafe {
            let low = places::<N>(_mm_loadl_epi64(indices.cast()));
            let high = places::<N>(_mm_loadl_epi64(indices.add(8).cast()));
            let mut found = [Self::splat(0.0); N];
            for (n, found) in found.iter_mut().enumerate() {
                let x = x.add(n * LANES);
                found.0 = _mm256_i32gather_ps::<4>(x, low);
                found.1 = _mm256_i32gather_ps::<4>(x, high);
            }
            found
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: [V; LANES]) -> [V; LANES] {
        unsafe {
            let top_left = transpose8(std::array::from_fn(|i| v[i].0));
            let top_right = transpose8(std::array::from_fn(|i| v[i].1));
            let bottom_left = transpose8(std::array::from_fn(|i| v[8 + i].0));
            let bottom_right = transpose8(std::array::from_fn(|i| v[8 + i].1));
            std::array::from_fn(|j| match j {
                0..8 => (top_left[j], bottom_left[j]),
                _ => (top_right[j - 8], bottom_right[j - 8]),
            })
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// Enables the features for a task.
#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2")]
#[inline(never)]
unsafe fn call<S: Simd, T: Task>(task: T) -> T::Output {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { task.run::<S>() }
}
