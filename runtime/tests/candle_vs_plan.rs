//! Random small CNNs: the planned executor against the candle reference.
#![cfg(feature = "candle")]

mod common;

use candle_core::Tensor as Candle;
use common::Dice;
use lacuna::candle::Reference;
use lacuna::model::{
    Coordinates, Dim, Graph, Input, Interpolation, Node, Op, PadMode, Padding, Resized, Symbols,
    Weights, Window, infer_shapes,
};
use lacuna::{Isa, Model, Session, SessionOptions, Tensor, Weight};
use proptest::prelude::*;

/// A graph that grows at its end.
struct Builder {
    dice: Dice,
    graph: Graph,
    weights: Weights,
    last: String,
}

impl Builder {
    fn new(seed: u64, shape: [usize; 4]) -> Builder {
        let shape = shape.iter().enumerate();
        Builder {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            graph: Graph {
                name: format!("seed {seed}"),
                inputs: vec![Input::f32(
                    "x",
                    shape
                        .map(|(i, &n)| match i {
                            0 => Dim::Symbol("N".into()),
                            _ => Dim::Fixed(n),
                        })
                        .collect(),
                )],
                outputs: vec!["x".into()],
                nodes: Vec::new(),
            },
            weights: Weights::new(),
            last: "x".into(),
        }
    }

