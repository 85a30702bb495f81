//! Softmax of a row.

use super::math::exp;
use super::simd::{LANES, Simd, first};

/// Replaces `x[i]` by `e^(x[i] + bias[i] - largest)` and returns the sum of the results; 0
/// where every element is -infinity. `bias` may be null.
///
/// # Safety
/// The CPU has the features of `S`; `x` has `len` elements, and so has `bias` unless it is null.
#[inline(always)]
pub unsafe fn exponentials<S: Simd>(x: *mut f32, bias: *const f32, len: usize) -> f32 {
    // SAFETY: the caller's promise; masks end at `len`.
    unsafe {
        let lowest = S::splat(f32::NEG_INFINITY);
        let mut largest = lowest;
        let mut i = 0;
        while i + LANES <= len {
            let mut v = S::load(x.add(i));
            if !bias.is_null() {
                v = S::add(v, S::load(bias.add(i)));
            }
            S::store(x.add(i), v);
            largest = S::max(v, largest);
            i += LANES;
        }
        let mask = first(len - i);
        let mut largest = S::largest(largest);
        if mask != 0 {
            let mut v = S::load_mask(x.add(i), mask);
            if !bias.is_null() {
                v = S::add(v, S::load_mask(bias.add(i), mask));
            }
            S::store_mask(x.add(i), v, mask);
            for k in i..len {
                largest = largest.max(*x.add(k));
            }
        }
        if largest == f32::NEG_INFINITY {
            largest = 0.0;
        }
        let shift = S::splat(largest);
        let mut sums = [S::splat(0.0); 2];
        let mut i = 0;
        while i + 2 * LANES <= len {
            for (k, sum) in sums.iter_mut().enumerate() {
                let e = exp::<S>(S::sub(S::load(x.add(i + k * LANES)), shift));
                S::store(x.add(i + k * LANES), e);
                *sum = S::add(*sum, e);
            }
            i += 2 * LANES;
        }
        let mut total = S::sum(S::add(sums[0], sums[1]));
        while i < len {
            let mask = first(len - i);
            let e = exp::<S>(S::sub(S::load_mask(x.add(i), mask), shift));
            S::store_mask(x.add(i), e, mask);
            for k in i..len.min(i + LANES) {
                total += *x.add(k);
            }
            i += LANES;
        }
        total
    }
}

/// Multiplies `len` elements by `factor`.
///
/// # Safety
/// The CPU has the features of `S`; `x` has `len` elements.
#[inline(always)]
pub unsafe fn multiply<S: Simd>(x: *mut f32, factor: f32, len: usize) {
    // SAFETY: the caller's promise; masks end at `len`.
    unsafe {
        let factor = S::splat(factor);
        let mut i = 0;
        while i < len {
            let mask = first(len - i);
            let v = S::mul(S::load_mask(x.add(i), mask), factor);
            S::store_mask(x.add(i), v, mask);
            i += LANES;
        }
    }
}
