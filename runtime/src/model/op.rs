//! Operators, named after ONNX, with their attributes as typed fields.

use super::{Coordinates, Interpolation, Resized, float};
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
/// Every operator returns one f32 tensor and takes f32 tensors, but for the inputs marked I64
/// (see [`Op::is_integer_input`]). Unless said otherwise the meaning is that of the ONNX operator of
/// the same name, opset 24.
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
    /// `x [N,C,H,W], weight [C,O/groups,kh,kw], bias [O]?`: the transpose of a 2-D convolution, to
    /// `(H - 1) * stride + (kh - 1) * dilation + 1 + output_padding` rows less the padding, and columns alike.
    ConvTranspose {
        /// Vertical and horizontal stride of the convolution.
        strides: [usize; 2],
        /// Rows and columns that go from the output: `[top, left, bottom, right]`.
        pads: [usize; 4],
        /// Rows and columns more at the bottom and at the right.
        output_padding: [usize; 2],
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
    /// `x [N,C,...], scale [C], bias [C]`: every plane normalized by its own mean and variance.
    InstanceNormalization {
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
    /// `x, slope`: `x` where positive, else `slope * x`; `slope` broadcasts to `x`.
    PRelu,
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
    /// The error function.
    Erf,
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
    /// `x [N,C,H,W]`: every plane in another size.
    Resize {
        /// The size.
        resized: Resized,
        /// How elements are made.
        interpolation: Interpolation,
        /// Where they lie in the input.
        coordinates: Coordinates,
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
    /// `x * sigmoid(alpha * x)`: SiLU for `alpha` 1.
    Swish {
        /// Slope inside the sigmoid.
        alpha: f32,
    },
    /// `x * Φ(x)`.
    Gelu {
        /// Use the tanh approximation.
        approximate: bool,
    },
    /// `data, indices (I64)`: slices of `data` along `axis`, in the shape of `indices`. A negative
    /// index counts from the end.
    Gather {
        /// The axis; negative counts from the end.
        axis: i64,
    },
    /// `x [...,D], scale [D]`: `x / sqrt(mean(x²) + epsilon) * scale` over the last axis.
    RMSNormalization {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// `x [...,D], scale [D], bias [D]?`: normalized over the last axis.
    LayerNormalization {
        /// Added to the variance.
        epsilon: f32,
    },
    /// `x / ‖x‖₂` along `axis`; zeros stay.
    LpNormalization {
        /// The axis; negative counts from the end.
        axis: i64,
    },
    /// `x [N,T,heads*D], frequencies [R/2]`: rotates the first `R` elements of every head of position
    /// `p` by the angles `p * frequencies`. Positions go on from those that the session keeps.
    ///
    /// ONNX takes tables of cosines and sines instead of frequencies.
    RotaryEmbedding {
        /// Heads of `x`.
        heads: usize,
        /// Pairs are neighbours (`2i`, `2i + 1`) and not halves (`i`, `i + R/2`).
        #[serde(default)]
        interleaved: bool,
        /// Factor of cosine and sine; 1 but for a few long-context models.
        #[serde(default = "one")]
        scale: f32,
    },
    /// `x [N,T,D], table [P,D]`: `x` plus the rows of `table` from the position of its first element
    /// on. Positions go on from those that the session keeps. An extension of ONNX.
    PositionEmbedding,
    /// `q [N,T,heads*D], k [N,T,kv_heads*D], v [N,T,kv_heads*E], mask (I64) [N,T]?`: scaled
    /// dot-product attention to `[N,T,heads*E]`. Query head `h` reads key head
    /// `h / (heads / kv_heads)`; keys whose mask is 0 are not attended.
    Attention {
        /// Query heads.
        heads: usize,
        /// Key and value heads, a divisor of `heads`.
        kv_heads: usize,
        /// Element `t` attends up to element `t`.
        causal: bool,
        /// The session keeps keys and values, and later runs attend to them.
        #[serde(default)]
        cache: bool,
        /// Factor of the products; `1 / sqrt(D)` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<f32>,
    },
    /// `x [N,T,D], mask (I64) [N,T]`: mean over the elements of `T` whose mask is not 0, `[N,D]`; zeros
    /// where there is none. An extension of ONNX.
    MaskedMean,
    /// `u [N,H], h [N,H], gate_bias [H], update_bias [H], zeta [1], nu [1]`: the state after a step of a
    /// FastGRNN cell (arXiv 1901.02358) with products `u = W x + U h`: with `z = sigmoid(u + gate_bias)`,
    /// `z * h + (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * tanh(u + update_bias)`. An extension of ONNX.
    FastGRNN,
}

fn one() -> f32 {
    1.0
}

impl Op {
    /// The ONNX operator's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Conv { .. } => "Conv",
            Op::ConvTranspose { .. } => "ConvTranspose",
            Op::BatchNormalization { .. } => "BatchNormalization",
            Op::InstanceNormalization { .. } => "InstanceNormalization",
            Op::Relu => "Relu",
            Op::LeakyRelu { .. } => "LeakyRelu",
            Op::PRelu => "PRelu",
            Op::Clip { .. } => "Clip",
            Op::HardSigmoid { .. } => "HardSigmoid",
            Op::HardSwish => "HardSwish",
            Op::Sigmoid => "Sigmoid",
            Op::Tanh => "Tanh",
            Op::Erf => "Erf",
            Op::MaxPool(_) => "MaxPool",
            Op::AveragePool { .. } => "AveragePool",
            Op::Resize { .. } => "Resize",
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
            Op::Swish { .. } => "Swish",
            Op::Gelu { .. } => "Gelu",
            Op::Gather { .. } => "Gather",
            Op::RMSNormalization { .. } => "RMSNormalization",
            Op::LayerNormalization { .. } => "LayerNormalization",
            Op::LpNormalization { .. } => "LpNormalization",
            Op::RotaryEmbedding { .. } => "RotaryEmbedding",
            Op::PositionEmbedding => "PositionEmbedding",
            Op::Attention { .. } => "Attention",
            Op::MaskedMean => "MaskedMean",
            Op::FastGRNN => "FastGRNN",
        }
    }

    /// The fewest and the most inputs.
    pub const fn arity(&self) -> (usize, usize) {
        match self {
            Op::Conv { .. } | Op::ConvTranspose { .. } => (2, 3),
            Op::BatchNormalization { .. } => (5, 5),
            Op::InstanceNormalization { .. } => (3, 3),
            Op::Gemm { .. } => (2, 3),
            Op::MatMul { .. } | Op::Add | Op::Sub | Op::Mul | Op::Div | Op::PRelu => (2, 2),
            Op::Concat { .. } => (1, usize::MAX),
            Op::Gather { .. }
            | Op::RMSNormalization { .. }
            | Op::RotaryEmbedding { .. }
            | Op::PositionEmbedding
            | Op::MaskedMean => (2, 2),
            Op::LayerNormalization { .. } => (2, 3),
            Op::Attention { .. } => (3, 4),
            Op::FastGRNN => (6, 6),
            _ => (1, 1),
        }
    }

    /// Whether input `i` holds integers (I64); every other input holds floating-point numbers.
    pub const fn is_integer_input(&self, i: usize) -> bool {
        matches!(
            (self, i),
            (Op::Gather { .. } | Op::MaskedMean, 1) | (Op::Attention { .. }, 3)
        )
    }

    /// Whether the operator reads what earlier runs of a session left: keys and values, or the number
    /// of positions so far.
    pub const fn is_sequential(&self) -> bool {
        matches!(
            self,
            Op::RotaryEmbedding { .. } | Op::PositionEmbedding | Op::Attention { cache: true, .. }
        )
    }

    /// The position of the input that holds a prunable weight, for operators that have one.
    pub const fn weight_input(&self) -> Option<usize> {
        match self {
            Op::Conv { .. } | Op::ConvTranspose { .. } | Op::Gemm { .. } | Op::MatMul { .. } => {
                Some(1)
            }
            _ => None,
        }
    }
}