    /// The sizes behind the batch of the last value.
    fn sizes(&self) -> Vec<usize> {
        let shapes = infer_shapes(&self.graph, &self.weights, &Symbols::new()).unwrap();
        let fixed = |d: &Dim| match d {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) => panic!("{d} is symbolic"),
        };
        shapes[&self.last][1..].iter().map(fixed).collect()
    }

    /// Adds a node that reads the last value and `more`; drops it when its shapes do not fit
    /// or nothing is left.
    fn push(&mut self, op: Op, more: &[&str]) -> bool {
        let name = format!("n{}", self.graph.nodes.len());
        let mut inputs = vec![self.last.clone()];
        inputs.extend(more.iter().map(|s| s.to_string()));
        self.graph.nodes.push(Node {
            name: name.clone(),
            op,
            inputs,
            output: name.clone(),
        });
        let shapes = infer_shapes(&self.graph, &self.weights, &Symbols::new());
        let fits = shapes.is_ok_and(|shapes| !shapes[&name].contains(&Dim::Fixed(0)));
        if fits {
            self.last = name;
        } else {
            self.graph.nodes.pop();
        }
        fits
    }

    /// A weight with a share of zeros, scaled so that a sum over a row stays near 1.
    fn weight(&mut self, shape: &[usize]) -> String {
        let keep = self.dice.pick(&[2, 10, 50, 100]);
        let fan: usize = shape[1..].iter().product();
        let scale = 1.7 / (fan as f32).sqrt();
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                let kept = self.dice.below(100) < keep;
                f32::from(kept) * self.dice.value() * scale
            })
            .collect();
        let weight = Weight::from_f32(shape, &values);
        let sparse = self.dice.below(2) == 0;
        self.add(if sparse { weight.encode() } else { weight })
    }

    fn vector(&mut self, len: usize, low: f32, high: f32) -> String {
        let values: Vec<f32> = (0..len)
            .map(|_| low + (self.dice.value() + 1.0) / 2.0 * (high - low))
            .collect();
        self.add(Weight::from_f32(&[len], &values))
    }

    fn add(&mut self, weight: Weight) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.insert(name.clone(), weight);
        name
    }

    fn padding(&mut self, kernel: [usize; 2]) -> Padding {
        let mut side = |i: usize| self.dice.below(kernel[i]);
        let pads = [side(0), side(1), side(0), side(1)];
        self.dice.pick(&[
            Padding::NONE,
            Padding::Explicit(pads),
            Padding::SameUpper,
            Padding::SameLower,
        ])
    }

    fn conv(&mut self, channels: usize) {
        let c = self.sizes()[0];
        let groups = match self.dice.below(4) {
            0 => c,
            1 if c.is_multiple_of(2) => 2,
            _ => 1,
        };
        let o = channels.next_multiple_of(groups);
        let kernel = self.dice.pick(&[[1, 1], [1, 1], [3, 3], [3, 2], [1, 5]]);
        let op = Op::Conv {
            strides: self.dice.pick(&[[1, 1], [1, 1], [2, 2], [2, 1]]),
            padding: self.padding(kernel),
            dilations: self.dice.pick(&[[1, 1], [1, 1], [2, 1]]),
            groups,
        };
        let weight = self.weight(&[o, c / groups, kernel[0], kernel[1]]);
        let bias = self.vector(o, -0.5, 0.5);
        let bias = self.dice.pick(&["", &bias]).to_owned();
        self.push(op, &[&weight, &bias]);
    }

    fn conv_transpose(&mut self) {
        let sizes = self.sizes();
        if sizes[1] * sizes[2] > 200 {
            return;
        }
        let c = sizes[0];
        let groups = match self.dice.below(4) {
            0 => c,
            1 if c.is_multiple_of(2) => 2,
            _ => 1,
        };
        let own = match groups {
            1 => 1 + self.dice.below(9),
            _ => 1 + self.dice.below(2),
        };
        let kernel = self.dice.pick(&[[2, 2], [3, 3], [4, 4], [1, 3]]);
        let mut side = |i: usize| self.dice.below(kernel[i]);
        let pads = [side(0), side(1), side(0), side(1)];
        let op = Op::ConvTranspose {
            strides: self.dice.pick(&[[2, 2], [2, 2], [1, 1], [2, 1], [3, 2]]),
            pads: self.dice.pick(&[[0; 4], pads]),
            output_padding: self.dice.pick(&[[0, 0], [1, 1], [0, 1]]),
            dilations: self.dice.pick(&[[1, 1], [1, 1], [2, 1], [2, 3]]),
            groups,
        };
        let weight = self.weight(&[c, own, kernel[0], kernel[1]]);
        let bias = self.vector(own * groups, -0.5, 0.5);
        let bias = self.dice.pick(&["", &bias]).to_owned();
        self.push(op, &[&weight, &bias]);
    }

    fn batch_norm(&mut self) {
        let c = self.sizes()[0];
        let parameters = [
            self.vector(c, 0.5, 1.5),
            self.vector(c, -0.5, 0.5),
            self.vector(c, -0.5, 0.5),
            self.vector(c, 0.2, 2.0),
        ];
        let op = Op::BatchNormalization { epsilon: 1e-5 };
        self.push(op, &parameters.each_ref().map(String::as_str));
    }

    /// With an epsilon that keeps planes of equal numbers from being rounding alone.
    fn instance_norm(&mut self) {
        let c = self.sizes()[0];
        let (scale, bias) = (self.vector(c, 0.5, 1.5), self.vector(c, -0.5, 0.5));
        let op = Op::InstanceNormalization { epsilon: 0.1 };
        self.push(op, &[&scale, &bias]);
    }

    /// A slope for each channel.
    fn prelu(&mut self) {
        let c = self.sizes()[0];
        let values: Vec<f32> = (0..c).map(|_| self.dice.value()).collect();
        let slopes = self.add(Weight::from_f32(&[c, 1, 1], &values));
        self.push(Op::PRelu, &[&slopes]);
    }

    fn resize(&mut self) {
        let sizes = [1 + self.dice.below(24), 1 + self.dice.below(24)];
        let op = Op::Resize {
            resized: self.dice.pick(&[
                Resized::Sizes(sizes),
                Resized::Scales([2.0, 1.5]),
                Resized::Scales([0.75, 2.0]),
            ]),
            interpolation: self.dice.pick(&[
                Interpolation::Linear,
                Interpolation::Linear,
                Interpolation::NearestPreferFloor,
                Interpolation::NearestPreferCeil,
                Interpolation::NearestFloor,
                Interpolation::NearestCeil,
            ]),
            coordinates: self.dice.pick(&[
                Coordinates::HalfPixel,
                Coordinates::PytorchHalfPixel,
                Coordinates::AlignCorners,
                Coordinates::Asymmetric,
            ]),
        };
        self.push(op, &[]);
    }

    fn activation(&mut self) {
        let (min, max) = (Some(-0.4), Some(0.6));
        let op = match self.dice.below(11) {
            0..3 => Op::Relu,
            9 => Op::Erf,
            3 => Op::Clip { min, max },
            4 => Op::Clip { min, max: None },
            5 => Op::LeakyRelu { alpha: 0.2 },
            6 => Op::HardSwish,
            7 => Op::HardSigmoid {
                alpha: 0.3,
                beta: 0.4,
            },
            8 => Op::Sigmoid,
            _ => Op::Tanh,
        };
        self.push(op, &[]);
    }

    fn pool(&mut self) {
        let kernel = self.dice.pair(&[2, 3]);
        let window = Window {
            kernel,
            strides: self.dice.pair(&[1, 2]),
            padding: self.padding(kernel),
            dilations: [1, 1],
            ceil_mode: self.dice.below(2) == 0,
        };
        let op = match self.dice.below(3) {
            0 => Op::MaxPool(window),
            n => Op::AveragePool {
                window,
                count_include_pad: n == 1,
            },
        };
        self.push(op, &[]);
    }

    /// A convolution that keeps the shape, and a sum with what came before it.
    fn residual(&mut self) {
        let before = self.last.clone();
        let c = self.sizes()[0];
        let kernel = self.dice.pick(&[1, 3]);
        let op = Op::Conv {
            strides: [1, 1],
            padding: Padding::Explicit([kernel / 2; 4]),
            dilations: [1, 1],
            groups: 1,
        };
        let weight = self.weight(&[c, c, kernel, kernel]);
        self.push(op, &[&weight, ""]);
        if self.dice.below(2) == 0 {
            self.batch_norm();
        }
        let op = self.dice.pick(&[0, 0, 1, 2]);
        let op = [Op::Add, Op::Sub, Op::Mul][op].clone();
        self.push(op, &[&before]);
    }

    /// Squeeze and excite: channel means through a convolution and a gate, multiplied back.
    fn gate(&mut self) {
        let before = self.last.clone();
        let c = self.sizes()[0];
        self.push(Op::GlobalAveragePool, &[]);
        let conv = Op::Conv {
            strides: [1, 1],
            padding: Padding::NONE,
            dilations: [1, 1],
            groups: 1,
        };
        let (weight, bias) = (self.weight(&[c, c, 1, 1]), self.vector(c, -0.5, 0.5));
        self.push(conv, &[&weight, &bias]);
        self.push(Op::Sigmoid, &[]);
        self.push(Op::Mul, &[&before]);
    }

    fn shuffle(&mut self) {
        let before = self.last.clone();
        let fill = self.dice.pick(&[PadMode::Constant(0.3), PadMode::Edge]);
        match self.dice.below(5) {
            0 => self.push(Op::Concat { axis: 1 }, &[&before]),
            1 => self.push(
                Op::Pad {
                    pads: vec![0, 0, 1, -1, 0, 0, 2, 1],
                    mode: fill,
                },
                &[],
            ),
            2 if !self.sizes().contains(&1) => self.push(
                Op::Pad {
                    pads: vec![0, 0, 0, 1, 0, 0, 0, 1],
                    mode: PadMode::Reflect,
                },
                &[],
            ),
            3 => self.push(
                Op::Slice {
                    axes: vec![2, -1],
                    starts: vec![1, -1],
                    ends: vec![i64::MAX, i64::MIN],
                    steps: vec![1, -1],
                },
                &[],
            ),
            _ => self.push(
                Op::Transpose {
                    perm: vec![0, 1, 3, 2],
                },
                &[],
            ),
        };
    }

    fn head(&mut self) {
        match self.dice.below(4) {
            0 => return,
            1 => drop(self.push(Op::GlobalAveragePool, &[])),
            2 => {
                let op = Op::ReduceMean {
                    axes: vec![-1],
                    keepdims: true,
                };
                self.push(op, &[]);
            }
            _ => {}
        }
        self.push(Op::Flatten { axis: 1 }, &[]);
        let (features, classes) = (self.sizes()[0], 1 + self.dice.below(20));
        let weight = self.weight(&[classes, features]);
        let bias = self.vector(classes, -0.5, 0.5);
        let bias = self.dice.pick(&["", &bias]).to_owned();
        if self.dice.below(3) == 0 {
            self.push(Op::MatMul { trans_b: true }, &[&weight]);
        } else {
            let op = Op::Gemm {
                alpha: self.dice.pick(&[1.0, 0.7]),
                beta: self.dice.pick(&[1.0, 1.3]),
                trans_a: false,
                trans_b: true,
            };
            self.push(op, &[&weight, &bias]);
        }
        if self.dice.below(3) == 0 {
            self.push(Op::Softmax { axis: -1 }, &[]);
        }
    }

    fn model(mut self, layers: usize) -> Model {
        for _ in 0..layers {
            match self.dice.below(12) {
                n @ (0..3 | 11) => {
                    let channels = 1 + self.dice.below(14);
                    match n {
                        11 => self.conv_transpose(),
                        _ => self.conv(channels),
                    }
                    if self.dice.below(2) == 0 {
                        self.batch_norm();
                    }
                    self.activation();
                }
                3 => self.residual(),
                4 => self.pool(),
                5 => self.gate(),
                6 => self.shuffle(),
                7 => self.instance_norm(),
                8 => self.prelu(),
                9 => self.resize(),
                _ => self.activation(),
            }
        }
        self.head();
        self.graph.outputs = vec![self.last.clone()];
        // A second output from the middle keeps a value alive that a fusion would swallow.
        if self.graph.nodes.len() > 3 && self.dice.below(3) == 0 {
            let middle = self.graph.nodes.len() / 2;
            self.graph
                .outputs
                .push(self.graph.nodes[middle].output.clone());
        }
        Model::new(self.graph, self.weights).unwrap()
    }
}

