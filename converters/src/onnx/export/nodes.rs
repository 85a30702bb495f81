//! Operators, each as the ONNX operator of its name or as a few that come to the same.

use super::super::proto::AttributeProto;
use super::build::Builder;
use super::encoder;
use lacuna::model::{Coordinates, Dim, Interpolation, Node, Op, PadMode, Padding, Resized, Window};

/// The numbers of `AttributeProto.AttributeType`.
const FLOAT: i32 = 1;
const INT: i32 = 2;
const STRING: i32 = 3;
const INTS: i32 = 7;

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        f,
        r#type: FLOAT,
        ..AttributeProto::default()
    }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i,
        r#type: INT,
        ..AttributeProto::default()
    }
}

pub fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: values.into_iter().map(|v| v as i64).collect(),
        r#type: INTS,
        ..AttributeProto::default()
    }
}

fn text(name: &str, value: &'static str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        s: value.as_bytes().into(),
        r#type: STRING,
        ..AttributeProto::default()
    }
}

fn padding(padding: Padding) -> AttributeProto {
    match padding {
        Padding::Explicit(pads) => ints("pads", pads),
        Padding::SameUpper => text("auto_pad", "SAME_UPPER"),
        Padding::SameLower => text("auto_pad", "SAME_LOWER"),
    }
}

fn window(window: &Window) -> Vec<AttributeProto> {
    let mut list = vec![
        ints("kernel_shape", window.kernel),
        ints("strides", window.strides),
        padding(window.padding),
        int("ceil_mode", i64::from(window.ceil_mode)),
    ];
    if window.dilations != [1, 1] {
        list.push(ints("dilations", window.dilations));
    }
    list
}

/// A step of FastGRNN from the operators that ONNX has, but for the last: the sum of what is returned.
fn fast_grnn(b: &mut Builder<'_>, node: &Node) -> Vec<String> {
    let [u, h, gate, update, zeta, nu] = [0, 1, 2, 3, 4, 5].map(|i| node.inputs[i].clone());
    let one = b.scalar(node, "one", 1.0);
    // Constants are folded, since an operator over nothing else is not read back.
    let mut factor = |what: &str, name: &str| {
        let value = b.model.weights().get(name).and_then(|w| w.to_f32());
        let value = value.and_then(|v| v.first().copied());
        value.map(|x| b.scalar(node, what, (1.0 / (1.0 + (-f64::from(x)).exp())) as f32))
    };
    let factors = [factor("zeta", &zeta), factor("nu", &nu)];
    let mut of = |op: &str, from: &[&String]| {
        b.inner(
            node,
            op,
            from.iter().map(|s| s.to_string()).collect(),
            vec![],
        )
    };
    let gate = of("Add", &[&u, &gate]);
    let z = of("Sigmoid", &[&gate]);
    let update = of("Add", &[&u, &update]);
    let c = of("Tanh", &[&update]);
    let [zeta_factor, nu_factor] = factors;
    let zeta = zeta_factor.unwrap_or_else(|| of("Sigmoid", &[&zeta]));
    let nu = nu_factor.unwrap_or_else(|| of("Sigmoid", &[&nu]));
    let open = of("Sub", &[&one, &z]);
    let open = of("Mul", &[&open, &zeta]);
    let weight = of("Add", &[&open, &nu]);
    vec![of("Mul", &[&z, &h]), of("Mul", &[&weight, &c])]
}

/// As PyTorch spells it, which every operator set has; `Gelu` is there from 20 on.
fn gelu(b: &mut Builder<'_>, node: &Node, approximate: bool) {
    let x = node.inputs[0].clone();
    let with = |b: &mut Builder<'_>, op: &str, a: &str, what: &str, value: f32| {
        let value = b.scalar(node, what, value);
        b.inner(node, op, vec![a.to_owned(), value], vec![])
    };
    let gate = match approximate {
        false => {
            let scaled = with(b, "Div", &x, "root_2", std::f32::consts::SQRT_2);
            b.inner(node, "Erf", vec![scaled], vec![])
        }
        true => {
            let square = b.inner(node, "Mul", vec![x.clone(), x.clone()], vec![]);
            let cube = b.inner(node, "Mul", vec![square, x.clone()], vec![]);
            let cube = with(b, "Mul", &cube, "cubic", 0.044715);
            let sum = b.inner(node, "Add", vec![x.clone(), cube], vec![]);
            let scaled = with(b, "Mul", &sum, "scale", 0.797_884_6);
            b.inner(node, "Tanh", vec![scaled], vec![])
        }
    };
    let gate = with(b, "Add", &gate, "one", 1.0);
    let product = b.inner(node, "Mul", vec![x, gate], vec![]);
    let half = b.scalar(node, "half", 0.5);
    b.last(node, "Mul", vec![product, half], vec![]);
}

