//! What a name of an ONNX graph stands for while the graph is converted.

use super::ints::{Int, Ints};
use lacuna::model::{Dim, Weight};
use std::rc::Rc;

/// The value under a name.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Computed at run time.
    Tensor {
        /// The name in the new graph.
        name: String,
        /// The inferred shape.
        shape: Vec<Dim>,
    },
    /// A floating-point constant.
    Weight(Constant),
    /// Integers: constants and what is computed from shapes.
    Ints(Rc<Ints>),
}

/// A floating-point constant and the name that it has as a weight.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub name: String,
    pub weight: Weight,
    /// Whether the two axes are swapped against the tensor of that name in the file.
    pub transposed: bool,
}

impl Value {
    /// A constant as the file has it.
    pub fn weight(name: &str, weight: Weight) -> Value {
        Value::Weight(Constant {
            name: name.to_owned(),
            weight,
            transposed: false,
        })
    }

    /// An integer tensor.
    pub fn ints(ints: Ints) -> Value {
        Value::Ints(Rc::new(ints))
    }

    /// The shape.
    pub fn shape(&self) -> Vec<Dim> {
        let fixed = |shape: &[usize]| shape.iter().map(|&n| Dim::Fixed(n)).collect();
        match self {
            Value::Tensor { shape, .. } => shape.clone(),
            Value::Weight(c) => fixed(c.weight.shape()),
            Value::Ints(i) => fixed(&i.shape),
        }
    }

    /// The shape as integers.
    pub fn shape_ints(&self) -> Vec<Int> {
        self.shape().iter().map(Int::from).collect()
    }

    /// Whether the value is known before a run.
    pub fn is_constant(&self) -> bool {
        !matches!(self, Value::Tensor { .. })
    }
}
