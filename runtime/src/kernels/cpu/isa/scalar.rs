//! Portable code, compiled everywhere: the oracle of the other instruction sets.

use crate::kernels::cpu::simd::{Element, Kind, LANES, Simd, TWO_OF_FOUR};
use half::{bf16, f16};

/// Sixteen f32 in an array.
#[derive(Clone, Copy)]
pub struct Scalar;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: plain Rust; pointers are read and written only in the lanes of the mask.
unsafe impl Simd for Scalar {
    type V = V;
    type Places = u32;
    const MR: usize = 4;
    const NV: usize = 1;
    const MANY: bool = false;
    const SELECT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller gives 16 readable elements.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_mask(p: *const f32, mask: u16) -> V {
        std::array::from_fn(|i| {
            if mask >> i & 1 == 1 {
                // SAFETY: the caller gives readable elements where the mask is set.
                unsafe { p.wrapping_add(i).read_unaligned() }
            } else {
                0.0
            }
        })
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32, n: usize) -> V {
        std::array::from_fn(|i| {
            if i < n {
                // SAFETY: the caller gives `2 * n - 1` readable elements.
                unsafe { p.add(2 * i).read_unaligned() }
            } else {
                0.0
            }
        })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: the caller gives 16 writable elements.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_mask(p: *mut f32, v: V, mask: u16) {
        for (i, x) in v.into_iter().enumerate() {
            if mask >> i & 1 == 1 {
                // SAFETY: the caller gives writable elements where the mask is set.
                unsafe { *p.wrapping_add(i) = x }
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn where_less(a: V, b: V, x: V, y: V) -> V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn scale(v: V, n: V) -> V {
        // Two factors, so that neither leaves the range of normal numbers.
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        zip(v, n, |v, n| {
            let n = n as i32;
            v * power(n >> 1) * power(n - (n >> 1))
        })
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        v.iter().sum()
    }
    #[inline(always)]
    unsafe fn widen<E: Element>(p: *const u8) -> V {
        // SAFETY: the caller gives sixteen readable values.
        std::array::from_fn(|i| unsafe { value::<E>(p.add(i * E::SIZE)) })
    }
    #[inline(always)]
    unsafe fn widen_first<E: Element>(p: *const u8, n: usize) -> V {
        std::array::from_fn(|i| {
            if i < n {
                // SAFETY: the caller gives `n` readable values.
                unsafe { value::<E>(p.add(i * E::SIZE)) }
            } else {
                0.0
            }
        })
    }
    #[inline(always)]
    unsafe fn expand<E: Element>(p: *const u8, mask: u16) -> V {
        let mut next = p;
        std::array::from_fn(|i| {
            if mask >> i & 1 == 0 {
                return 0.0;
            }
            // SAFETY: the caller gives one readable value for each set bit.
            unsafe {
                let x = value::<E>(next);
                next = next.add(E::SIZE);
                x
            }
        })
    }
    #[inline(always)]
    unsafe fn places(mask: u32) -> u32 {
        mask
    }
    #[inline(always)]
    unsafe fn select(x: *const f32, places: u32) -> V {
        std::array::from_fn(|i| {
            let group = places >> (i / 2 * 4) & 15;
            let lane = TWO_OF_FOUR[group as usize][i % 2];
            // SAFETY: the caller gives 32 readable elements.
            unsafe { x.add(i / 2 * 4 + usize::from(lane)).read_unaligned() }
        })
    }
    #[inline(always)]
    unsafe fn store_places(places: u32, first: u32, out: *mut u32) {
        for i in 0..LANES {
            let (group, lane) = (i / 2, i % 2);
            let two = TWO_OF_FOUR[(places >> (4 * group) & 15) as usize];
            // SAFETY: the caller gives room for sixteen.
            unsafe { *out.add(i) = first + 4 * group as u32 + u32::from(two[lane]) }
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: [V; LANES]) -> [V; LANES] {
        std::array::from_fn(|j| std::array::from_fn(|i| v[i][j]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

/// One stored value, as f32.
#[inline(always)]
unsafe fn value<E: Element>(p: *const u8) -> f32 {
    // SAFETY: the caller gives a readable value.
    unsafe {
        match E::KIND {
            Kind::F32 => f32::from_le_bytes(p.cast::<[u8; 4]>().read()),
            Kind::F16 => f16::from_le_bytes(p.cast::<[u8; 2]>().read()).to_f32(),
            Kind::Bf16 => bf16::from_le_bytes(p.cast::<[u8; 2]>().read()).to_f32(),
            Kind::I8 => f32::from(p.cast::<i8>().read()),
        }
    }
}
