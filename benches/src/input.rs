//! Input data: the same pseudo-random numbers on every machine.

/// `len` values of a standard normal distribution, always the same for a seed (SplitMix64 and the
/// Box-Muller transform).
pub fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut bits = random(seed);
    // In (0, 1], so that the logarithm is finite.
    let mut uniform = move || ((bits() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        let radius = (-2.0 * uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform()).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(len);
    values
}

/// `len` indices below `limit`, always the same for a seed.
pub fn indices(len: usize, limit: usize, seed: u64) -> Vec<i64> {
    let mut bits = random(seed);
    (0..len)
        .map(|_| (bits() % limit.max(1) as u64) as i64)
        .collect()
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_normal_and_the_same_each_time() {
        let values = normal(100_001, 3);
        assert_eq!(values.len(), 100_001);
        assert_eq!(values, normal(100_001, 3));
        assert_ne!(values, normal(100_001, 4));
        let n = values.len() as f64;
        let moment = |p: i32| values.iter().map(|v| f64::from(*v).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.1, "{}", moment(4));
    }
}
