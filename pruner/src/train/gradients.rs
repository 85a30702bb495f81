//! Gradients against candle's, and against central differences in f64.

use super::engine::Engine;
use super::loader::Batch;
use super::network::Network;
use super::tape::Tape;
use candle_core::{DType, Device, Tensor, Var};
use lacuna::Model;
use lacuna::candle::Reference;
use lacuna::model::{
    Coordinates, Dim, Graph, Input, Interpolation, Node, Op, PadMode, Padding, Resized, Weight,
    Weights, Window,
};
use std::collections::HashMap;

pub(super) const BATCH: usize = 3;
const CLASSES: usize = 5;

pub(super) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A network under test: `x [N, C, H, W]`, nodes, and a linear layer to the classes.
pub(super) struct Net {
    pub graph: Graph,
    pub weights: Weights,
    pub last: String,
    input: [usize; 3],
}

impl Net {
    pub fn new(input: [usize; 3]) -> Net {
        let mut shape = vec![Dim::Symbol("N".into())];
        shape.extend(input.map(Dim::Fixed));
        let graph = Graph {
            inputs: vec![Input::f32("x", shape)],
            ..Graph::default()
        };
        Net {
            graph,
            weights: Weights::new(),
            last: "x".into(),
            input,
        }
    }

    pub fn weight(&mut self, shape: &[usize]) -> String {
        let name = format!("w{}", self.weights.len());
        let values = numbers(shape.iter().product(), self.weights.len() as u64 + 7);
        self.weights
            .insert(name.clone(), Weight::from_f32(shape, &values));
        name
    }

    pub fn node(&mut self, op: Op, inputs: &[&str]) -> String {
        let name = format!("n{}", self.graph.nodes.len());
        self.graph.nodes.push(Node {
            name: name.clone(),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: name.clone(),
        });
        self.last = name.clone();
        name
    }

    /// A node on the last value.
    pub fn then(mut self, op: Op) -> Net {
        let last = self.last.clone();
        self.node(op, &[&last]);
        self
    }

    pub fn conv(
        mut self,
        shape: [usize; 4],
        strides: [usize; 2],
        pads: [usize; 4],
        dilations: [usize; 2],
        groups: usize,
    ) -> Net {
        let (w, b) = (self.weight(&shape), self.weight(&shape[..1]));
        let op = Op::Conv {
            strides,
            padding: Padding::Explicit(pads),
            dilations,
            groups,
        };
        let last = self.last.clone();
        self.node(op, &[&last, &w, &b]);
        self
    }

    /// A pointwise convolution, so that gradients go through what follows.
    fn stem(self, channels: usize) -> Net {
        let own = self.input[0];
        self.conv([channels, own, 1, 1], [1, 1], [0; 4], [1, 1], 1)
    }

    /// The last value flattened and joined to the classes.
    pub fn model(mut self) -> Model {
        let last = self.last.clone();
        let flat = self.node(Op::Flatten { axis: 1 }, &[&last]);
        self.graph.outputs = vec![flat.clone()];
        let probe = Model::new(self.graph.clone(), self.weights.clone()).unwrap();
        let bound = [("N".to_owned(), BATCH)].into();
        let shapes = lacuna::model::infer_shapes(probe.graph(), probe.weights(), &bound).unwrap();
        let Dim::Fixed(width) = shapes[&flat][1] else {
            panic!()
        };
        let (w, b) = (self.weight(&[CLASSES, width]), self.weight(&[CLASSES]));
        let op = Op::Gemm {
            alpha: 0.5,
            beta: 2.0,
            trans_a: false,
            trans_b: true,
        };
        let logits = self.node(op, &[&flat, &w, &b]);
        self.graph.outputs = vec![logits];
        Model::new(self.graph, self.weights).unwrap()
    }
}

pub(super) fn images(model: &Model) -> (Vec<f32>, [usize; 3]) {
    let sizes: Vec<usize> = model.graph().inputs[0].shape[1..]
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) => 1,
        })
        .collect();
    let input = [sizes[0], sizes[1], sizes[2]];
    (numbers(BATCH * input.iter().product::<usize>(), 99), input)
}

/// Planes to channels last.
pub(super) fn channels_last(x: &[f32], [c, h, w]: [usize; 3]) -> Vec<f32> {
    let at = |n: usize, p: usize, i: usize| x[(n * c + i) * h * w + p];
    (0..BATCH)
        .flat_map(|n| (0..h * w).flat_map(move |p| (0..c).map(move |i| at(n, p, i))))
        .collect()
}

