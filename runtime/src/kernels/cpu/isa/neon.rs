//! NEON, the baseline of 64-bit ARM: a vector is four quads. With what later CPUs add, inputs that are rounded as
//! weights are (`products`) are multiplied.

mod products;
#[cfg(test)]
mod tests;

use crate::kernels::cpu::simd::{Element, Kind, LANES, Simd, TWO_OF_FOUR, Task, first};
use std::arch::aarch64::*;
use std::arch::asm;

/// The NEON token; with `ROUNDED` that of kernels whose inputs are rounded, on a CPU that multiplies them.
#[derive(Clone, Copy)]
pub struct Neon<const ROUNDED: bool>;

type V = float32x4x4_t;

/// A table that loads do not split over cache lines.
#[repr(align(64))]
struct Table<T>(T);

/// Bytes that expand a packed prefix of 16-bit values to the set bits of a byte; 255 gives 0.
static WORDS: Table<[[u8; 16]; 256]> = Table(spread::<8, 256>());

/// Bytes that expand a packed prefix of 32-bit values to the set bits of four.
static QUADS: Table<[[u8; 16]; 16]> = Table(spread::<4, 16>());

/// Bytes of the two of each four f32 that a byte names, of eight.
static SELECT: Table<[[u8; 16]; 256]> = Table(two_of_four::<4, 16>());

/// Set bits of a byte.
static COUNT: Table<[u8; 256]> = Table({
    let mut table = [0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = bits.count_ones() as u8;
        bits += 1;
    }
    table
});

const fn spread<const N: usize, const M: usize>() -> [[u8; 16]; M] {
    let size = 16 / N;
    let mut table = [[255; 16]; M];
    let mut bits = 0;
    while bits < M {
        let (mut lane, mut next) = (0, 0);
        while lane < N {
            if bits >> lane & 1 == 1 {
                let mut byte = 0;
                while byte < size {
                    table[bits][lane * size + byte] = (next * size + byte) as u8;
                    byte += 1;
                }
                next += 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
}

/// Of eight elements of `SIZE` bytes the `BYTES` of the two of each four that a byte names.
const fn two_of_four<const SIZE: usize, const BYTES: usize>() -> [[u8; BYTES]; 256] {
    let mut table = [[0; BYTES]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut byte = 0;
        while byte < BYTES {
            let (group, place) = (byte / (2 * SIZE), byte / SIZE % 2);
            let from = 4 * group + TWO_OF_FOUR[bits >> (4 * group) & 15][place] as usize;
            table[bits][byte] = (SIZE * from + byte % SIZE) as u8;
            byte += 1;
        }
        bits += 1;
    }
    table
}

#[inline(always)]
fn count(byte: u8) -> usize {
    usize::from(COUNT.0[usize::from(byte)])
}

#[inline(always)]
fn map(a: V, f: impl Fn(float32x4_t) -> float32x4_t) -> V {
    float32x4x4_t(f(a.0), f(a.1), f(a.2), f(a.3))
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> V {
    float32x4x4_t(f(a.0, b.0), f(a.1, b.1), f(a.2, b.2), f(a.3, b.3))
}

/// The sums of lanes of the same place in each quad.
#[inline(always)]
unsafe fn fold(v: V) -> float32x4_t {
    // SAFETY: the caller runs with NEON.
    unsafe { vaddq_f32(vaddq_f32(v.0, v.1), vaddq_f32(v.2, v.3)) }
}

/// Eight 16-bit values as f32.
#[inline(always)]
unsafe fn halves<E: Element>(v: uint16x8_t) -> (float32x4_t, float32x4_t) {
    // SAFETY: the caller runs with NEON. The conversions may raise flags, so those are not preserved.
    unsafe {
        match E::KIND {
            Kind::F16 => {
                let (low, high);
                asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) low, in(vreg) v, options(pure, nomem, nostack));
                asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) high, in(vreg) v, options(pure, nomem, nostack));
                (low, high)
            }
            _ => {
                let zero = vdupq_n_u16(0);
                let (low, high) = (vzip1q_u16(zero, v), vzip2q_u16(zero, v));
                (vreinterpretq_f32_u16(low), vreinterpretq_f32_u16(high))
            }
        }
    }
}

/// Sixteen 16-bit values as f32.
#[inline(always)]
unsafe fn wide<E: Element>(low: uint16x8_t, high: uint16x8_t) -> V {
    // SAFETY: the caller runs with NEON.
    unsafe {
        let (a, b) = halves::<E>(low);
        let (c, d) = halves::<E>(high);
        float32x4x4_t(a, b, c, d)
    }
}

