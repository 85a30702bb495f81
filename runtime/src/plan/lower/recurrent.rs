//! Cells of recurrent networks.

use super::{Context, Lowered};
use crate::Result;
use crate::kernels::cpu::Kernel;
use crate::kernels::cpu::recurrent::FastGrnn;

pub(super) fn fast_grnn(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let [batch, width] = context.input_shape(0)?[..] else {
        return Err(context.refuse("needs products of two axes"));
    };
    let factor = |i: usize| -> Result<f32> {
        let x = f64::from(context.constant(i)?[0]);
        Ok((1.0 / (1.0 + (-x).exp())) as f32)
    };
    let kernel = Kernel::FastGrnn(FastGrnn {
        batch,
        width,
        gate_bias: context.constant(2)?,
        update_bias: context.constant(3)?,
        zeta: factor(4)?,
        nu: factor(5)?,
    });
    let name = format!("f32_fastgrnn_{}", context.isa());
    lowered.push(context, kernel, 2, name, "")
}