pub(super) fn labels() -> Vec<usize> {
    (0..BATCH).map(|n| n * 2 % CLASSES).collect()
}

pub(super) fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 2e-4 * scale,
            "{what}[{i}]: {a} is not {b} (largest {scale})"
        );
    }
}

/// A model in candle ops, and its weights as variables.
pub(super) fn reference(model: &Model) -> (Reference, HashMap<String, Var>) {
    let variable = |(name, weight): (&String, &Weight)| {
        let values = weight.to_f32().unwrap();
        let tensor = Tensor::from_vec(values, weight.shape(), &Device::Cpu).unwrap();
        (name.clone(), Var::from_tensor(&tensor).unwrap())
    };
    let vars: HashMap<String, Var> = model.weights().iter().map(variable).collect();
    let tensor = |(n, v): (&String, &Var)| (n.clone(), v.as_tensor().clone());
    let tensors = vars.iter().map(tensor).collect();
    (Reference::with_weights(model, tensors).unwrap(), vars)
}

/// Compares the gradient of every weight with candle's.
fn against_candle(what: &str, net: Net) {
    let model = net.model();
    let (x, input) = images(&model);
    let mut network = Network::new(&model).unwrap();
    let batch = Batch::of_images(&channels_last(&x, input), &labels());
    let loss = Tape::new()
        .unwrap()
        .step(&mut network, &batch, 0.1)
        .unwrap()
        .remove(0);

    let device = Device::Cpu;
    let (reference, vars) = reference(&model);
    let x = Tensor::from_vec(x, [&[BATCH][..], &input].concat(), &device).unwrap();
    let logits = reference.run(&[x]).unwrap().remove(0);
    let log = candle_nn::ops::log_softmax(&logits, 1).unwrap();
    let even = 0.1 / CLASSES as f32;
    let target: Vec<f32> = labels()
        .iter()
        .flat_map(|&l| (0..CLASSES).map(move |c| even + if c == l { 0.9 } else { 0.0 }))
        .collect();
    let target = Tensor::from_vec(target, (BATCH, CLASSES), &device).unwrap();
    let expected = ((log * target).unwrap().sum_all().unwrap() * (-1.0 / BATCH as f64)).unwrap();
    let value = expected
        .to_dtype(DType::F64)
        .unwrap()
        .to_scalar::<f64>()
        .unwrap();
    assert!(
        (loss.sum / BATCH as f64 - value).abs() < 1e-4 * value.abs().max(1.0),
        "{what}: loss"
    );
    let gradients = expected.backward().unwrap();
    for (p, own) in network.parameters.iter().zip(&network.gradients) {
        assert_eq!(own.len(), p.data.len(), "{what}: {} is not trained", p.name);
        let Some(g) = gradients.get(vars[&p.name].as_tensor()) else {
            continue;
        };
        let g = g.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        close(&format!("{what}: {}", p.name), own, &g);
    }
}

fn net() -> Net {
    Net::new([3, 7, 9]).stem(6)
}

#[test]
fn convolutions_have_candles_gradients() {
    for (shape, strides, pads, dilations, groups) in [
        ([5, 6, 3, 3], [1, 1], [1; 4], [1, 1], 1),
        ([35, 6, 3, 3], [1, 1], [0, 2, 1, 0], [1, 1], 1),
        ([5, 6, 3, 3], [2, 2], [1; 4], [1, 1], 1),
        ([5, 6, 1, 1], [2, 2], [0; 4], [1, 1], 1),
        ([4, 6, 3, 2], [1, 2], [2, 1, 0, 1], [2, 1], 1),
        ([4, 6, 3, 3], [1, 1], [2; 4], [2, 2], 1),
        ([6, 1, 3, 3], [1, 1], [1; 4], [1, 1], 6),
        ([6, 1, 5, 3], [2, 1], [2, 1, 2, 1], [1, 1], 6),
        ([12, 1, 3, 3], [2, 2], [1; 4], [1, 1], 6),
        ([4, 3, 3, 3], [1, 1], [1; 4], [1, 1], 2),
    ] {
        let what =
            format!("conv {shape:?} strides {strides:?} dilations {dilations:?} groups {groups}");
        against_candle(&what, net().conv(shape, strides, pads, dilations, groups));
    }
}