/// The lanes of four that are in `bits`; others are 0.
#[inline(always)]
unsafe fn load_quad(p: *const f32, bits: u16) -> float32x4_t {
    // SAFETY: the caller gives readable elements where a bit is set.
    unsafe {
        let zero = vdupq_n_f32(0.0);
        match bits & 15 {
            0 => zero,
            15 => vld1q_f32(p),
            1 => vld1q_lane_f32::<0>(p, zero),
            3 => vcombine_f32(vld1_f32(p), vdup_n_f32(0.0)),
            7 => vld1q_lane_f32::<2>(p.add(2), vcombine_f32(vld1_f32(p), vdup_n_f32(0.0))),
            bits => {
                let mut v = zero;
                if bits & 1 != 0 {
                    v = vld1q_lane_f32::<0>(p, v);
                }
                if bits & 2 != 0 {
                    v = vld1q_lane_f32::<1>(p.wrapping_add(1), v);
                }
                if bits & 4 != 0 {
                    v = vld1q_lane_f32::<2>(p.wrapping_add(2), v);
                }
                if bits & 8 != 0 {
                    v = vld1q_lane_f32::<3>(p.wrapping_add(3), v);
                }
                v
            }
        }
    }
}

/// Writes the lanes of four that are in `bits`.
#[inline(always)]
unsafe fn store_quad(p: *mut f32, v: float32x4_t, bits: u16) {
    // SAFETY: the caller gives writable elements where a bit is set.
    unsafe {
        match bits & 15 {
            0 => {}
            15 => vst1q_f32(p, v),
            1 => vst1q_lane_f32::<0>(p, v),
            3 => vst1_f32(p, vget_low_f32(v)),
            7 => {
                vst1_f32(p, vget_low_f32(v));
                vst1q_lane_f32::<2>(p.add(2), v);
            }
            bits => {
                if bits & 1 != 0 {
                    vst1q_lane_f32::<0>(p, v);
                }
                if bits & 2 != 0 {
                    vst1q_lane_f32::<1>(p.wrapping_add(1), v);
                }
                if bits & 4 != 0 {
                    vst1q_lane_f32::<2>(p.wrapping_add(2), v);
                }
                if bits & 8 != 0 {
                    vst1q_lane_f32::<3>(p.wrapping_add(3), v);
                }
            }
        }
    }
}

/// [`Simd::load_mask`] of any mask; a call, since it is long and its uses are many. The C convention
/// passes vectors in registers, here and below.
#[allow(improper_ctypes_definitions)] // Only called from here.
#[inline(never)]
unsafe extern "C" fn load_lanes(p: *const f32, mask: u16) -> V {
    // SAFETY: the caller's promise; the address of a quad without lanes may be anything.
    unsafe {
        float32x4x4_t(
            load_quad(p, mask),
            load_quad(p.wrapping_add(4), mask >> 4),
            load_quad(p.wrapping_add(8), mask >> 8),
            load_quad(p.wrapping_add(12), mask >> 12),
        )
    }
}

/// [`Simd::store_mask`] of any mask.
#[allow(improper_ctypes_definitions)] // Only called from here.
#[inline(never)]
unsafe extern "C" fn store_lanes(p: *mut f32, v: V, mask: u16) {
    // SAFETY: as `load_lanes`.
    unsafe {
        store_quad(p, v.0, mask);
        store_quad(p.wrapping_add(4), v.1, mask >> 4);
        store_quad(p.wrapping_add(8), v.2, mask >> 8);
        store_quad(p.wrapping_add(12), v.3, mask >> 12);
    }
}

/// [`Simd::load_even`] of fewer than all lanes.
#[allow(improper_ctypes_definitions)] // Only called from here.
#[inline(never)]
unsafe extern "C" fn load_even_first(p: *const f32, n: usize) -> V {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate().take(n) {
        // SAFETY: the caller gives every second of `2 * n - 1` elements.
        *lane = unsafe { p.add(2 * i).read_unaligned() };
    }
    // SAFETY: sixteen lanes.
    unsafe { Neon::<false>::load(lanes.as_ptr()) }
}

