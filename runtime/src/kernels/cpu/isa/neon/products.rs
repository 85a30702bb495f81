//! Products of inputs that are rounded as weights are: pairs of bfloat16 (FEAT_BF16) or of half precision (FEAT_FHM),
//! fours of signed bytes (FEAT_DotProd). The instructions are spelled out, since a CPU may have one of the three: the
//! compiler is told of none and takes none by itself.

use super::V;
use crate::kernels::cpu::simd::{Element, Kind, LANES, PAIR_OF};
use std::arch::aarch64::*;
use std::arch::asm;

/// Bytes of the four words that a byte, two of each four, names of eight.
static WORDS_OF: super::Table<[[u8; 8]; 256]> = super::Table(super::two_of_four::<2, 8>());

/// Where 32 of 64 words are, as bytes of two quads each.
#[inline(always)]
pub(super) unsafe fn word_places(mask: u64) -> V {
    let bytes = mask.to_le_bytes();
    // SAFETY: the caller runs with NEON.
    unsafe {
        let quad = |i: usize| {
            let half = |byte: u8| vld1_u8(WORDS_OF.0[usize::from(byte)].as_ptr());
            let high = vadd_u8(half(bytes[2 * i + 1]), vdup_n_u8(16));
            vreinterpretq_f32_u8(vcombine_u8(half(bytes[2 * i]), high))
        };
        float32x4x4_t(quad(0), quad(1), quad(2), quad(3))
    }
}

/// The 32 words at these places of the 64 at `x`.
#[inline(always)]
pub(super) unsafe fn select_words(x: *const u8, places: V) -> V {
    // SAFETY: the caller gives 64 words.
    unsafe {
        let quad = |i: usize, places| {
            let two = uint8x16x2_t(vld1q_u8(x.add(32 * i)), vld1q_u8(x.add(32 * i + 16)));
            vreinterpretq_f32_u8(vqtbl2q_u8(two, vreinterpretq_u8_f32(places)))
        };
        float32x4x4_t(
            quad(0, places.0),
            quad(1, places.1),
            quad(2, places.2),
            quad(3, places.3),
        )
    }
}

/// The six pairs of the four words of which each lane has two in `low` and two in `high`.
#[inline(always)]
pub(super) unsafe fn word_pairs(low: V, high: V) -> [V; 6] {
    // SAFETY: the caller runs with NEON.
    unsafe {
        let six = |low, high| -> [float32x4_t; 6] {
            let (low, high) = (vreinterpretq_u32_f32(low), vreinterpretq_u32_f32(high));
            let even = vdupq_n_u32(0xffff);
            let (a, b) = (vandq_u32(low, even), vshrq_n_u32::<16>(low));
            let (c, d) = (vshlq_n_u32::<16>(high), vbicq_u32(high, even));
            let pairs = [
                low,
                vorrq_u32(a, c),
                vorrq_u32(b, c),
                vorrq_u32(a, d),
                vorrq_u32(b, d),
                high,
            ];
            pairs.map(|pair| vreinterpretq_f32_u32(pair))
        };
        let quads = [
            six(low.0, high.0),
            six(low.1, high.1),
            six(low.2, high.2),
            six(low.3, high.3),
        ];
        std::array::from_fn(|i| float32x4x4_t(quads[0][i], quads[1][i], quads[2][i], quads[3][i]))
    }
}

/// Writes which of its six pairs each half byte names, six for each from `first` on.
#[inline(always)]
pub(super) unsafe fn store_pairs(mask: u64, first: u32, out: *mut u32) {
    for i in 0..LANES {
        let pair = PAIR_OF[(mask >> (4 * i) & 15) as usize];
        // SAFETY: the caller has room for sixteen.
        unsafe { *out.add(i) = first + 6 * i as u32 + pair as u32 }
    }
}

/// Eight f32 rounded to words of `E`.
#[inline(always)]
unsafe fn narrow<E: Element>(low: float32x4_t, high: float32x4_t) -> float32x4_t {
    let mut words: float32x4_t;
    // SAFETY: the caller's CPU has the instructions. Conversions may raise flags.
    unsafe {
        match E::KIND {
            Kind::F16 => asm!(
                "fcvtn {0:v}.4h, {1:v}.4s",
                "fcvtn2 {0:v}.8h, {2:v}.4s",
                out(vreg) words, in(vreg) low, in(vreg) high, options(pure, nomem, nostack)
            ),
            _ => asm!(
                ".arch_extension bf16",
                "bfcvtn {0:v}.4h, {1:v}.4s",
                "bfcvtn2 {0:v}.8h, {2:v}.4s",
                out(vreg) words, in(vreg) low, in(vreg) high, options(pure, nomem, nostack)
            ),
        }
    }
    words
}