#[test]
fn transposed_convolutions_have_candles_gradients() {
    for (own, kernel, strides, pads, output_padding, dilations, groups) in [
        (5, [2, 2], [2, 2], [0; 4], [0, 0], [1, 1], 1),
        (35, [3, 3], [2, 2], [1; 4], [1, 1], [1, 1], 1),
        (5, [4, 3], [2, 1], [1, 0, 2, 1], [0, 0], [1, 1], 1),
        (4, [3, 3], [1, 1], [1; 4], [0, 0], [1, 1], 1),
        (4, [3, 2], [3, 2], [0, 1, 1, 0], [2, 0], [2, 3], 1),
        (2, [3, 3], [2, 2], [1; 4], [0, 1], [1, 1], 3),
        (1, [4, 4], [2, 2], [1; 4], [0, 0], [1, 1], 6),
    ] {
        let mut net = net();
        let x = net.last.clone();
        let (w, b) = (
            net.weight(&[6, own, kernel[0], kernel[1]]),
            net.weight(&[own * groups]),
        );
        let op = Op::ConvTranspose {
            strides,
            pads,
            output_padding,
            dilations,
            groups,
        };
        net.node(op.clone(), &[&x, &w, &b]);
        against_candle(&format!("{op:?}"), net);
    }
}

#[test]
fn normalised_planes_and_slopes_have_candles_gradients() {
    // Behind the stem alone its bias would have no gradient.
    let mut planes = net().then(Op::Tanh);
    let (x, s, b) = (
        planes.last.clone(),
        planes.weight(&[6]),
        planes.weight(&[6]),
    );
    planes.node(Op::InstanceNormalization { epsilon: 1e-3 }, &[&x, &s, &b]);
    against_candle("instance normalisation", planes);
    for shape in [&[6, 1, 1][..], &[1], &[6, 1, 9]] {
        let mut slopes = net();
        let (x, s) = (slopes.last.clone(), slopes.weight(shape));
        slopes.node(Op::PRelu, &[&x, &s]);
        against_candle(&format!("slopes {shape:?}"), slopes);
    }
}

#[test]
fn functions_of_one_number_have_candles_gradients() {
    for op in [
        Op::Relu,
        Op::LeakyRelu { alpha: 0.1 },
        Op::Clip {
            min: Some(-0.5),
            max: Some(0.4),
        },
        Op::HardSigmoid {
            alpha: 0.5,
            beta: 0.4,
        },
        Op::HardSwish,
        Op::Sigmoid,
        Op::Tanh,
        Op::Erf,
        Op::Swish { alpha: 1.5 },
        Op::Gelu { approximate: true },
        Op::Gelu { approximate: false },
        Op::Identity,
        Op::Softmax { axis: 1 },
        Op::Softmax { axis: -1 },
    ] {
        against_candle(&format!("{op:?}"), net().then(op));
    }
}

#[test]
fn pools_and_moves_have_candles_gradients() {
    let window = |kernel, strides, pads, ceil_mode| Window {
        kernel,
        strides,
        padding: Padding::Explicit(pads),
        dilations: [1, 1],
        ceil_mode,
    };
    for op in [
        Op::MaxPool(window([2, 3], [2, 2], [0; 4], false)),
        Op::MaxPool(window([3, 3], [2, 2], [1; 4], true)),
        Op::AveragePool {
            window: window([3, 2], [2, 1], [1, 0, 1, 1], false),
            count_include_pad: false,
        },
        Op::AveragePool {
            window: window([3, 3], [2, 2], [1; 4], true),
            count_include_pad: true,
        },
        Op::Resize {
            resized: Resized::Scales([2.0, 1.5]),
            interpolation: Interpolation::NearestFloor,
            coordinates: Coordinates::Asymmetric,
        },
        Op::Resize {
            resized: Resized::Sizes([13, 5]),
            interpolation: Interpolation::Linear,
            coordinates: Coordinates::HalfPixel,
        },
        Op::Resize {
            resized: Resized::Sizes([10, 12]),
            interpolation: Interpolation::Linear,
            coordinates: Coordinates::AlignCorners,
        },
        Op::GlobalAveragePool,
        Op::ReduceMean {
            axes: vec![2, 3],
            keepdims: false,
        },
        Op::ReduceMean {
            axes: vec![1],
            keepdims: true,
        },
        Op::Pad {
            pads: vec![0, 2, 1, 0, 0, 1, 0, -2],
            mode: PadMode::Constant(0.25),
        },
        Op::Pad {
            pads: vec![0, 0, 2, 3, 0, 0, 1, 2],
            mode: PadMode::Reflect,
        },
        Op::Pad {
            pads: vec![0, 0, 2, 3, 0, 0, 1, 2],
            mode: PadMode::Edge,
        },
        Op::Slice {
            axes: vec![2, 3],
            starts: vec![0, 0],
            ends: vec![i64::MAX; 2],
            steps: vec![2, 2],
        },
        Op::Slice {
            axes: vec![1, -1],
            starts: vec![1, -1],
            ends: vec![5, 1],
            steps: vec![1, -3],
        },
        Op::Transpose {
            perm: vec![0, 3, 1, 2],
        },
        Op::Reshape {
            shape: vec![0, 9, 14, 3],
        },
        Op::Reshape {
            shape: vec![0, -1, 7],
        },
        Op::Unsqueeze { axes: vec![2] },
    ] {
        against_candle(&format!("{op:?}"), net().then(op));
    }
}

