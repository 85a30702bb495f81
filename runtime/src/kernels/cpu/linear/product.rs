//! How weights and inputs are multiplied: as f32, as pairs of bfloat16, as fours of signed bytes.

// Loops and not closures: those are too often left as calls, without the instructions of `S`.
#![allow(clippy::needless_range_loop)]

use crate::kernels::cpu::rows::{Cursor, Rows};
use crate::kernels::cpu::simd::{LANES, Simd, first};

/// How weights and inputs are multiplied.
pub(super) trait Product {
    /// `M` rows of weights times `N` of `x`, as sums of lanes.
    ///
    /// # Safety
    /// The CPU has the features of `S`; the cursors are at rows of `rows`, and the input is as the
    /// product wants it.
    unsafe fn dot<S: Simd, C: Cursor, const M: usize, const N: usize, const U: usize>(
        w: [C; M],
        x: [*const f32; N],
        rows: &Rows,
        ahead: usize,
    ) -> [[S::V; N]; M];
}

/// As f32.
pub(super) struct Numbers;

/// As pairs of words, bfloat16 or half precision.
pub(super) struct Words;

/// As signed bytes with a scale for each `GROUP` of them.
pub(super) struct Scaled<const GROUP: usize>;

/// Bytes of a vector.
pub(super) const BLOCK: usize = 4 * LANES;

/// Where a column's magnitudes, signs and scales lie, in units of f32: a vector of magnitudes for each
/// block, 64 bits of signs for each block, scales of groups up to whole vectors.
pub(super) struct BytePlan {
    pub blocks: usize,
    pub signs: usize,
    pub scales: usize,
    pub stride: usize,
}

impl BytePlan {
    #[inline(always)]
    pub fn new(inner: usize, group: usize) -> BytePlan {
        let blocks = inner.div_ceil(BLOCK);
        let signs = blocks * LANES;
        let scales = signs + 2 * blocks;
        // The scales of a whole block are written.
        let groups = blocks * (BLOCK / group);
        BytePlan {
            blocks,
            signs,
            scales,
            stride: scales + groups.next_multiple_of(LANES),
        }
    }
}

impl Product for Numbers {
    #[inline(always)]
    unsafe fn dot<S: Simd, C: Cursor, const M: usize, const N: usize, const U: usize>(
        mut w: [C; M],
        x: [*const f32; N],
        rows: &Rows,
        ahead: usize,
    ) -> [[S::V; N]; M] {
        let inner = rows.inner();
        // SAFETY: the rows of weights and of `x` hold `inner` elements.
        unsafe {
            let mut sums = [[[S::splat(0.0); N]; M]; U];
            let mut k = 0;
            while C::HALF && N <= S::SELECT && k + 2 * LANES <= inner {
                let mut v = [w[0].half::<S>(2 * LANES); M];
                w[0].prefetch::<S>(ahead);
                for m in 1..M {
                    v[m] = w[m].half::<S>(2 * LANES);
                    w[m].prefetch::<S>(ahead);
                }
                for i in 0..N {
                    let x = x[i].add(k);
                    for m in 0..M {
                        sums[0][m][i] = S::fma(v[m].0, S::select(x, v[m].1), sums[0][m][i]);
                    }
                }
                k += 2 * LANES;
            }
            while C::has_pairs::<S>() && k + 2 * LANES <= inner {
                for w in &w {
                    w.prefetch::<S>(ahead);
                }
                let mut v = [(S::splat(0.0), S::splat(0.0)); M];
                for m in 0..M {
                    v[m] = w[m].next_pairs::<S>();
                }
                for i in 0..N {
                    let (even, odd) = (S::load(x[i].add(k)), S::load(x[i].add(k + LANES)));
                    for m in 0..M {
                        sums[0][m][i] = S::fma(v[m].0, even, sums[0][m][i]);
                        sums[U - 1][m][i] = S::fma(v[m].1, odd, sums[U - 1][m][i]);
                    }
                }
                k += 2 * LANES;
            }
            while k + U * LANES <= inner {
                for w in &w {
                    w.prefetch::<S>(ahead);
                }
                for (u, sums) in sums.iter_mut().enumerate() {
                    let mut v = [S::splat(0.0); M];
                    for m in 0..M {
                        v[m] = w[m].next::<S>();
                    }
                    for i in 0..N {
                        let x = S::load(x[i].add(k + u * LANES));
                        for m in 0..M {
                            sums[m][i] = S::fma(v[m], x, sums[m][i]);
                        }
                    }
                }
                k += U * LANES;
            }
            while k < inner {
                let left = inner - k;
                for m in 0..M {
                    let v = if left >= LANES {
                        w[m].next::<S>()
                    } else {
                        w[m].rest::<S>(left)
                    };
                    for i in 0..N {
                        let x = S::load_mask(x[i].add(k), first(left));
                        sums[0][m][i] = S::fma(v, x, sums[0][m][i]);
                    }
                }
                k += LANES;
            }
            total::<S, M, N, U>(sums)
        }
    }
}

