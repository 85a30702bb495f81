//! Operators, named after ONNX, with their attributes as typed fields.

use super::float;
use serde::{Deserialize, Serialize};

/// How a windowed operator pads its two spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// `[top, left, bottom, right]`, in elements.
    Explicit([usize; 4]),
    /// Output size `ceil(input / stride)`, the odd element at the end.
    SameUpper,
    /// Output size `ceil(input / stride)`, the odd element at the start.
    SameLower,
}

impl Padding {
    /// No padding (ONNX `VALID`).
    pub const NONE: Padding = Padding::Explicit([0; 4]);
}

/// A two-dimensional pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub strides: [usize; 2],
    /// Padding of the input.
    pub padding: Padding,
    /// Vertical and horizontal dilation.
    pub dilations: [usize; 2],
    /// Round the output size up instead of down.
    pub ceil_mode: bool,
}

/// What `Pad` fills with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadMode {
    /// A constant.
    Constant(#[serde(with = "float")] f32),
    /// Mirrored without repeating the edge element.
    Reflect,
    /// The edge element.
    Edge,
}

/// An operator. Inputs and outputs are listed by [`Node`](super::Node) in the order given here.
///
/// Every operator takes and returns f32 tensors and has one output. Unless said otherwise the
/// meaning is that of the ONNX operator of the same name, opset 22.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op")]
pub enum Op {
    /// `x [N,C,H,W], weight [O,C/groups,kh,kw], bias [O]?`: 2-D convolution.
    Conv {
        /// Vertical and horizontal stride.
        strides: [usize; 2],
        /// Padding of the input.
        padding: Padding,
        /// Vertical and horizontal dilation.
        dilations: [usize; 2],
        /// Channel groups; `C` and `O` are multiples of it.
        groups: usize,
    },
    /// `x [N,C,...], scale [C], bias [C], mean [C], variance [C]`: inference mode.
    BatchNormalization {
        /// Added to the variance.
        epsilon: f32,
    },
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, else `alpha * x`.
    LeakyRelu {
        /// Slope below zero.
        alpha: f32,
    },
    /// `x` limited to `[min, max]`.
    Clip {
        /// Lower limit, if any.
        #[serde(default, with = "float::option")]
        min: Option<f32>,
        /// Upper limit, if any.
        #[serde(default, with = "float::option")]
        max: Option<f32>,
    },
    /// `max(0, min(1, alpha * x + beta))`.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// `x * max(0, min(1, x / 6 + 0.5))`.
    HardSwish,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x [N,C,H,W]`: largest element of each window; padding never wins.
    MaxPool(Window),
    /// `x [N,C,H,W]`: mean of each window.
    AveragePool {
        /// The window.
        #[serde(flatten)]
        window: Window,
        /// Whether padding counts as elements of the window.
        count_include_pad: bool,
    },
    /// `x [N,C,H,W]`: mean of each plane, `[N,C,1,1]`.
    GlobalAveragePool,
    /// `a [M,K], b, c?`: `alpha * A' * B' + beta * c`, `c` broadcast to `[M,O]`.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// Factor of `c`.
        beta: f32,
        /// `A' = Aᵀ`.
        trans_a: bool,
        /// `B' = Bᵀ`: `b` is `[O,K]`, as PyTorch stores a linear layer.
        trans_b: bool,
    },
    /// `a [...,M,K], b [...,K,N]`: batched product with broadcast of the leading axes.
    MatMul {
        /// `b` is `[...,N,K]`, so that a linear weight stays `[O,I]` (an extension of ONNX).
        #[serde(default)]
        trans_b: bool,
    },
    /// `a + b` with broadcast.
    Add,
    /// `a - b` with broadcast.
    Sub,
    /// `a * b` with broadcast.
    Mul,
    /// `a / b` with broadcast.
    Div,
    /// Any number of inputs, joined along `axis`.
    Concat {
        /// The axis; negative counts from the end.
        axis: i64,
    },
    /// Pads every axis.
    Pad {
        /// Elements before each axis, then after each; negative crops.
        pads: Vec<i64>,
        /// What to fill with.
        mode: PadMode,
    },
    /// Every `steps`-th element from `starts` to `ends` of the listed axes.
    Slice {
        /// The axes; negative counts from the end.
        axes: Vec<i64>,
        /// First index of each; negative counts from the end.
        starts: Vec<i64>,
        /// One past the last index of each, clamped to the axis.
        ends: Vec<i64>,
        /// Step of each, not zero.
        steps: Vec<i64>,
    },
    /// The same elements in another shape.
    Reshape {
        /// New sizes: 0 copies the input's, one -1 is inferred.
        shape: Vec<i64>,
    },
    /// Two axes: the product before `axis`, the product from it.
    Flatten {
        /// The axis; negative counts from the end.
        axis: i64,
    },
    /// Axes in another order.
    Transpose {
        /// Output axis `i` is input axis `perm[i]`.
        perm: Vec<usize>,
    },
    /// Removes axes of size 1.
    Squeeze {
        /// The axes; empty means every axis of size 1.
        axes: Vec<i64>,
    },
    /// Inserts axes of size 1.
    Unsqueeze {
        /// Positions in the output.
        axes: Vec<i64>,
    },
    /// Mean over axes.
    ReduceMean {
        /// The axes; empty means all.
        axes: Vec<i64>,
        /// Keep reduced axes with size 1.
        keepdims: bool,
    },
    /// `exp(x) / sum(exp(x))` along `axis`.
    Softmax {
        /// The axis; negative counts from the end.
        axis: i64,
    },
    /// `x`.
    Identity,
}

