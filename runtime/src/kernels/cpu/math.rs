//! Functions of vectors, to about 1e-6 of their value, and what kernels share to split their work.

use super::simd::{LANES, Simd};
use super::team::Member;
use std::ops::Range;

/// Horner's rule, the highest power first.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: the caller runs with the features of `S`.
    unsafe {
        let mut sum = S::splat(coefficients[0]);
        for c in coefficients.into_iter().skip(1) {
            sum = S::fma(sum, x, S::splat(c));
        }
        sum
    }
}

/// `e^x`: 0 far below 0, infinity far above.
///
/// # Safety
/// The CPU has the features of `S`; so for every function here.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let x = S::min(S::splat(89.0), S::max(S::splat(-104.0), x));
        // Adding 1.5 * 2^23 leaves no bits behind the point: the nearest whole number.
        let round = S::splat(12_582_912.0);
        let log2e = S::splat(std::f32::consts::LOG2_E);
        let n = S::sub(S::fma(x, log2e, round), round);
        // ln 2 in two parts; products with the first are exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // (e^r - 1 - r) / r^2, fitted on ±ln 2 / 2.
        let p = polynomial::<S, 5>(
            r,
            [
                1.381_166e-3,
                8.370_135e-3,
                4.166_853e-2,
                1.666_650_9e-1,
                5e-1,
            ],
        );
        let y = S::fma(S::mul(r, r), p, r);
        S::scale(S::add(y, S::splat(1.0)), n)
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// `x / (1 + e^-(alpha * x))`.
#[inline(always)]
pub unsafe fn swish<S: Simd>(x: S::V, alpha: f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let e = exp::<S>(S::mul(x, S::splat(-alpha)));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// Hyperbolic tangent.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (one, zero) = (S::splat(1.0), S::splat(0.0));
        let square = S::mul(x, x);
        // (tanh x / x - 1) / x^2, fitted on squares up to 0.4.
        let p = polynomial::<S, 5>(
            square,
            [
                -5.660_780_6e-3,
                2.060_2e-2,
                -5.372_923e-2,
                1.333_132_9e-1,
                -3.333_327_8e-1,
            ],
        );
        let near = S::fma(S::mul(x, square), p, x);
        let size = S::max(S::sub(zero, x), x);
        let e = exp::<S>(S::add(size, size));
        let far = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
        let far = S::where_less(x, zero, S::sub(zero, far), far);
        S::where_less(square, S::splat(0.4), near, far)
    }
}

/// `x` times the normal distribution function of `x`.
#[inline(always)]
pub unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (one, zero) = (S::splat(1.0), S::splat(0.0));
        let size = S::max(S::sub(zero, x), x);
        // Beyond 14 the tail is below the smallest f32.
        let size = S::min(S::splat(14.0), size);
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(one, S::fma(z, S::splat(0.35), one));
        // e^(z^2) erfc(z) / 2, fitted in t.
        let p = polynomial::<S, 8>(
            t,
            [
                -3.504_072e-2,
                6.892_805e-2,
                4.796_093_4e-2,
                3.004_525e-2,
                1.048_333_1e-1,
                8.454_424e-2,
                1.000_848e-1,
                9.864_394e-2,
            ],
        );
        let tail = S::mul(S::mul(t, p), exp::<S>(S::mul(z, S::sub(zero, z))));
        S::sub(S::max(zero, x), S::mul(size, tail))
    }
}

/// `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 * x³)))`.
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let twice = 2.0 * 0.797_884_6;
        let cubic = S::mul(S::mul(x, x), S::splat(-twice * 0.044_715));
        let u = S::mul(x, S::sub(cubic, S::splat(twice)));
        S::div(x, S::add(S::splat(1.0), exp::<S>(u)))
    }
}

/// This member's part of `0..len`, in whole vectors but for the end.
#[inline(always)]
pub fn vectors(member: &Member<'_>, len: usize) -> Range<usize> {
    let share = member.share(len.div_ceil(LANES));
    (share.start * LANES).min(len)..(share.end * LANES).min(len)
}
