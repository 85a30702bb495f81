//! A fast hash that tells packed weights apart.

/// A hash of 128 bits that reads some bytes a cycle: multiplications of 64 by 64 bits, folded. It tells
/// weights apart and finds damage; it does not withstand someone who looks for a collision.
pub struct Hash {
    lanes: [u64; 4],
    len: u64,
}

const PRIMES: [u64; 4] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0xd6e8_feb8_6659_fd93,
];

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Default for Hash {
    fn default() -> Hash {
        Hash {
            lanes: PRIMES,
            len: 0,
        }
    }
}

impl Hash {
    /// Takes in bytes, and where they end.
    pub fn write(&mut self, bytes: &[u8]) {
        let (blocks, tail) = bytes.as_chunks::<32>();
        let mut last = [0; 32];
        last[..tail.len()].copy_from_slice(tail);
        for block in blocks.iter().chain((!tail.is_empty()).then_some(&last)) {
            let (words, _) = block.as_chunks::<8>();
            for ((lane, word), prime) in self.lanes.iter_mut().zip(words).zip(PRIMES) {
                // The lane stays in the sum: a product of 0 would forget what came before.
                *lane = fold(*lane ^ u64::from_le_bytes(*word), prime).wrapping_add(*lane);
            }
        }
        self.len = fold(self.len ^ bytes.len() as u64, PRIMES[3]).wrapping_add(1);
    }

    /// The hash of everything so far.
    pub fn finish(&self) -> u128 {
        let [a, b, c, d] = self.lanes;
        let mix = |x: u64, y: u64| fold(x ^ self.len ^ PRIMES[0], y ^ PRIMES[1]);
        let high = mix(mix(a, b), c ^ d.rotate_left(32));
        let low = mix(mix(c, d), a ^ b.rotate_left(17));
        u128::from(high) << 64 | u128::from(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_tell_lengths_places_and_bits_apart() {
        let hash = |parts: &[&[u8]]| {
            let mut hash = Hash::default();
            parts.iter().for_each(|p| hash.write(p));
            hash.finish()
        };
        let long: Vec<u8> = (0..100).collect();
        let mut all = vec![hash(&[]), hash(&[b""]), hash(&[b"\0"]), hash(&[b"\0\0"])];
        all.extend([hash(&[b"a", b"b"]), hash(&[b"ab"]), hash(&[b"b", b"a"])]);
        for bit in 0..800 {
            let mut flipped = long.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            all.push(hash(&[&flipped]));
        }
        all.push(hash(&[&long]));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