/// 32 lanes rounded to words of `E`.
#[inline(always)]
pub(super) unsafe fn round_words<E: Element>(low: V, high: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        float32x4x4_t(
            narrow::<E>(low.0, low.1),
            narrow::<E>(low.2, low.3),
            narrow::<E>(high.0, high.1),
            narrow::<E>(high.2, high.3),
        )
    }
}

/// `sum` and the products of pairs of words of `E`.
#[inline(always)]
pub(super) unsafe fn dot<E: Element>(a: V, b: V, sum: V) -> V {
    // SAFETY: the caller's CPU has the instructions.
    unsafe {
        let quad = |a: float32x4_t, b: float32x4_t, mut sum: float32x4_t| {
            match E::KIND {
                Kind::F16 => asm!(
                    ".arch_extension fp16fml",
                    "fmlal {0:v}.4s, {1:v}.4h, {2:v}.4h",
                    "fmlal2 {0:v}.4s, {1:v}.4h, {2:v}.4h",
                    inout(vreg) sum, in(vreg) a, in(vreg) b, options(pure, nomem, nostack)
                ),
                _ => asm!(
                    ".arch_extension bf16",
                    "bfdot {0:v}.4s, {1:v}.8h, {2:v}.8h",
                    inout(vreg) sum, in(vreg) a, in(vreg) b, options(pure, nomem, nostack)
                ),
            }
            sum
        };
        float32x4x4_t(
            quad(a.0, b.0, sum.0),
            quad(a.1, b.1, sum.1),
            quad(a.2, b.2, sum.2),
            quad(a.3, b.3, sum.3),
        )
    }
}

/// 64 elements as signed bytes, and their scales; 0 for the signs, which the bytes have.
#[inline(always)]
pub(super) unsafe fn round_bytes(x: [V; 4], group: usize) -> (V, u64, [f32; 2]) {
    // SAFETY: the caller runs with NEON.
    unsafe {
        // As bits NaN is above infinity, so that it stays.
        let largest = |v: V| {
            let size = |q| vreinterpretq_u32_f32(vabsq_f32(q));
            let (a, b) = (
                vmaxq_u32(size(v.0), size(v.1)),
                vmaxq_u32(size(v.2), size(v.3)),
            );
            vmaxvq_u32(vmaxq_u32(a, b))
        };
        let low = largest(x[0]).max(largest(x[1]));
        let high = largest(x[2]).max(largest(x[3]));
        let largest = match group {
            32 => [low, high],
            _ => [low.max(high); 2],
        };
        let largest = largest.map(f32::from_bits);
        let inverse = largest.map(|m| if m > 0.0 { 127.0 / m } else { 0.0 });
        let bytes = |v: V, by: f32| {
            let whole = |q| vcvtnq_s32_f32(vmulq_n_f32(q, by));
            let low = vcombine_s16(vqmovn_s32(whole(v.0)), vqmovn_s32(whole(v.1)));
            let high = vcombine_s16(vqmovn_s32(whole(v.2)), vqmovn_s32(whole(v.3)));
            vreinterpretq_f32_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)))
        };
        let v = float32x4x4_t(
            bytes(x[0], inverse[0]),
            bytes(x[1], inverse[0]),
            bytes(x[2], inverse[1]),
            bytes(x[3], inverse[1]),
        );
        (v, 0, largest.map(|m| m / 127.0))
    }
}

/// The products of 64 signed bytes, four to a lane.
#[inline(always)]
pub(super) unsafe fn dot_bytes(w: V, x: V) -> V {
    // SAFETY: the caller's CPU has the instructions.
    unsafe {
        let quad = |w: float32x4_t, x: float32x4_t| {
            let mut sum = vdupq_n_s32(0);
            asm!(
                ".arch_extension dotprod",
                "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) sum, in(vreg) w, in(vreg) x, options(pure, nomem, nostack, preserves_flags)
            );
            vcvtq_f32_s32(sum)
        };
        float32x4x4_t(
            quad(w.0, x.0),
            quad(w.1, x.1),
            quad(w.2, x.2),
            quad(w.3, x.3),
        )
    }
}

/// Of the scales of sixteen groups of `group` bytes those of the lanes of 64 bytes, `block`.
#[inline(always)]
pub(super) unsafe fn pick(scales: &V, block: usize, group: usize) -> V {
    let lanes = std::ptr::from_ref(scales).cast::<f32>();
    // SAFETY: a vector is sixteen f32 in their order; the caller has so many blocks.
    unsafe {
        let (a, b) = match group {
            32 => (
                vld1q_dup_f32(lanes.add(2 * block)),
                vld1q_dup_f32(lanes.add(2 * block + 1)),
            ),
            _ => (
                vld1q_dup_f32(lanes.add(block)),
                vld1q_dup_f32(lanes.add(block)),
            ),
        };
        float32x4x4_t(a, a, b, b)
    }
}
