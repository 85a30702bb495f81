//! Selection by magnitude without a pool of all weights: histograms over the bits of |w|.
//!
//! The bits of a non-negative float, read as an integer, are in the order of the floats. A key is
//! those 31 bits of an f32 (a first pass over the upper 16, a second over the lower 15), or the
//! 15 bits of a 16-bit float where every layer has the same 16-bit dtype (one pass).
//!
//! The order that everything here agrees on is (magnitude, layer, flat index): of equal
//! magnitudes the earlier one goes first.

use crate::Layer;
use half::f16;
use lacuna::DType;
use lacuna::model::{Encoding, Weight};
use rayon::prelude::*;

/// Low bits of an f32 key: those of the second pass.
const FINE_BITS: u32 = 15;

/// How magnitudes become integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// The magnitude as f32, 31 bits.
    Single,
    /// The magnitude in its own 16-bit dtype, 15 bits.
    Half(DType),
}

impl Keys {
    fn of<'m>(mut weights: impl Iterator<Item = &'m Weight>) -> Keys {
        match weights.next().map(Weight::dtype) {
            Some(first) if first.size() == 2 && weights.all(|w| w.dtype() == first) => {
                Keys::Half(first)
            }
            _ => Keys::Single,
        }
    }

    /// Bits that the first pass leaves to the second.
    fn fine_bits(self) -> u32 {
        match self {
            Keys::Single => FINE_BITS,
            Keys::Half(_) => 0,
        }
    }

    /// The magnitude of a key.
    fn magnitude(self, key: u32) -> f32 {
        match self {
            Keys::Single => f32::from_bits(key),
            Keys::Half(DType::F16) => f16::from_bits(key as u16).to_f32(),
            Keys::Half(_) => f32::from_bits(key << 16),
        }
    }

    /// The key of one stored element.
    fn key(self, dtype: DType, element: &[u8]) -> u32 {
        match (element, self, dtype) {
            (&[a, b, c, d], _, _) => u32::from_le_bytes([a, b, c, d]) & 0x7fff_ffff,
            (&[a, b], Keys::Half(_), _) => u32::from(u16::from_le_bytes([a, b]) & 0x7fff),
            (&[a, b], Keys::Single, DType::F16) => {
                f16::from_le_bytes([a, b]).to_f32().to_bits() & 0x7fff_ffff
            }
            (&[a, b], Keys::Single, _) => u32::from(u16::from_le_bytes([a, b]) & 0x7fff) << 16,
            _ => 0,
        }
    }

    /// Calls `f` with a key and how many elements have it, until every element is counted.
    fn visit(self, weight: &Weight, mut f: impl FnMut(u32, usize)) {
        let dtype = weight.dtype();
        let data = match weight.encoding() {
            Encoding::Dense(data) => data,
            Encoding::Bitmask(b) => {
                f(0, weight.numel() - b.values.len() / dtype.size());
                &b.values
            }
        };
        // One loop for each dtype, so that the compiler sees the element size.
        match dtype {
            DType::F32 => {
                for e in data.as_chunks::<4>().0 {
                    f(self.key(DType::F32, e), 1);
                }
            }
            DType::F16 => {
                for e in data.as_chunks::<2>().0 {
                    f(self.key(DType::F16, e), 1);
                }
            }
            _ => {
                for e in data.as_chunks::<2>().0 {
                    f(self.key(DType::BF16, e), 1);
                }
            }
        }
    }
}

/// Where a ranking cuts: everything below one magnitude goes, and of those that equal it some.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cut {
    /// The magnitude of the k-th smallest element.
    pub threshold: f32,
    /// For each layer, elements below the threshold, at most its cap.
    pub below: Vec<usize>,
    /// For each layer, elements at the threshold that its cap leaves room for.
    pub ties: Vec<usize>,
    /// For each layer, whether its cap keeps elements below the threshold.
    pub capped: Vec<bool>,
}

impl Cut {
    /// For each layer, how many elements go when exactly `k` go in all: ties in layer order.
    pub fn exact(&self, k: usize) -> Vec<usize> {
        let mut left = k.saturating_sub(self.below.iter().sum());
        self.below
            .iter()
            .zip(&self.ties)
            .map(|(below, &ties)| {
                let take = ties.min(left);
                left -= take;
                below + take
            })
            .collect()
    }
}