/// The first `n < 16` 16-bit values; others are 0 and not read.
#[allow(improper_ctypes_definitions)] // Only called from here.
#[inline(never)]
unsafe extern "C" fn load_words(p: *const u8, n: usize) -> uint16x8x2_t {
    // SAFETY: the caller gives `n` values.
    unsafe {
        if n < 8 {
            return uint16x8x2_t(words(p, n), vdupq_n_u16(0));
        }
        uint16x8x2_t(vld1q_u16(p.cast()), words(p.add(16), n - 8))
    }
}

/// The first `n < 8` 16-bit values.
#[inline(always)]
unsafe fn words(p: *const u8, n: usize) -> uint16x8_t {
    // The last one to three values, from the lowest bits up.
    let tail = |p: *const u8| {
        let (mut v, mut at) = (0, 0);
        // SAFETY: the caller gives `n` values; `n % 4` of them are left at `p`.
        unsafe {
            if n & 2 != 0 {
                v = u64::from(p.cast::<u32>().read_unaligned());
                at = 2;
            }
            if n & 1 != 0 {
                v |= u64::from(p.add(2 * at).cast::<u16>().read_unaligned()) << (16 * at);
            }
        }
        v
    };
    let (low, high) = match n & 4 {
        0 => (tail(p), 0),
        // SAFETY: there are four values and perhaps more.
        _ => unsafe { (p.cast::<u64>().read_unaligned(), tail(p.add(8))) },
    };
    // SAFETY: the caller runs with NEON.
    unsafe { vcombine_u16(vcreate_u16(low), vcreate_u16(high)) }
}

/// 32 words as a vector.
#[inline(always)]
unsafe fn quads(v: [uint16x8x2_t; 2]) -> V {
    // SAFETY: the caller runs with NEON.
    unsafe {
        float32x4x4_t(
            vreinterpretq_f32_u16(v[0].0),
            vreinterpretq_f32_u16(v[0].1),
            vreinterpretq_f32_u16(v[1].0),
            vreinterpretq_f32_u16(v[1].1),
        )
    }
}

/// Lane `i` of `bits` is the next 16-bit value at `p`; others are 0. Reads eight.
#[inline(always)]
unsafe fn expand_words(p: *const u8, bits: u8) -> uint16x8_t {
    // SAFETY: the caller gives eight readable values.
    unsafe {
        let index = vld1q_u8(WORDS.0[usize::from(bits)].as_ptr());
        vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(p), index))
    }
}

/// Byte `i` of `bits` is the next one at `p`; others are 0. Reads eight.
#[inline(always)]
unsafe fn expand_bytes(p: *const u8, bits: u8) -> u64 {
    // SAFETY: the caller gives eight readable values.
    unsafe {
        // The table has pairs of bytes: twice where a value comes from, or what gives 0.
        let pairs = vld1q_u8(WORDS.0[usize::from(bits)].as_ptr());
        let index = vshr_n_u8::<1>(vuzp1_u8(vget_low_u8(pairs), vget_high_u8(pairs)));
        vget_lane_u64::<0>(vreinterpret_u64_u8(vtbl1_u8(vld1_u8(p), index)))
    }
}

/// Sixteen signed bytes as f32.
#[inline(always)]
unsafe fn bytes16(v: int8x16_t) -> V {
    // SAFETY: the caller runs with NEON.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v)));
        let four = |v| vcvtq_f32_s32(vmovl_s16(v));
        float32x4x4_t(
            four(vget_low_s16(low)),
            four(vget_high_s16(low)),
            four(vget_low_s16(high)),
            four(vget_high_s16(high)),
        )
    }
}

/// Lane `i` of `bits < 16` is the next f32 at `p`; others are 0. Reads four.
#[inline(always)]
unsafe fn expand_quad(p: *const u8, bits: u16) -> float32x4_t {
    // SAFETY: the caller gives four readable values.
    unsafe {
        let index = vld1q_u8(QUADS.0[usize::from(bits & 15)].as_ptr());
        vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(p), index))
    }
}

#[inline(always)]
unsafe fn transpose4(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller runs with NEON.
    unsafe {
        let pair = |a, b| {
            let (even, odd) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
            (vreinterpretq_f64_f32(even), vreinterpretq_f64_f32(odd))
        };
        let ((a, b), (c, d)) = (pair(v[0], v[1]), pair(v[2], v[3]));
        [
            vreinterpretq_f32_f64(vzip1q_f64(a, c)),
            vreinterpretq_f32_f64(vzip1q_f64(b, d)),
            vreinterpretq_f32_f64(vzip2q_f64(a, c)),
            vreinterpretq_f32_f64(vzip2q_f64(b, d)),
        ]
    }
}

