//! Layers of real networks: what benches of kernels run over.

use lacuna::model::{Padding, Window};

/// Outputs and inputs of linear layers: those of SmolLM2-135M, its output layer last, and a larger model's.
pub const LINEAR: [(usize, usize); 6] = [
    (576, 576),
    (192, 576),
    (1536, 576),
    (576, 1536),
    (49152, 576),
    (4096, 4096),
];

/// Tokens and features of SmolLM2-135M's steps, for one token and a chunk.
pub const TOKENS: [(usize, usize); 2] = [(1, 576), (128, 576)];

/// Query heads, key and value heads, and the width of one, of SmolLM2-135M.
pub const HEADS: (usize, usize, usize) = (9, 3, 64);

/// Channels and size of pooled planes: ResNet-50's stem and its last layer.
pub const POOLED: [(usize, usize); 2] = [(64, 112), (2048, 7)];

/// The max pooling of ResNets.
pub const MAX_POOL: Window = Window {
    kernel: [3; 2],
    strides: [2; 2],
    padding: Padding::Explicit([1; 4]),
    dilations: [1; 2],
    ceil_mode: false,
};

/// A square convolution as it stands in a network, padded to keep the size.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Where it stands.
    pub name: &'static str,
    /// Input and output channels.
    pub channels: (usize, usize),
    /// Kernel height and width.
    pub kernel: usize,
    /// Vertical and horizontal stride.
    pub stride: usize,
    /// Input height and width.
    pub size: usize,
    /// Groups of channels.
    pub groups: usize,
}

const fn conv(
    name: &'static str,
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
    size: usize,
) -> Conv {
    Conv {
        name,
        channels,
        kernel,
        stride,
        size,
        groups: 1,
    }
}

const fn depthwise(name: &'static str, channels: usize, stride: usize, size: usize) -> Conv {
    Conv {
        groups: channels,
        ..conv(name, (channels, channels), 3, stride, size)
    }
}

/// 1x1 convolutions.
pub const POINTWISE: [Conv; 9] = [
    conv("resnet50_s0_reduce", (256, 64), 1, 1, 56),
    conv("resnet50_s0_expand", (64, 256), 1, 1, 56),
    conv("resnet50_s2_reduce", (1024, 256), 1, 1, 14),
    conv("resnet50_s2_down", (512, 1024), 1, 2, 28),
    conv("resnet50_s3_expand", (512, 2048), 1, 1, 7),
    conv("mobilenetv1_pw1", (64, 128), 1, 1, 56),
    conv("mobilenetv1_pw6", (512, 512), 1, 1, 14),
    conv("mobilenetv1_pw12", (1024, 1024), 1, 1, 7),
    conv("mobilenetv2_project", (144, 24), 1, 1, 56),
];

/// 3x3 convolutions.
pub const SPATIAL: [Conv; 5] = [
    conv("resnet50_s0", (64, 64), 3, 1, 56),
    conv("resnet50_s1", (128, 128), 3, 1, 28),
    conv("resnet50_s2_stride2", (256, 256), 3, 2, 28),
    conv("resnet50_s2", (256, 256), 3, 1, 14),
    conv("resnet50_s3", (512, 512), 3, 1, 7),
];

/// Depthwise convolutions and stems are not pruned.
pub const UNPRUNED: [Conv; 5] = [
    depthwise("mobilenetv1_dw1", 64, 2, 112),
    depthwise("mobilenetv1_dw6", 512, 1, 14),
    depthwise("mobilenetv2_96", 96, 2, 112),
    depthwise("mobilenetv2_144", 144, 1, 56),
    conv("resnet50_stem", (3, 64), 7, 2, 224),
];

/// Name, rows of the input, inputs and outputs of a linear layer.
pub const GEMMS: [(&str, usize, usize, usize); 4] = [
    ("resnet50_classifier", 1, 2048, 1000),
    ("mobilenet_classifier_batch16", 16, 1280, 1000),
    ("4096x4096", 1, 4096, 4096),
    ("4096x4096_batch64", 64, 4096, 4096),
];