/// max|a-b| / max|b|, where max|b| counts as 0.1 at least: values on the way are of order 1, and a
/// sum in which they cancel keeps their rounding.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0.1f32, |m, b| m.max(b.abs()));
    let worst = |m: f32, d: f32| if d > m || d.is_nan() { d } else { m };
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, worst) / scale
}

fn isas() -> Vec<&'static str> {
    ["scalar", "avx2", "avx512", "neon"]
        .into_iter()
        .filter(|name| Isa::parse(name).is_ok())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_computes_what_the_reference_computes(
        seed in any::<u64>(),
        shape in (1..4usize, 1..9usize, 1..16usize, 1..20usize),
        layers in 0..9usize,
    ) {
        let shape = [shape.0, shape.1, shape.2, shape.3];
        let model = Builder::new(seed, shape).model(layers);
        let mut dice = Dice(seed | 1);
        let input = Tensor {
            shape: shape.to_vec(),
            data: (0..shape.iter().product()).map(|_| dice.value()).collect(),
        };
        let expected = Reference::new(&model)
            .unwrap()
            .run(&[Candle::try_from(&input).unwrap()])
            .unwrap();
        for isa in isas() {
            for dense in [false, true] {
                let options = SessionOptions {
                    threads: 1 + (seed % 3) as usize,
                    isa: Some(isa.into()),
                    dense,
                    symbols: Symbols::from([("N".into(), shape[0])]),
                    ..SessionOptions::default()
                };
                let mut session = Session::new(&model, options).unwrap();
                let outputs = session.run(&[input.view()]).unwrap();
                for (ours, theirs) in outputs.iter().zip(&expected) {
                    let theirs = Tensor::try_from(theirs).unwrap();
                    prop_assert_eq!(&ours.shape, &theirs.shape);
                    let off = difference(&ours.data, &theirs.data);
                    prop_assert!(off <= 1e-5, "{isa}, dense {dense}: {off}\n{:#?}", model.graph());
                }
            }
        }
    }
}
