//! Selection by magnitude without a pool of all weights: histograms over the bits of |w|.
//!
//! The bits of a non-negative float, read as an integer, are in the order of the floats. A key is
//! those 31 bits of an f32, or the 15 bits of a 16-bit float where every layer has the same 16-bit
//! dtype. One pass over a layer makes its [`Profile`]: how often each upper half of an f32 and each
//! magnitude of a 16-bit float occurs. Of f32 layers a second pass looks at the lower 15 bits of the
//! elements beside the threshold; 16-bit layers are not read again.
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

/// How often the magnitudes of a weight occur, and what else one pass finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Elements that are zero.
    pub zeros: usize,
    /// Whether every element is finite.
    pub finite: bool,
    /// Buckets that occur, in order, and how often: the bits of |w| of a 16-bit float, the upper 16 of
    /// the 31 of an f32.
    counts: Vec<(u32, usize)>,
}

impl Profile {
    /// Reads a floating-point weight once.
    pub fn of(weight: &Weight) -> Profile {
        let dtype = weight.dtype();
        let (data, absent) = match weight.encoding() {
            Encoding::Dense(data) => (data, 0),
            Encoding::Bitmask(b) => (&b.values, weight.numel() - b.values.len() / dtype.size()),
        };
        let mut histogram = vec![0usize; 1 << 16];
        let mut zeros = absent;
        match dtype {
            DType::F32 => {
                for e in data.as_chunks::<4>().0 {
                    let key = u32::from_le_bytes(*e) & 0x7fff_ffff;
                    zeros += usize::from(key == 0);
                    histogram[(key >> FINE_BITS) as usize] += 1;
                }
            }
            _ => {
                for e in data.as_chunks::<2>().0 {
                    histogram[usize::from(u16::from_le_bytes(*e) & 0x7fff)] += 1;
                }
                zeros += histogram[0];
            }
        }
        histogram[0] += absent;
        let infinity = match dtype {
            DType::F32 => 0x7f80_0000 >> FINE_BITS,
            DType::F16 => 0x7c00,
            _ => 0x7f80,
        };
        Profile {
            zeros,
            finite: histogram[infinity..].iter().all(|&n| n == 0),
            counts: (0..).zip(histogram).filter(|(_, n)| *n > 0).collect(),
        }
    }
}

