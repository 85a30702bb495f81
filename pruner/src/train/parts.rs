//! How work is cut into parts: by sizes alone, never by the number of threads, so that sums do not depend on it.

use std::ops::Range;

/// The most parts whose partial sums are added up one after the other.
const PARTS: usize = 16;

/// Elements of a part of an elementwise operation.
pub(super) const SPAN: usize = 1 << 15;

/// `n` items in at most [`PARTS`] ranges of one length; the last may be shorter.
pub(super) fn parts(n: usize) -> Vec<Range<usize>> {
    let each = n.div_ceil(PARTS).max(1);
    (0..n)
        .step_by(each)
        .map(|at| at..(at + each).min(n))
        .collect()
}

/// Splits a buffer of `range.len() * each` elements for every range of [`parts`].
pub(super) fn split<'a>(
    data: &'a mut [f32],
    parts: &[Range<usize>],
    each: usize,
) -> Vec<&'a mut [f32]> {
    let mut rest = data;
    let mut slices = Vec::with_capacity(parts.len());
    for range in parts {
        let (own, behind) = rest.split_at_mut(range.len() * each);
        slices.push(own);
        rest = behind;
    }
    slices
}

/// Adds up the parts of `partials`, each as long as `out`, in their order, and adds the sums to `out`.
pub(super) fn add_parts(out: &mut [f32], partials: &[f32]) {
    use rayon::prelude::*;
    let len = out.len();
    if len == 0 {
        return;
    }
    out.par_chunks_mut(SPAN / 8)
        .enumerate()
        .for_each(|(i, out)| {
            let from = i * (SPAN / 8);
            for part in partials.chunks_exact(len) {
                for (sum, &x) in out.iter_mut().zip(&part[from..]) {
                    *sum += x;
                }
            }
        });
}
