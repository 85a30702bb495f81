//! Random numbers that depend on a seed and a place alone, so that nothing has to be kept to go on after a kill.

/// SplitMix64 over a hash of its place.
pub(crate) struct Random(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The numbers of `place`, such as an epoch and an image.
    pub fn new(seed: u64, place: &[u64]) -> Random {
        let next = |state: u64, part: &u64| {
            mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(*part ^ 0x5851_f42d_4c95_7f2d))
        };
        Random(place.iter().fold(mix(seed), next))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub fn shuffle(&mut self, items: &mut [usize]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
