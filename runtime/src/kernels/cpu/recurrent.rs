//! The element-wise part of recurrent cells.

use super::Io;
use super::math::{sigmoid, tanh};
use super::simd::{LANES, Simd, first};

/// A step of FastGRNN from its products: [`Op::FastGRNN`](crate::model::Op::FastGRNN).
#[derive(Clone, Debug)]
pub struct FastGrnn {
    /// Sequences.
    pub batch: usize,
    /// Elements of a state.
    pub width: usize,
    /// Added to the products inside the gate.
    pub gate_bias: Vec<f32>,
    /// Added to the products inside the update.
    pub update_bias: Vec<f32>,
    /// The sigmoid of the cell's zeta.
    pub zeta: f32,
    /// The sigmoid of the cell's nu.
    pub nu: f32,
}

impl FastGrnn {
    /// Runs this member's share.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        // SAFETY: the plan sized every buffer for the shapes; masks end at the width.
        unsafe {
            let (one, zeta, nu) = (S::splat(1.0), S::splat(self.zeta), S::splat(self.nu));
            for row in io.member.share(self.batch) {
                let (u, h) = (
                    io.inputs[0].add(row * self.width),
                    io.inputs[1].add(row * self.width),
                );
                let out = io.out.add(row * self.width);
                for i in (0..self.width).step_by(LANES) {
                    let mask = first(self.width - i);
                    let product = S::load_mask(u.add(i), mask);
                    let gate = S::load_mask(self.gate_bias.as_ptr().add(i), mask);
                    let update = S::load_mask(self.update_bias.as_ptr().add(i), mask);
                    let z = sigmoid::<S>(S::add(product, gate));
                    let c = tanh::<S>(S::add(product, update));
                    let weight = S::fma(zeta, S::sub(one, z), nu);
                    let kept = S::mul(z, S::load_mask(h.add(i), mask));
                    S::store_mask(out.add(i), S::fma(weight, c, kept), mask);
                }
            }
        }
    }
}