#[test]
fn sums_products_and_joins_have_candles_gradients() {
    for op in [Op::Add, Op::Sub, Op::Mul, Op::Div] {
        // Two readers of one value, of the same shape.
        let mut two = net();
        let a = two.last.clone();
        let b = two.node(Op::Sigmoid, &[&a]);
        two.node(op.clone(), &[&a, &b]);
        against_candle(&format!("{op:?}"), two);
        // A number for each channel, as squeeze and excitation has it.
        let mut scaled = net();
        let a = scaled.last.clone();
        let mean = scaled.node(Op::GlobalAveragePool, &[&a]);
        let gate = scaled.node(Op::Sigmoid, &[&mean]);
        scaled.node(op.clone(), &[&a, &gate]);
        against_candle(&format!("{op:?} by channel"), scaled);
        // A weight.
        let mut weighted = net();
        let (a, w) = (weighted.last.clone(), weighted.weight(&[6, 1, 9]));
        weighted.node(op.clone(), &[&a, &w]);
        against_candle(&format!("{op:?} of a weight"), weighted);
    }
    let mut residual = net();
    let a = residual.last.clone();
    let b = residual.node(Op::Tanh, &[&a]);
    let sum = residual.node(Op::Add, &[&a, &b]);
    residual.node(Op::Relu, &[&sum]);
    against_candle("a sum and its activation", residual);
    for axis in [1, 3] {
        let mut joined = net();
        let a = joined.last.clone();
        let b = joined.node(Op::Relu, &[&a]);
        joined.node(Op::Concat { axis }, &[&a, &b, &a]);
        against_candle(&format!("concat along {axis}"), joined);
    }
    let mut matmul = net().then(Op::Flatten { axis: 1 });
    let (a, w) = (matmul.last.clone(), matmul.weight(&[378, 11]));
    matmul.node(Op::MatMul { trans_b: false }, &[&a, &w]);
    against_candle("matmul", matmul);
}

/// `conv 3x3 -> norm -> relu -> max pool 2x2 -> linear`, in f64 and by the definitions.
fn loss_in_f64(
    x: &[f64],
    [c, h, w]: [usize; 3],
    p: &HashMap<String, Vec<f64>>,
    outputs: usize,
) -> f64 {
    let (kernel, scale, offset, matrix, bias) = (&p["w0"], &p["w1"], &p["w2"], &p["w5"], &p["w6"]);
    let at = |n: usize, i: usize, y: isize, z: isize| match (usize::try_from(y), usize::try_from(z))
    {
        (Ok(y), Ok(z)) if y < h && z < w => x[((n * c + i) * h + y) * w + z],
        _ => 0.0,
    };
    let mut conv = vec![0.0; BATCH * outputs * h * w];
    for (j, out) in conv.iter_mut().enumerate() {
        let (n, o, y, z) = (
            j / (outputs * h * w),
            j / (h * w) % outputs,
            j / w % h,
            j % w,
        );
        for t in 0..c * 9 {
            let (i, ky, kx) = (t / 9, t / 3 % 3, t % 3);
            *out += kernel[o * c * 9 + t] * at(n, i, (y + ky) as isize - 1, (z + kx) as isize - 1);
        }
    }
    let plane = h * w;
    for o in 0..outputs {
        let own: Vec<usize> = (0..BATCH)
            .flat_map(|n| (0..plane).map(move |q| (n * outputs + o) * plane + q))
            .collect();
        let mean = own.iter().map(|&i| conv[i]).sum::<f64>() / own.len() as f64;
        let variance =
            own.iter().map(|&i| (conv[i] - mean).powi(2)).sum::<f64>() / own.len() as f64;
        for i in own {
            conv[i] = ((conv[i] - mean) / (variance + 1e-5).sqrt() * scale[o] + offset[o]).max(0.0);
        }
    }
    let (ph, pw) = (h / 2, w / 2);
    let width = outputs * ph * pw;
    let mut loss = 0.0;
    for (n, label) in labels().into_iter().enumerate() {
        let pooled: Vec<f64> = (0..width)
            .map(|j| {
                let (o, y, z) = (j / (ph * pw), j / pw % ph, j % pw);
                let at = |dy, dz| conv[((n * outputs + o) * h + 2 * y + dy) * w + 2 * z + dz];
                at(0, 0).max(at(0, 1)).max(at(1, 0)).max(at(1, 1))
            })
            .collect();
        let logit = |k: usize| {
            let sum: f64 = pooled
                .iter()
                .zip(&matrix[k * width..])
                .map(|(a, b)| a * b)
                .sum();
            0.5 * sum + 2.0 * bias[k]
        };
        let logits: Vec<f64> = (0..CLASSES).map(logit).collect();
        let log: f64 = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        for (k, l) in logits.iter().enumerate() {
            let target = 0.1 / CLASSES as f64 + if k == label { 0.9 } else { 0.0 };
            loss -= target * (l - log) / BATCH as f64;
        }
    }
    loss
}