// SAFETY: four intrinsics each, with the memory behaviour that `Simd` asks for; masked-off lanes
// are neither read nor written.
unsafe impl<const ROUNDED: bool> Simd for Neon<ROUNDED> {
    type V = V;
    type Places = [uint8x16_t; 4];
    // 24 quads of sums, four of activations and the weights: all 32 registers. Fewer rows load more
    // for each product, and more do not fit.
    const MR: usize = 6;
    const NV: usize = 1;
    const MANY: bool = false;
    const SELECT: usize = 2;
    const DOT: bool = ROUNDED;
    const HALVES: bool = ROUNDED;
    const BYTES: bool = ROUNDED;
    const ROUNDED: bool = ROUNDED;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        unsafe { call::<Self, T>(task) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        unsafe {
            let x = vdupq_n_f32(x);
            float32x4x4_t(x, x, x, x)
        }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        unsafe {
            float32x4x4_t(
                vld1q_f32(p),
                vld1q_f32(p.add(4)),
                vld1q_f32(p.add(8)),
                vld1q_f32(p.add(12)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_mask(p: *const f32, mask: u16) -> V {
        unsafe {
            match mask {
                u16::MAX => Self::load(p),
                _ => load_lanes(p, mask),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32, n: usize) -> V {
        // SAFETY: the last loads end at `p[30]`, and the one before them lies one element lower.
        unsafe {
            if n < LANES {
                return load_even_first(p, n);
            }
            let even = |p| vuzp1q_f32(vld1q_f32(p), vld1q_f32(p.add(4)));
            let last = vuzp2q_f32(vld1q_f32(p.add(23)), vld1q_f32(p.add(27)));
            float32x4x4_t(even(p), even(p.add(8)), even(p.add(16)), last)
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
            vst1q_f32(p.add(8), v.2);
            vst1q_f32(p.add(12), v.3);
        }
    }
    #[inline(always)]
    unsafe fn store_mask(p: *mut f32, v: V, mask: u16) {
        unsafe {
            match mask {
                u16::MAX => Self::store(p, v),
                _ => store_lanes(p, v, mask),
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        unsafe {
            float32x4x4_t(
                vfmaq_f32(c.0, a.0, b.0),
                vfmaq_f32(c.1, a.1, b.1),
                vfmaq_f32(c.2, a.2, b.2),
                vfmaq_f32(c.3, a.3, b.3),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vaddq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vmulq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vmaxq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vminq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vsubq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        unsafe { zip(a, b, |a, b| vdivq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn where_less(a: V, b: V, x: V, y: V) -> V {
        unsafe {
            float32x4x4_t(
                vbslq_f32(vcltq_f32(a.0, b.0), x.0, y.0),
                vbslq_f32(vcltq_f32(a.1, b.1), x.1, y.1),
                vbslq_f32(vcltq_f32(a.2, b.2), x.2, y.2),
                vbslq_f32(vcltq_f32(a.3, b.3), x.3, y.3),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale(v: V, n: V) -> V {
        unsafe {
            // Two factors, so that neither leaves the range of normal numbers.
            let power = |n| {
                let biased = vaddq_s32(n, vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            };
            zip(v, n, |v, n| {
                let n = vcvtq_s32_f32(n);
                let half = vshrq_n_s32::<1>(n);
                vmulq_f32(vmulq_f32(v, power(half)), power(vsubq_s32(n, half)))
            })
        }
    }
    #[inline(always)]
    unsafe fn largest(v: V) -> f32 {
        unsafe {
            // `fmaxnm` of a number and NaN is the number.
            let v = map(v, |v| vmaxnmq_f32(v, vdupq_n_f32(f32::NEG_INFINITY)));
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.0, v.1), vmaxq_f32(v.2, v.3)))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        unsafe { vaddvq_f32(fold(v)) }
    }
    #[inline(always)]
    unsafe fn sum4(v: [V; 4]) -> [f32; 4] {
        unsafe {
            let low = vpaddq_f32(fold(v[0]), fold(v[1]));
            let high = vpaddq_f32(fold(v[2]), fold(v[3]));
            let mut sums = [0.0; 4];
            vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(low, high));
            sums
        }
    }
    #[inline(always)]
    unsafe fn widen<E: Element>(p: *const u8) -> V {
        unsafe {
            match E::KIND {
                Kind::F32 => Self::load(p.cast()),
                Kind::I8 => bytes16(vld1q_s8(p.cast())),
                _ => wide::<E>(vld1q_u16(p.cast()), vld1q_u16(p.add(16).cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn widen_first<E: Element>(p: *const u8, n: usize) -> V {
        unsafe {
            match E::KIND {
                Kind::F32 => load_lanes(p.cast(), (1 << n) - 1),
                Kind::I8 => {
                    let mut copy = [0i8; LANES];
                    std::ptr::copy_nonoverlapping(p.cast(), copy.as_mut_ptr(), n.min(LANES));
                    bytes16(vld1q_s8(copy.as_ptr()))
                }
                _ => {
                    let words = load_words(p, n);
                    wide::<E>(words.0, words.1)
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn expand<E: Element>(p: *const u8, mask: u16) -> V {
        let low = count(mask as u8);
        // SAFETY: sixteen values may be read: those of each part begin behind no more than all lanes
        // of the parts before it.
        unsafe {
            match E::KIND {
                Kind::F32 => {
                    let (first, third) = (count(mask as u8 & 15), count((mask >> 8) as u8 & 15));
                    let middle = p.add(low * 4);
                    float32x4x4_t(
                        expand_quad(p, mask),
                        expand_quad(p.add(first * 4), mask >> 4),
                        expand_quad(middle, mask >> 8),
                        expand_quad(middle.add(third * 4), mask >> 12),
                    )
                }
                Kind::I8 => {
                    let part = |p, bits| vcreate_u8(expand_bytes(p, bits));
                    let bytes =
                        vcombine_u8(part(p, mask as u8), part(p.add(low), (mask >> 8) as u8));
                    bytes16(vreinterpretq_s8_u8(bytes))
                }
                _ => wide::<E>(
                    expand_words(p, mask as u8),
                    expand_words(p.add(low * 2), (mask >> 8) as u8),
                ),
            }
        }
    }
    #[inline(always)]
    fn count(mask: u16) -> usize {
        count(mask as u8) + count((mask >> 8) as u8)
    }
    #[inline(always)]
    unsafe fn places(mask: u32) -> [uint8x16_t; 4] {
        mask.to_le_bytes()
            .map(|byte| unsafe { vld1q_u8(SELECT.0[usize::from(byte)].as_ptr()) })
    }
    #[inline(always)]
    unsafe fn select(x: *const f32, places: [uint8x16_t; 4]) -> V {
        unsafe {
            let four = |i: usize| {
                let quad = |at: usize| vreinterpretq_u8_f32(vld1q_f32(x.add(8 * i + at)));
                let eight = uint8x16x2_t(quad(0), quad(4));
                vreinterpretq_f32_u8(vqtbl2q_u8(eight, places[i]))
            };
            float32x4x4_t(four(0), four(1), four(2), four(3))
        }
    }
    #[inline(always)]
    unsafe fn store_places(places: [uint8x16_t; 4], first: u32, out: *mut u32) {
        for (i, places) in places.into_iter().enumerate() {
            unsafe {
                // The first byte of each f32.
                let byte = vandq_u32(vreinterpretq_u32_u8(places), vdupq_n_u32(0xff));
                let first = vdupq_n_u32(first + 8 * i as u32);
                vst1q_u32(out.add(4 * i), vaddq_u32(vshrq_n_u32::<2>(byte), first));
            }
        }
    }
    #[inline(always)]
    unsafe fn round(v: V) -> V {
        unsafe {
            map(v, |v| {
                // Half of the last kept bit, less one where that bit is 0: ties go to even. NaN stays.
                let x = vreinterpretq_u32_f32(v);
                let odd = vandq_u32(vshrq_n_u32::<16>(x), vdupq_n_u32(1));
                let up = vaddq_u32(vaddq_u32(x, vdupq_n_u32(0x7fff)), odd);
                let cut = vandq_u32(up, vdupq_n_u32(!0xffff));
                vbslq_f32(vceqq_f32(v, v), vreinterpretq_f32_u32(cut), v)
            })
        }
    }
    #[inline(always)]
    unsafe fn word_places(mask: u64) -> V {
        unsafe { products::word_places(mask) }
    }
    #[inline(always)]
    unsafe fn select_words(x: *const f32, places: V) -> V {
        unsafe { products::select_words(x.cast(), places) }
    }
    #[inline(always)]
    unsafe fn word_pairs(low: V, high: V) -> [V; 6] {
        unsafe { products::word_pairs(low, high) }
    }
    #[inline(always)]
    unsafe fn store_pairs(mask: u64, first: u32, out: *mut u32) {
        unsafe { products::store_pairs(mask, first, out) }
    }
    #[inline(always)]
    unsafe fn round_words<E: Element>(low: V, high: V) -> V {
        unsafe { products::round_words::<E>(low, high) }
    }
    #[inline(always)]
    unsafe fn words(p: *const u8, n: usize) -> V {
        unsafe {
            match n {
                0..16 => quads([
                    load_words(p, n),
                    uint16x8x2_t(vdupq_n_u16(0), vdupq_n_u16(0)),
                ]),
                _ => {
                    let (a, b) = (vld1q_u16(p.cast()), vld1q_u16(p.add(16).cast()));
                    let rest = p.add(32);
                    let rest = match n {
                        16..32 => load_words(rest, n - 16),
                        _ => uint16x8x2_t(vld1q_u16(rest.cast()), vld1q_u16(rest.add(16).cast())),
                    };
                    quads([uint16x8x2_t(a, b), rest])
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn expand_words(p: *const u8, mask: u32) -> V {
        // SAFETY: 32 values may be read: each part's begin behind no more than all lanes of those before it.
        unsafe {
            let bytes = mask.to_le_bytes();
            let second = p.add(2 * count(bytes[0]));
            let third = second.add(2 * count(bytes[1]));
            let fourth = third.add(2 * count(bytes[2]));
            let part = |p, bits| expand_words(p, bits);
            quads([
                uint16x8x2_t(part(p, bytes[0]), part(second, bytes[1])),
                uint16x8x2_t(part(third, bytes[2]), part(fourth, bytes[3])),
            ])
        }
    }
    #[inline(always)]
    unsafe fn dot<E: Element>(a: V, b: V, sum: V) -> V {
        unsafe { products::dot::<E>(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn expand_bytes(mut p: *const u8, mask: u64) -> V {
        // SAFETY: as `expand_words`, of 64 values.
        unsafe {
            let mut parts = [0; 8];
            for (part, bits) in parts.iter_mut().zip(mask.to_le_bytes()) {
                *part = expand_bytes(p, bits);
                p = p.add(count(bits));
            }
            let quad = |i: usize| {
                let (low, high) = (vcreate_u8(parts[2 * i]), vcreate_u8(parts[2 * i + 1]));
                vreinterpretq_f32_u8(vcombine_u8(low, high))
            };
            float32x4x4_t(quad(0), quad(1), quad(2), quad(3))
        }
    }
    #[inline(always)]
    unsafe fn round_bytes(p: *const f32, n: usize, group: usize) -> (V, u64, [f32; 2]) {
        unsafe {
            let mut x = [Self::splat(0.0); 4];
            for (i, x) in x.iter_mut().enumerate() {
                let left = n.saturating_sub(i * LANES);
                *x = Self::load_mask(p.wrapping_add(i * LANES), first(left));
            }
            products::round_bytes(x, group)
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(w: V, x: V, _: u64) -> V {
        unsafe { products::dot_bytes(w, x) }
    }
    #[inline(always)]
    unsafe fn pick(scales: V, block: usize, group: usize) -> V {
        unsafe { products::pick(&scales, block, group) }
    }
    #[inline(always)]
    unsafe fn transpose(v: [V; LANES]) -> [V; LANES] {
        unsafe {
            let mut out = v;
            for i in 0..4 {
                let rows = &v[4 * i..4 * i + 4];
                let a = transpose4([rows[0].0, rows[1].0, rows[2].0, rows[3].0]);
                let b = transpose4([rows[0].1, rows[1].1, rows[2].1, rows[3].1]);
                let c = transpose4([rows[0].2, rows[1].2, rows[2].2, rows[3].2]);
                let d = transpose4([rows[0].3, rows[1].3, rows[2].3, rows[3].3]);
                for j in 0..4 {
                    for (block, quad) in [a[j], b[j], c[j], d[j]].into_iter().enumerate() {
                        let line = &mut out[4 * block + j];
                        match i {
                            0 => line.0 = quad,
                            1 => line.1 = quad,
                            2 => line.2 = quad,
                            _ => line.3 = quad,
                        }
                    }
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint, which faults nowhere.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) p.addr(), options(nomem, nostack, preserves_flags));
        }
    }
}

/// Enables the features for a task.
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn call<S: Simd, T: Task>(task: T) -> T::Output {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { task.run::<S>() }
}