impl Product for Words {
    #[inline(always)]
    unsafe fn dot<S: Simd, C: Cursor, const M: usize, const N: usize, const U: usize>(
        mut w: [C; M],
        x: [*const f32; N],
        rows: &Rows,
        ahead: usize,
    ) -> [[S::V; N]; M] {
        let inner = rows.inner();
        // SAFETY: the rows of weights hold `inner` elements, those of `x` as many, filled up with zeros.
        unsafe {
            let mut sums = [[[S::splat(0.0); N]; M]; U];
            let mut k = 0;
            while C::HALF && N <= S::SELECT && k + 4 * LANES <= inner {
                let mut v = [(S::splat(0.0), S::splat(0.0)); M];
                for m in 0..M {
                    w[m].prefetch::<S>(ahead);
                    let (words, bits) = w[m].half_words::<S>(4 * LANES);
                    v[m] = (words, S::word_places(bits));
                }
                for i in 0..N {
                    let x = x[i].add(k / 2);
                    for m in 0..M {
                        sums[0][m][i] =
                            S::dot::<C::Element>(v[m].0, S::select_words(x, v[m].1), sums[0][m][i]);
                    }
                }
                k += 4 * LANES;
            }
            while k + U * 2 * LANES <= inner {
                for (u, sums) in sums.iter_mut().enumerate() {
                    for w in &w {
                        w.prefetch::<S>(ahead);
                    }
                    let mut v = [S::splat(0.0); M];
                    for m in 0..M {
                        v[m] = w[m].words::<S>(2 * LANES);
                    }
                    for i in 0..N {
                        let x = S::load(x[i].add(k / 2 + u * LANES));
                        for m in 0..M {
                            sums[m][i] = S::dot::<C::Element>(v[m], x, sums[m][i]);
                        }
                    }
                }
                k += U * 2 * LANES;
            }
            while k < inner {
                for m in 0..M {
                    let v = w[m].words::<S>((inner - k).min(2 * LANES));
                    for i in 0..N {
                        sums[0][m][i] =
                            S::dot::<C::Element>(v, S::load(x[i].add(k / 2)), sums[0][m][i]);
                    }
                }
                k += 2 * LANES;
            }
            total::<S, M, N, U>(sums)
        }
    }
}

impl<const GROUP: usize> Product for Scaled<GROUP> {
    #[inline(always)]
    unsafe fn dot<S: Simd, C: Cursor, const M: usize, const N: usize, const U: usize>(
        mut w: [C; M],
        x: [*const f32; N],
        rows: &Rows,
        ahead: usize,
    ) -> [[S::V; N]; M] {
        let inner = rows.inner();
        let plan = BytePlan::new(inner, GROUP);
        let groups = inner.div_ceil(GROUP);
        // Blocks of which a vector holds the scales.
        let span = LANES * GROUP / BLOCK;
        // SAFETY: the rows of weights hold `inner` elements; those of `x` are laid out by the plan.
        unsafe {
            let zero = S::splat(0.0);
            let mut sums = [[zero; N]; M];
            let mut from = 0;
            while from < plan.blocks {
                let first = from * BLOCK / GROUP;
                let mut by = [[zero; N]; M];
                for m in 0..M {
                    let scales = w[m].scales::<S>(first, groups - first);
                    for n in 0..N {
                        by[m][n] = S::mul(scales, S::load(x[n].add(plan.scales + first)));
                    }
                }
                let to = plan.blocks.min(from + span);
                for block in from..to {
                    let mut v = [zero; M];
                    let len = inner - block * BLOCK;
                    for m in 0..M {
                        w[m].prefetch::<S>(ahead);
                        v[m] = match len >= BLOCK {
                            true => w[m].bytes::<S>(BLOCK),
                            false => w[m].bytes::<S>(len),
                        };
                    }
                    for n in 0..N {
                        let size = S::load(x[n].add(block * LANES));
                        let signs = x[n].add(plan.signs + 2 * block).cast::<u64>();
                        let negative = signs.read_unaligned();
                        for m in 0..M {
                            let scale = S::pick(by[m][n], block - from, GROUP);
                            let product = S::dot_bytes(v[m], size, negative);
                            sums[m][n] = S::fma(product, scale, sums[m][n]);
                        }
                    }
                }
                from = to;
            }
            sums
        }
    }
}

/// The sum of running sums.
#[inline(always)]
unsafe fn total<S: Simd, const M: usize, const N: usize, const U: usize>(
    sums: [[[S::V; N]; M]; U],
) -> [[S::V; N]; M] {
    let mut total = sums[0];
    for sums in &sums[1..] {
        for m in 0..M {
            for i in 0..N {
                // SAFETY: the caller's promise.
                total[m][i] = unsafe { S::add(total[m][i], sums[m][i]) };
            }
        }
    }
    total
}