/// Whether positions go on from run to run: there is attention that keeps keys and values, or no attention at all.
fn keeps_state(b: &Builder<'_>) -> bool {
    let mut nodes = b.model.graph().nodes.iter();
    !nodes.any(|n| matches!(n.op, Op::Attention { cache: false, .. }))
}

/// Adds a node.
pub fn convert(b: &mut Builder<'_>, node: &Node) -> Result<(), String> {
    let mut inputs = node.inputs.clone();
    let attributes = match &node.op {
        Op::Conv {
            strides,
            padding: pads,
            dilations,
            groups,
        } => vec![
            ints("strides", *strides),
            padding(*pads),
            ints("dilations", *dilations),
            int("group", *groups as i64),
        ],
        Op::ConvTranspose {
            strides,
            pads,
            output_padding,
            dilations,
            groups,
        } => vec![
            ints("strides", *strides),
            ints("pads", *pads),
            ints("output_padding", *output_padding),
            ints("dilations", *dilations),
            int("group", *groups as i64),
        ],
        Op::BatchNormalization { epsilon } | Op::InstanceNormalization { epsilon } => {
            vec![float("epsilon", *epsilon)]
        }
        Op::LeakyRelu { alpha } => vec![float("alpha", *alpha)],
        Op::HardSigmoid { alpha, beta } => vec![float("alpha", *alpha), float("beta", *beta)],
        Op::Clip { min, max } => {
            let min = min.map_or(String::new(), |v| b.scalar(node, "min", v));
            let max = max.map(|v| b.scalar(node, "max", v));
            inputs.push(min);
            inputs.extend(max);
            while inputs.last().is_some_and(String::is_empty) {
                inputs.pop();
            }
            vec![]
        }
        Op::MaxPool(w) => window(w),
        Op::AveragePool {
            window: w,
            count_include_pad,
        } => {
            if w.dilations != [1, 1] {
                b.needs(19);
            }
            let mut list = window(w);
            list.push(int("count_include_pad", i64::from(*count_include_pad)));
            list
        }
        Op::Resize {
            resized,
            interpolation,
            coordinates,
        } => {
            inputs.push(String::new());
            match resized {
                Resized::Scales([h, w]) => {
                    inputs.push(b.floats(node, "scales", &[1.0, 1.0, *h, *w]))
                }
                Resized::Sizes(sizes) => {
                    inputs.push(String::new());
                    inputs.push(b.ints(node, "sizes", &sizes.map(|n| n as i64)));
                }
            }
            let (mode, nearest) = match interpolation {
                Interpolation::NearestPreferFloor => ("nearest", "round_prefer_floor"),
                Interpolation::NearestPreferCeil => ("nearest", "round_prefer_ceil"),
                Interpolation::NearestFloor => ("nearest", "floor"),
                Interpolation::NearestCeil => ("nearest", "ceil"),
                Interpolation::Linear => ("linear", "round_prefer_floor"),
            };
            let coordinates = match coordinates {
                Coordinates::HalfPixel => "half_pixel",
                Coordinates::PytorchHalfPixel => "pytorch_half_pixel",
                Coordinates::AlignCorners => "align_corners",
                Coordinates::Asymmetric => "asymmetric",
            };
            let mut list = vec![
                text("mode", mode),
                text("nearest_mode", nearest),
                text("coordinate_transformation_mode", coordinates),
            ];
            if let Resized::Sizes(_) = resized {
                list.push(ints("axes", [2, 3]));
            }
            list
        }
        Op::Gemm {
            alpha,
            beta,
            trans_a,
            trans_b,
        } => vec![
            float("alpha", *alpha),
            float("beta", *beta),
            int("transA", i64::from(*trans_a)),
            int("transB", i64::from(*trans_b)),
        ],
        Op::MatMul { trans_b } => {
            if *trans_b && !b.is_transposed(&inputs[1]) {
                let rank = b.shapes.get(&inputs[1]).map_or(2, Vec::len).max(2);
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(rank - 2, rank - 1);
                let from = vec![inputs[1].clone()];
                inputs[1] = b.inner(node, "Transpose", from, vec![ints("perm", perm)]);
            }
            vec![]
        }
        Op::Concat { axis } | Op::Flatten { axis } | Op::Softmax { axis } | Op::Gather { axis } => {
            vec![int("axis", *axis)]
        }
        Op::LpNormalization { axis } => vec![int("axis", *axis), int("p", 2)],
        Op::Pad { pads, mode } => {
            inputs.push(b.ints(node, "pads", pads));
            vec![match mode {
                PadMode::Constant(value) => {
                    inputs.push(b.scalar(node, "value", *value));
                    text("mode", "constant")
                }
                PadMode::Reflect => text("mode", "reflect"),
                PadMode::Edge => text("mode", "edge"),
            }]
        }
        Op::Slice {
            axes,
            starts,
            ends,
            steps,
        } => {
            for (what, values) in [
                ("starts", starts),
                ("ends", ends),
                ("axes", axes),
                ("steps", steps),
            ] {
                inputs.push(b.ints(node, what, values));
            }
            vec![]
        }
        Op::Reshape { shape } => {
            inputs.push(b.ints(node, "shape", shape));
            vec![]
        }
        Op::Transpose { perm } => vec![ints("perm", perm.iter().copied())],
        Op::Squeeze { axes } => {
            if !axes.is_empty() {
                inputs.push(b.ints(node, "axes", axes));
            }
            vec![]
        }
        Op::Unsqueeze { axes } => {
            inputs.push(b.ints(node, "axes", axes));
            vec![]
        }
        Op::ReduceMean { axes, keepdims } => {
            if !axes.is_empty() {
                inputs.push(b.ints(node, "axes", axes));
            }
            vec![int("keepdims", i64::from(*keepdims))]
        }
        Op::Gelu { approximate } => {
            gelu(b, node, *approximate);
            return Ok(());
        }
        Op::LayerNormalization { epsilon } => vec![float("epsilon", *epsilon), int("axis", -1)],
        Op::RMSNormalization { epsilon } => {
            b.needs(23);
            vec![float("epsilon", *epsilon), int("axis", -1)]
        }
        Op::Swish { alpha } => {
            let x = inputs[0].clone();
            let mut scaled = x.clone();
            if *alpha != 1.0 {
                let alpha = b.scalar(node, "alpha", *alpha);
                scaled = b.inner(node, "Mul", vec![x.clone(), alpha], vec![]);
            }
            let gate = b.inner(node, "Sigmoid", vec![scaled], vec![]);
            b.last(node, "Mul", vec![x, gate], vec![]);
            return Ok(());
        }
        Op::FastGRNN => {
            let parts = fast_grnn(b, node);
            b.last(node, "Add", parts, vec![]);
            return Ok(());
        }
        Op::Relu
        | Op::HardSwish
        | Op::Sigmoid
        | Op::Tanh
        | Op::Erf
        | Op::GlobalAveragePool
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::PRelu
        | Op::Identity => vec![],
        Op::PositionEmbedding if !keeps_state(b) => {
            encoder::positions(b, node);
            return Ok(());
        }
        Op::Attention {
            heads,
            kv_heads,
            causal: false,
            cache: false,
            scale,
        } if heads == kv_heads => {
            let width = match b.shapes.get(&node.inputs[0]).map(Vec::as_slice) {
                Some([.., Dim::Fixed(width)]) => width / (*heads).max(1),
                _ => return Err("its input has no width".into()),
            };
            let scale = scale.unwrap_or(1.0 / (width as f32).sqrt());
            encoder::attention(b, node, *heads, scale);
            return Ok(());
        }
        Op::MaskedMean => {
            encoder::masked_mean(b, node);
            return Ok(());
        }
        Op::RotaryEmbedding { .. } | Op::PositionEmbedding | Op::Attention { .. } => {
            return Err(
                "has no form in ONNX here: language models keep keys, values and positions from run to run; \
                 export their weights with --dense"
                    .into(),
            );
        }
    };
    b.last(node, node.op.name(), inputs, attributes);
    Ok(())
}
