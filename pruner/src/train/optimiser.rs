//! Descent: what a step does to the weights.

use super::network::{Parameter, Role};
use super::settings::{Optimizer, TrainSettings};
use rayon::prelude::*;

const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// What an optimiser remembers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Memory {
    /// Steps so far.
    pub steps: u64,
    /// For each parameter: momentum, or Adam's mean of gradients.
    pub first: Vec<Vec<f32>>,
    /// For each parameter: Adam's mean of squares; empty for `sgd`.
    pub second: Vec<Vec<f32>>,
}

impl Memory {
    pub fn new(parameters: &[Parameter], optimizer: Optimizer) -> Memory {
        let zeros = |p: &Parameter| vec![0.0; if p.role.descends() { p.data.len() } else { 0 }];
        Memory {
            steps: 0,
            first: parameters.iter().map(zeros).collect(),
            second: match optimizer {
                Optimizer::Sgd => parameters.iter().map(|_| Vec::new()).collect(),
                Optimizer::Adam => parameters.iter().map(zeros).collect(),
            },
        }
    }

    /// One step at a learning rate. A mask that is not empty says which weights are left; the others become 0.
    pub fn step(
        &mut self,
        settings: &TrainSettings,
        rate: f64,
        parameters: &mut [Parameter],
        gradients: &[Vec<f32>],
        masks: &[Vec<u8>],
    ) {
        self.steps += 1;
        let (momentum, nesterov) = (settings.momentum as f32, settings.nesterov);
        let corrections = BETAS.map(|b| 1.0 - f64::from(b).powf(self.steps as f64));
        let small = (rate / corrections[0]) as f32;
        let root = corrections[1].sqrt() as f32;
        let rate = rate as f32;
        let memory = self.first.par_iter_mut().zip(&mut self.second);
        parameters
            .par_iter_mut()
            .zip(gradients)
            .zip(memory)
            .zip(masks)
            .for_each(|(((p, g), (m, v)), mask)| {
                if !p.role.descends() {
                    return;
                }
                let decays = p.role == Role::Weight || settings.decay_vectors;
                let decay = if decays {
                    settings.weight_decay as f32
                } else {
                    0.0
                };
                match settings.optimizer {
                    Optimizer::Sgd => {
                        for ((w, g), m) in p.data.iter_mut().zip(g).zip(m.iter_mut()) {
                            let g = g + decay * *w;
                            *m = momentum * *m + g;
                            *w -= rate * if nesterov { g + momentum * *m } else { *m };
                        }
                    }
                    Optimizer::Adam => {
                        let state = m.iter_mut().zip(v.iter_mut());
                        for ((w, g), (m, v)) in p.data.iter_mut().zip(g).zip(state) {
                            let g = g + decay * *w;
                            *m = BETAS[0] * *m + (1.0 - BETAS[0]) * g;
                            *v = BETAS[1] * *v + (1.0 - BETAS[1]) * g * g;
                            *w -= small * *m / (v.sqrt() / root + EPSILON);
                        }
                    }
                }
                for (w, &left) in p.data.iter_mut().zip(mask) {
                    if left == 0 {
                        *w = 0.0;
                    }
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descend(settings: &TrainSettings, steps: usize) -> (f32, f32) {
        let mut p = vec![Parameter {
            name: "w".into(),
            shape: vec![2],
            role: Role::Weight,
            data: vec![1.0, 1.0],
        }];
        let mut memory = Memory::new(&p, settings.optimizer);
        for _ in 0..steps {
            memory.step(settings, 0.1, &mut p, &[vec![0.5, 0.5]], &[vec![1, 0]]);
        }
        (p[0].data[0], p[0].data[1])
    }

    /// `torch.optim` 2.5.1 with a weight of 1, lr 0.1, weight_decay 0.01 and a gradient of 0.5 in each of three steps.
    #[test]
    fn steps_are_those_of_pytorch() {
        let base = TrainSettings {
            weight_decay: 0.01,
            ..TrainSettings::default()
        };
        let nesterov = TrainSettings {
            nesterov: true,
            ..base.clone()
        };
        let adam = TrainSettings {
            optimizer: Optimizer::Adam,
            ..base.clone()
        };
        for (settings, expected) in [(base, SGD), (nesterov, NESTEROV), (adam, ADAM)] {
            let (kept, masked) = descend(&settings, 3);
            assert!((kept - expected).abs() < 1e-6, "{kept} is not {expected}");
            assert_eq!(masked, 0.0);
        }
    }

    const SGD: f32 = 0.714_134_75;
    const NESTEROV: f32 = 0.590_209_96;
    const ADAM: f32 = 0.700_019;
}