/// A weight to be ranked, and its profile.
#[derive(Clone, Copy)]
struct Ranked<'a> {
    weight: &'a Weight,
    profile: &'a Profile,
    /// It offers only so many of its smallest elements.
    cap: usize,
}

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

    /// The key of the bits of a 16-bit magnitude.
    fn of_half(self, dtype: DType, bits: u32) -> u32 {
        match (self, dtype) {
            (Keys::Half(_), _) => bits,
            (Keys::Single, DType::F16) => f16::from_bits(bits as u16).to_f32().to_bits(),
            (Keys::Single, _) => bits << 16,
        }
    }

    /// The key of one stored element.
    fn key(self, dtype: DType, element: &[u8]) -> u32 {
        match *element {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) & 0x7fff_ffff,
            [a, b] => self.of_half(dtype, u32::from(u16::from_le_bytes([a, b]) & 0x7fff)),
            _ => 0,
        }
    }

    /// Calls `f` with each bucket of the first pass that occurs, and how often.
    fn coarse(self, ranked: Ranked<'_>, mut f: impl FnMut(u32, usize)) {
        let dtype = ranked.weight.dtype();
        for &(bucket, n) in &ranked.profile.counts {
            f(
                match dtype {
                    DType::F32 => bucket,
                    _ => self.of_half(dtype, bucket) >> self.fine_bits(),
                },
                n,
            );
        }
    }

    /// Calls `f` with a key and how many elements have it, until every element of the bucket is counted.
    fn within(self, ranked: Ranked<'_>, bucket: u32, mut f: impl FnMut(u32, usize)) {
        let dtype = ranked.weight.dtype();
        let counts = &ranked.profile.counts;
        if dtype != DType::F32 {
            for &(bits, n) in counts {
                let key = self.of_half(dtype, bits);
                if key >> self.fine_bits() == bucket {
                    f(key, n);
                }
            }
            return;
        }
        if counts.binary_search_by_key(&bucket, |c| c.0).is_err() {
            return;
        }
        let data = match ranked.weight.encoding() {
            Encoding::Dense(data) => data,
            Encoding::Bitmask(b) => {
                if bucket == 0 {
                    f(0, ranked.weight.numel() - b.values.len() / dtype.size());
                }
                &b.values
            }
        };
        for e in data.as_chunks::<4>().0 {
            let key = u32::from_le_bytes(*e) & 0x7fff_ffff;
            if key >> FINE_BITS == bucket {
                f(key, 1);
            }
        }
        ranked.weight.release();
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
    let ranked: Vec<Ranked<'_>> = layers
        .iter()
        .zip(caps)
        .map(|(layer, &cap)| Ranked {
            weight: layer.weight,
            profile: &layer.profile,
            cap,
        })
        .collect();
    let (keys, key, counts) = kth(&ranked, k);
    let below: Vec<usize> = (counts.iter().zip(caps))
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

/// Elements of the layer below its own k-th smallest magnitude.
pub(crate) fn strictly_below_kth(layer: &Layer<'_>, k: usize) -> usize {
    let (_, _, counts) = kth(&[alone(layer.weight, &layer.profile)], k);
    counts[0].0
}

/// The layer's weight, dense, with its `k` smallest magnitudes set to +0; ties go in flat order.
pub(crate) fn zero_smallest(layer: &Layer<'_>, k: usize) -> Weight {
    let dense = layer.weight.decode();
    let Encoding::Dense(data) = dense.encoding() else {
        return dense;
    };
    if k == 0 {
        return dense;
    }
    let (keys, threshold, counts) = kth(&[alone(layer.weight, &layer.profile)], k);
    let mut ties = k - counts[0].0;
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

fn alone<'a>(weight: &'a Weight, profile: &'a Profile) -> Ranked<'a> {
    Ranked {
        weight,
        profile,
        cap: weight.numel(),
    }
}

/// The key of the k-th smallest element, where each weight offers only its `cap` smallest; and for each
/// weight, of all its elements, how many have a smaller key and how many this one.
fn kth(ranked: &[Ranked<'_>], k: usize) -> (Keys, u32, Vec<(usize, usize)>) {
    let keys = Keys::of(ranked.iter().map(|r| r.weight));
    let fine = keys.fine_bits();
    let mut coarse = vec![0; 1 << 16];
    for &weight in ranked {
        let mut left = weight.cap;
        keys.coarse(weight, |bucket, n| {
            coarse[bucket as usize] += n.min(left);
            left -= n.min(left);
        });
    }
    let (bucket, before) = rank(&coarse, k);
    let first = bucket << fine;
    // Of each weight, elements before the bucket, and the keys in it.
    let parts: Vec<(usize, Vec<usize>)> = ranked
        .par_iter()
        .map(|&weight| {
            let mut below = 0;
            keys.coarse(weight, |b, n| below += if b < bucket { n } else { 0 });
            let mut own = vec![0; 1 << fine];
            keys.within(weight, bucket, |key, n| own[(key - first) as usize] += n);
            (below, own)
        })
        .collect();
    let mut low = vec![0; 1 << fine];
    for (weight, (below, own)) in ranked.iter().zip(&parts) {
        let mut left = weight.cap.saturating_sub(*below);
        for (sum, &n) in low.iter_mut().zip(own) {
            *sum += n.min(left);
            left -= n.min(left);
        }
    }
    let at = rank(&low, k - before).0;
    let counts = parts
        .iter()
        .map(|(below, own)| {
            (
                below + own[..at as usize].iter().sum::<usize>(),
                own[at as usize],
            )
        })
        .collect();
    (keys, first | at, counts)
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
