//! Random numbers that are the same on every machine, and comparing with an oracle.
#![allow(dead_code)] // Each test file uses its part.

use lacuna::Isa;

/// The instruction sets of this CPU whose kernels differ where inputs are f32.
pub fn isas_of_f32() -> impl Iterator<Item = Isa> {
    let rounded = [Isa::NeonDot, Isa::NeonFhm, Isa::NeonBf16];
    Isa::available()
        .into_iter()
        .filter(move |isa| !rounded.contains(isa))
}

/// Numbers for weights and activations.
pub struct Random(pub u64);

impl Random {
    /// In -1..1.
    pub fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn tensor(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    /// Rows of `cols` values with about `density` of them kept; every fifth row is empty.
    pub fn sparse(&mut self, rows: usize, cols: usize, density: f32) -> Vec<f32> {
        let mut values = self.tensor(rows * cols);
        for (i, v) in values.iter_mut().enumerate() {
            let keep = self.next() < 2.0 * density - 1.0;
            let empty = density < 1.0 && i / cols % 5 == 4;
            if !keep || empty {
                *v = 0.0;
            }
        }
        values
    }
}

/// Holds outputs against an oracle's: each `(value, size)` may be missed by what `allowed` says of the size.
pub fn compare(
    got: &[f32],
    want: &[(f64, f64)],
    allowed: impl Fn(f64) -> f64,
    what: &dyn Fn() -> String,
) {
    assert_eq!(got.len(), want.len(), "{}", what());
    for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        let fine = error <= allowed(*size);
        assert!(
            fine,
            "element {i} is {got}, not {want} ({error}); {}",
            what()
        );
    }
}

/// Choices that a test case replays from its seed, which is not 0.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn pair(&mut self, of: &[usize]) -> [usize; 2] {
        [self.pick(of), self.pick(of)]
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// In -1..1.
    pub fn value(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}