#[test]
fn a_network_with_a_normalisation_has_the_gradients_of_central_differences() {
    let outputs = 17;
    let input = [3, 7, 9];
    let mut net = Net::new(input);
    let w = net.weight(&[outputs, 3, 3, 3]);
    let padding = Padding::Explicit([1; 4]);
    let conv = net.node(
        Op::Conv {
            strides: [1; 2],
            padding,
            dilations: [1; 2],
            groups: 1,
        },
        &["x", &w],
    );
    let parts: Vec<String> = (0..4).map(|_| net.weight(&[outputs])).collect();
    let [s, b, m, v] = [0, 1, 2, 3].map(|i| parts[i].as_str());
    let norm = net.node(
        Op::BatchNormalization { epsilon: 1e-5 },
        &[&conv, s, b, m, v],
    );
    net.node(Op::Relu, &[&norm]);
    let window = Window {
        kernel: [2; 2],
        strides: [2; 2],
        padding: Padding::NONE,
        dilations: [1; 2],
        ceil_mode: false,
    };
    let model = net.then(Op::MaxPool(window)).model();
    let (x, input) = images(&model);
    let mut network = Network::new(&model).unwrap();
    let batch = Batch::of_images(&channels_last(&x, input), &labels());
    let loss = Tape::new()
        .unwrap()
        .step(&mut network, &batch, 0.1)
        .unwrap()
        .remove(0);
    let x: Vec<f64> = x.iter().map(|&v| v.into()).collect();
    let mut p: HashMap<String, Vec<f64>> = (model.weights().iter())
        .map(|(n, w)| {
            (
                n.clone(),
                w.to_f32().unwrap().iter().map(|&v| v.into()).collect(),
            )
        })
        .collect();
    let expected = loss_in_f64(&x, input, &p, outputs);
    assert!(
        (loss.sum / BATCH as f64 - expected).abs() < 1e-5,
        "{} is not {expected}",
        loss.sum / BATCH as f64
    );
    for (parameter, own) in network
        .parameters
        .iter()
        .zip(&network.gradients)
        .filter(|(_, g)| !g.is_empty())
    {
        let sampled = (0..own.len()).step_by(own.len().div_ceil(23));
        let (mut found, mut differences) = (Vec::new(), Vec::new());
        for i in sampled {
            let mut at = |d: f64| {
                let slot = &mut p.get_mut(&parameter.name).unwrap()[i];
                let old = *slot;
                *slot = old + d;
                let loss = loss_in_f64(&x, input, &p, outputs);
                p.get_mut(&parameter.name).unwrap()[i] = old;
                loss
            };
            differences.push(((at(1e-6) - at(-1e-6)) / 2e-6) as f32);
            found.push(own[i]);
        }
        close(&parameter.name, &found, &differences);
    }
    // PyTorch's momentum of 0.1, and the unbiased variance.
    let follows = |name: &str| {
        network
            .parameters
            .iter()
            .find(|p| p.name == name)
            .unwrap()
            .data
            .clone()
    };
    let before = model.weights()[m].to_f32().unwrap();
    assert!(follows(m).iter().zip(before).all(|(a, b)| *a != b));
}