/// Cuts at the k-th smallest magnitude over all layers, where layer `l` offers only its
/// `caps[l]` smallest. `k` is at least 1 and at most the sum of the caps; magnitudes are no NaN.
pub(crate) fn cut(layers: &[Layer<'_>], caps: &[usize], k: usize) -> Cut {
    let keys = Keys::of(layers.iter().map(|l| l.weight));
    let weights: Vec<(&Weight, usize)> = layers
        .iter()
        .map(|l| l.weight)
        .zip(caps.iter().copied())
        .collect();
    let key = kth_key(keys, &weights, k);
    let counts: Vec<(usize, usize)> = weights
        .par_iter()
        .map(|(weight, _)| count(keys, weight, key))
        .collect();
    let below: Vec<usize> = counts
        .iter()
        .zip(caps)
        .map(|(c, &cap)| c.0.min(cap))
        .collect();
    Cut {
        threshold: keys.magnitude(key),
        ties: (counts.iter().zip(caps).zip(&below))
            .map(|((c, &cap), below)| (c.0 + c.1).min(cap) - below)
            .collect(),
        capped: counts.iter().zip(caps).map(|(c, &cap)| c.0 > cap).collect(),
        below,
    }
}

/// Elements of `weight` below the k-th smallest magnitude of that weight alone.
pub(crate) fn strictly_below_kth(weight: &Weight, k: usize) -> usize {
    let keys = Keys::of(std::iter::once(weight));
    let key = kth_key(keys, &[(weight, weight.numel())], k);
    count(keys, weight, key).0
}

/// The weight, dense, with its `k` smallest magnitudes set to +0; ties go in flat order.
pub(crate) fn zero_smallest(weight: &Weight, k: usize) -> Weight {
    let dense = weight.decode();
    let Encoding::Dense(data) = dense.encoding() else {
        return dense;
    };
    if k == 0 {
        return dense;
    }
    let keys = Keys::of(std::iter::once(&dense));
    let threshold = kth_key(keys, &[(&dense, dense.numel())], k);
    let mut ties = k - count(keys, &dense, threshold).0;
    let (dtype, size) = (dense.dtype(), dense.dtype().size());
    let mut bytes = data.to_vec();
    for element in bytes.chunks_exact_mut(size) {
        let key = keys.key(dtype, element);
        if key < threshold {
            element.fill(0);
        } else if key == threshold && ties > 0 {
            ties -= 1;
            element.fill(0);
        }
    }
    // The length is that of the source.
    Weight::dense(dense.shape().to_vec(), dtype, bytes.into()).unwrap_or(dense)
}

/// Elements with a smaller key, and elements with this key.
fn count(keys: Keys, weight: &Weight, key: u32) -> (usize, usize) {
    let (mut below, mut at) = (0, 0);
    keys.visit(weight, |k, n| {
        below += if k < key { n } else { 0 };
        at += if k == key { n } else { 0 };
    });
    (below, at)
}

/// The key of the k-th smallest element, where each weight offers only its `cap` smallest.
fn kth_key(keys: Keys, weights: &[(&Weight, usize)], k: usize) -> u32 {
    let fine = keys.fine_bits();
    let coarse = histogram(weights, 1 << 16, |weight, cap, histogram| {
        keys.visit(weight, |key, n| histogram[(key >> fine) as usize] += n);
        cap
    });
    let (bucket, before) = rank(&coarse, k);
    if fine == 0 {
        return bucket;
    }
    let low = histogram(weights, 1 << fine, |weight, cap, histogram| {
        let mut below = 0;
        keys.visit(weight, |key, n| {
            let upper = key >> fine;
            if upper == bucket {
                histogram[(key & ((1 << fine) - 1)) as usize] += n;
            } else if upper < bucket {
                below += n;
            }
        });
        cap.saturating_sub(below)
    });
    bucket << fine | rank(&low, k - before).0
}

/// Sums the weights' histograms, each cut after as many elements as `fill` returns.
fn histogram(
    weights: &[(&Weight, usize)],
    buckets: usize,
    fill: impl Fn(&Weight, usize, &mut [usize]) -> usize + Sync,
) -> Vec<usize> {
    let add = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    weights
        .par_iter()
        .map(|&(weight, cap)| {
            let mut own = vec![0; buckets];
            let mut left = fill(weight, cap, &mut own);
            for n in &mut own {
                *n = left.min(*n);
                left -= *n;
            }
            own
        })
        .reduce(|| vec![0; buckets], add)
}

/// The bucket that holds the k-th element, and the number of elements before that bucket.
fn rank(histogram: &[usize], k: usize) -> (u32, usize) {
    let mut before = 0;
    for (bucket, &n) in histogram.iter().enumerate() {
        if before + n >= k {
            return (bucket as u32, before);
        }
        before += n;
    }
    (histogram.len().saturating_sub(1) as u32, before)
}
