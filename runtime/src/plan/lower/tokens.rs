//! Which values hold the tokens of a sequence, one after the other.

use crate::model::{Op, Shapes};
use crate::plan::{PlanOptions, fixed_shape};
use crate::{Model, Result};
use std::collections::HashSet;

/// The values of shape `[1, T, ...]` whose element `t` belongs to token `t` of a run. Empty for plans
/// without a sequence. A run of fewer tokens needs only their leading elements.
#[derive(Default)]
pub(super) struct Tokens {
    planned: usize,
    names: HashSet<String>,
}

impl Tokens {
    /// Follows the tokens from the inputs through the operators that keep them apart.
    pub fn find(model: &Model, shapes: &Shapes, options: &PlanOptions) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        if options.capacity.is_none() {
            return Ok(tokens);
        }
        let graph = model.graph();
        for input in &graph.inputs {
            if let [1, t, ..] = fixed_shape(shapes, &input.name)?[..]
                && (tokens.planned == 0 || tokens.planned == t)
            {
                tokens.planned = t;
                tokens.names.insert(input.name.clone());
            }
        }
        for node in &graph.nodes {
            let of = |i: usize| node.inputs.get(i).is_some_and(|n| tokens.names.contains(n));
            let out = fixed_shape(shapes, &node.output)?;
            let rank = |i: usize| fixed_shape(shapes, &node.inputs[i]).map(|s| s.len());
            let follows = match &node.op {
                Op::Gather { axis: 0 } => of(1) && !of(0),
                Op::Add | Op::Sub | Op::Mul | Op::Div => {
                    (of(0) && rank(0)? == out.len()) || (of(1) && rank(1)? == out.len())
                }
                Op::MatMul { .. } => of(0) && rank(0)? == 3 && rank(1)? == 2,
                Op::Softmax { axis } | Op::LpNormalization { axis } => {
                    of(0) && (*axis == -1 || *axis == out.len() as i64 - 1) && out.len() > 2
                }
                Op::RMSNormalization { .. } | Op::LayerNormalization { .. } => {
                    of(0) && out.len() > 2
                }
                Op::Relu
                | Op::LeakyRelu { .. }
                | Op::Clip { .. }
                | Op::HardSigmoid { .. }
                | Op::HardSwish
                | Op::Sigmoid
                | Op::Tanh
                | Op::Erf
                | Op::Swish { .. }
                | Op::Gelu { .. }
                | Op::Identity
                | Op::Reshape { .. }
                | Op::Flatten { .. }
                | Op::Squeeze { .. }
                | Op::Unsqueeze { .. }
                | Op::RotaryEmbedding { .. }
                | Op::PositionEmbedding
                | Op::Attention { .. } => of(0),
                _ => false,
            };
            if follows && out.starts_with(&[1, tokens.planned]) {
                tokens.names.insert(node.output.clone());
            }
        }
        Ok(tokens)
    }

    /// Elements of one token in `name`, a value of this shape; 0 where it holds no tokens.
    pub fn elements(&self, name: &str, shape: &[usize]) -> usize {
        if self.names.contains(name) {
            shape.iter().skip(2).product()
        } else {
            0
        }
    }
}
