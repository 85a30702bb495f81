//! Networks that have no file yet: the state dict of a named architecture, with random weights.

use lacuna::Weight;
use lacuna::model::Weights;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A state dict under construction.
///
/// Weights are drawn from one stream of numbers for each tensor, so that a tensor depends on the seed and on how
/// many weights come before it, and not on the machine.
pub(super) struct Fresh {
    seed: u64,
    drawn: u64,
    pub(super) tensors: Weights,
}

impl Fresh {
    pub(super) fn new(seed: u64) -> Fresh {
        Fresh {
            seed,
            drawn: 0,
            tensors: Weights::new(),
        }
    }

    /// A convolution `[outputs, inputs, kernel, kernel]` without a bias: normal, of variance 2 / fan-out (He et al.).
    pub(super) fn conv(&mut self, name: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.grouped(name, outputs, inputs, kernel, 1);
    }

    /// A convolution of `groups` groups; `inputs` are those of all groups.
    pub(super) fn grouped(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        kernel: usize,
        groups: usize,
    ) {
        let fan_out = outputs / groups * kernel * kernel;
        let shape = [outputs, inputs / groups, kernel, kernel];
        self.random(
            &format!("{name}.weight"),
            &shape,
            (2.0 / fan_out as f64).sqrt(),
        );
    }

    /// A batch normalisation that changes nothing yet.
    pub(super) fn norm(&mut self, name: &str, channels: usize) {
        for (part, value) in [
            ("weight", 1.0),
            ("bias", 0.0),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ] {
            self.put(
                &format!("{name}.{part}"),
                &[channels],
                vec![value; channels],
            );
        }
    }

    /// A linear layer `[outputs, inputs]` with a bias of zeros: normal, of variance 1 / fan-in.
    pub(super) fn linear(&mut self, name: &str, outputs: usize, inputs: usize) {
        let deviation = (1.0 / inputs as f64).sqrt();
        self.random(&format!("{name}.weight"), &[outputs, inputs], deviation);
        self.put(&format!("{name}.bias"), &[outputs], vec![0.0; outputs]);
    }

    /// Normal numbers.
    pub(super) fn random(&mut self, name: &str, shape: &[usize], deviation: f64) {
        let mut bits = ChaCha8Rng::seed_from_u64(self.seed);
        bits.set_stream(self.drawn);
        self.drawn += 1;
        // Box and Muller: two uniform numbers of 53 bits make two normal ones.
        let mut uniform = || ((bits.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let len: usize = shape.iter().product();
        let mut values = Vec::with_capacity(len + 1);
        while values.len() < len {
            let radius = deviation * (-2.0 * uniform().ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * uniform()).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(len);
        self.put(name, shape, values);
    }

    pub(super) fn put(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.tensors
            .insert(name.to_owned(), Weight::from_f32(shape, &values));
    }
}