impl Op {
    /// The ONNX operator's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "Conv",
            Op::BatchNormalization { .. } => "BatchNormalization",
            Op::Relu => "Relu",
            Op::LeakyRelu { .. } => "LeakyRelu",
            Op::Clip { .. } => "Clip",
            Op::HardSigmoid { .. } => "HardSigmoid",
            Op::HardSwish => "HardSwish",
            Op::Sigmoid => "Sigmoid",
            Op::Tanh => "Tanh",
            Op::MaxPool(_) => "MaxPool",
            Op::AveragePool { .. } => "AveragePool",
            Op::GlobalAveragePool => "GlobalAveragePool",
            Op::Gemm { .. } => "Gemm",
            Op::MatMul { .. } => "MatMul",
            Op::Add => "Add",
            Op::Sub => "Sub",
            Op::Mul => "Mul",
            Op::Div => "Div",
            Op::Concat { .. } => "Concat",
            Op::Pad { .. } => "Pad",
            Op::Slice { .. } => "Slice",
            Op::Reshape { .. } => "Reshape",
            Op::Flatten { .. } => "Flatten",
            Op::Transpose { .. } => "Transpose",
            Op::Squeeze { .. } => "Squeeze",
            Op::Unsqueeze { .. } => "Unsqueeze",
            Op::ReduceMean { .. } => "ReduceMean",
            Op::Softmax { .. } => "Softmax",
            Op::Identity => "Identity",
        }
    }

    /// The fewest and the most inputs.
    pub const fn arity(&self) -> (usize, usize) {
        match self {
            Op::Conv { .. } => (2, 3),
            Op::BatchNormalization { .. } => (5, 5),
            Op::Gemm { .. } => (2, 3),
            Op::MatMul { .. } | Op::Add | Op::Sub | Op::Mul | Op::Div => (2, 2),
            Op::Concat { .. } => (1, usize::MAX),
            _ => (1, 1),
        }
    }

    /// The position of the input that holds a prunable weight, for operators that have one.
    pub const fn weight_input(&self) -> Option<usize> {
        match self {
            Op::Conv { .. } | Op::Gemm { .. } | Op::MatMul { .. } => Some(1),
            _ => None,
        }
    }
}
