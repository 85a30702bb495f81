//! Every instruction set and every form against a plain f64 oracle, over sparsities, odd sizes,
//! empty rows, strides, padding and tails.

mod common;

use common::{Random, compare, isas_of_f32};
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Weights, Window};
use lacuna::plan::Forms;
use lacuna::{Model, Session, SessionOptions, TensorView, Weight};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct ConvCase {
    batch: usize,
    groups: usize,
    channels: usize,
    rows: usize,
    input: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 4],
    density: f32,
    bias: bool,
    relu: bool,
    seed: u64,
}

impl ConvCase {
    fn output(&self, i: usize) -> Option<usize> {
        let padded = self.input[i] + self.pads[i] + self.pads[i + 2];
        let extent = (self.kernel[i] - 1) * self.dilations[i] + 1;
        Some(padded.checked_sub(extent)? / self.strides[i] + 1)
    }

    /// Output in f64, and the sum of magnitudes that bounds its rounding error.
    fn reference(&self, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<(f64, f64)> {
        let (oh, ow) = (self.output(0).unwrap(), self.output(1).unwrap());
        let [h, wd] = self.input;
        let [kh, kw] = self.kernel;
        let mut out = Vec::new();
        for n in 0..self.batch {
            for o in 0..self.groups * self.rows {
                let g = o / self.rows;
                for p in 0..oh * ow {
                    let b = bias.get(o).map_or(0.0, |b| f64::from(*b));
                    let (mut sum, mut size) = (b, b.abs());
                    for c in 0..self.channels {
                        for k in 0..kh * kw {
                            let y = (p / ow * self.strides[0] + k / kw * self.dilations[0])
                                .wrapping_sub(self.pads[0]);
                            let xx = (p % ow * self.strides[1] + k % kw * self.dilations[1])
                                .wrapping_sub(self.pads[1]);
                            if y < h && xx < wd {
                                let plane = n * self.groups * self.channels + g * self.channels + c;
                                let v = f64::from(x[(plane * h + y) * wd + xx])
                                    * f64::from(w[(o * self.channels + c) * kh * kw + k]);
                                sum += v;
                                size += v.abs();
                            }
                        }
                    }
                    out.push((if self.relu { sum.max(0.0) } else { sum }, size));
                }
            }
        }
        out
    }

    fn check(&self) {
        let mut random = Random(self.seed);
        let outputs = self.groups * self.rows;
        let cols = self.channels * self.kernel[0] * self.kernel[1];
        let w = random.sparse(outputs, cols, self.density);
        let bias = if self.bias {
            random.tensor(outputs)
        } else {
            Vec::new()
        };
        let x_shape = [
            self.batch,
            self.groups * self.channels,
            self.input[0],
            self.input[1],
        ];
        let x = random.tensor(x_shape.iter().product());
        let mut inputs = vec!["x".to_owned(), "w".to_owned()];
        let shape = [outputs, self.channels, self.kernel[0], self.kernel[1]];
        let mut weights = Weights::from([("w".to_owned(), Weight::from_f32(&shape, &w))]);
        if self.bias {
            inputs.push("b".into());
            weights.insert("b".into(), Weight::from_f32(&[outputs], &bias));
        }
        let op = Op::Conv {
            strides: self.strides,
            padding: Padding::Explicit(self.pads),
            dilations: self.dilations,
            groups: self.groups,
        };
        let model = one_node(op, inputs, &x_shape, weights, self.relu);
        let want = self.reference(&x, &w, &bias);
        check_everywhere(&model, &[(&x_shape, &x)], &want, &format!("{self:?}"));
    }
}

/// A graph of one node, and a Relu when asked.
fn one_node(op: Op, inputs: Vec<String>, x: &[usize], weights: Weights, relu: bool) -> Model {
    let mut nodes = vec![Node {
        name: "node".into(),
        op,
        inputs,
        output: "y".into(),
    }];
    if relu {
        nodes.push(Node {
            name: "relu".into(),
            op: Op::Relu,
            inputs: vec!["y".into()],
            output: "z".into(),
        });
    }
    let graph = Graph {
        name: "one".into(),
        inputs: vec![Input::f32("x", x.iter().map(|&n| Dim::Fixed(n)).collect())],
        outputs: vec![if relu { "z".into() } else { "y".into() }],
        nodes,
    };
    Model::new(graph, weights).unwrap()
}

/// Runs on every instruction set and in every form, with one and three threads.
fn check_everywhere(model: &Model, inputs: &[(&[usize], &[f32])], want: &[(f64, f64)], case: &str) {
    let encoded = model.encoded();
    let views: Vec<TensorView<'_>> = inputs.iter().map(|(s, d)| TensorView::f32(s, d)).collect();
    let check = |model: &Model, options: SessionOptions| {
        let mut session = Session::new(model, options).unwrap();
        // Twice: nothing may be left over from the run before.
        for _ in 0..2 {
            let got = session.run(&views).unwrap();
            let data = got[0].data.clone();
            let what = || format!("{case}; {:?}", session.steps());
            compare(&data, want, |size| 1e-5 * size + 1e-6, &what);
        }
        session
    };
    for isa in isas_of_f32() {
        for (model, dense, threads) in [(model, true, 1), (model, false, 1), (&encoded, false, 3)] {
            let options = SessionOptions {
                isa: Some(isa.name().into()),
                dense,
                threads,
                ..SessionOptions::default()
            };
            let session = check(model, options.clone());
            for weighted in session.steps().iter().filter_map(|s| s.weighted.as_ref()) {
                for candidate in &weighted.legal[1..] {
                    let forms = Forms::from([(weighted.weight.clone(), vec![candidate.variant])]);
                    let options = options.clone();
                    check(model, SessionOptions { forms, ..options });
                }
            }
        }
    }
}

fn densities() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(0.0f32),
        Just(0.02),
        Just(0.1),
        Just(0.3),
        Just(0.5),
        Just(0.9),
        Just(1.0)
    ]
}

prop_compose! {
    fn conv_cases()(
        batch in 1usize..3, groups in 1usize..4, channels in 1usize..9, rows in 1usize..45,
        input in [1usize..20, 1usize..40], kernel in [1usize..4, 1usize..4],
        strides in [1usize..4, 1usize..4], dilations in [1usize..3, 1usize..3],
        pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        density in densities(), bias: bool, relu: bool, seed: u64,
    ) -> ConvCase {
        ConvCase { batch, groups, channels, rows, input, kernel, strides, dilations, pads, density, bias, relu, seed }
    }
}

prop_compose! {
    /// Same padding, or nearly: the panels are shifted planes, of stride 2 split ones.
    fn shifted_cases()(
        case in conv_cases(), stride in 1usize..3, half in [0usize..4, 0usize..4], less in [0usize..2, 0usize..2],
    ) -> ConvCase {
        let kernel = half.map(|h| 2 * h + 1);
        let end = |i: usize| (half[i] * case.dilations[i]).saturating_sub(less[i]);
        let pads = [half[0] * case.dilations[0], half[1] * case.dilations[1], end(0), end(1)];
        ConvCase { strides: [stride; 2], kernel, pads, ..case }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_agree_with_the_oracle(case in conv_cases()) {
        prop_assume!(case.output(0).is_some() && case.output(1).is_some());
        case.check();
    }

    #[test]
    fn shifted_convolutions_agree_with_the_oracle(case in shifted_cases()) {
        prop_assume!(case.output(0).is_some() && case.output(1).is_some());
        case.check();
    }

    #[test]
    fn linear_layers_agree_with_the_oracle(
        count in 1usize..80, inner in 1usize..140, outer in 1usize..140, density in densities(), bias: bool, seed: u64,
    ) {
        linear_case(count, inner, outer, density, bias, seed);
    }
}

fn linear_case(count: usize, inner: usize, outer: usize, density: f32, bias: bool, seed: u64) {
    let mut random = Random(seed);
    let w = random.sparse(outer, inner, density);
    let b = if bias {
        random.tensor(outer)
    } else {
        Vec::new()
    };
    let x = random.tensor(count * inner);
    let mut inputs = vec!["x".to_owned(), "w".to_owned()];
    let mut weights = Weights::from([("w".to_owned(), Weight::from_f32(&[outer, inner], &w))]);
    if bias {
        inputs.push("b".into());
        weights.insert("b".into(), Weight::from_f32(&[outer], &b));
    }
    let op = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let model = one_node(op, inputs, &[count, inner], weights, false);
    let mut want = Vec::new();
    for n in 0..count {
        for o in 0..outer {
            let start = b.get(o).map_or(0.0, |b| f64::from(*b));
            let (mut sum, mut size) = (start, start.abs());
            for k in 0..inner {
                let v = f64::from(x[n * inner + k]) * f64::from(w[o * inner + k]);
                sum += v;
                size += v.abs();
            }
            want.push((sum, size));
        }
    }
    let case = format!("{count} rows, {outer}x{inner}, density {density}");
    check_everywhere(&model, &[(&[count, inner], &x)], &want, &case);
}

#[test]
fn large_layers_cross_chunks_and_blocks() {
    for (channels, rows, size, kernel, density) in [
        (300, 140, 7, 1, 0.1),
        (70, 260, 7, 3, 0.05),
        (130, 9, 14, 3, 0.5),
        (256, 64, 56, 1, 0.2),
    ] {
        let case = ConvCase {
            batch: 1,
            groups: 1,
            channels,
            rows,
            input: [size, size],
            kernel: [kernel; 2],
            strides: [1, 1],
            dilations: [1, 1],
            pads: [kernel / 2; 4],
            density,
            bias: true,
            relu: true,
            seed: 7,
        };
        case.check();
    }
    for (count, inner, outer) in [
        (1, 1000, 300),
        (3, 517, 129),
        (9, 700, 300),
        (130, 300, 200),
    ] {
        linear_case(count, inner, outer, 0.1, true, 11);
    }
}

#[test]
fn depthwise_convolutions_agree_with_the_oracle() {
    for (kernel, stride, size) in [
        (3, 1, 7),
        (3, 2, 15),
        (5, 1, 20),
        (5, 2, 33),
        (4, 3, 18),
        (3, 1, 112),
    ] {
        let case = ConvCase {
            batch: 2,
            groups: 5,
            channels: 1,
            rows: 2,
            input: [size, size + 1],
            kernel: [kernel; 2],
            strides: [stride; 2],
            dilations: [1, 1],
            pads: [kernel / 2; 4],
            density: 1.0,
            bias: true,
            relu: true,
            seed: 3,
        };
        case.check();
    }
}

#[test]
fn pools_agree_with_the_oracle() {
    for (kernel, stride, pad, ceil_mode, size) in [
        (2, 2, 0, false, 9),
        (3, 2, 1, false, 14),
        (3, 2, 1, true, 17),
        (2, 3, 0, true, 40),
        (3, 1, 1, false, 5),
    ] {
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            padding: Padding::Explicit([pad; 4]),
            dilations: [1, 1],
            ceil_mode,
        };
        let shape = [2usize, 3, size, size];
        let x = Random(5).tensor(shape.iter().product());
        for average in [None, Some(false), Some(true)] {
            let op = match average {
                None => Op::MaxPool(window),
                Some(count_include_pad) => Op::AveragePool {
                    window,
                    count_include_pad,
                },
            };
            let model = one_node(op, vec!["x".into()], &shape, Weights::new(), false);
            let mut session = Session::new(&model, SessionOptions::default()).unwrap();
            let out = session.outputs()[0].1[2];
            drop(session.run(&[TensorView::f32(&shape, &x)]).unwrap());
            let mut want = Vec::new();
            for plane in x.chunks_exact(size * size) {
                for p in 0..out * out {
                    let mut inside = Vec::new();
                    let mut padded = 0;
                    for k in 0..kernel * kernel {
                        let y = (p / out * stride + k / kernel) as isize - pad as isize;
                        let xx = (p % out * stride + k % kernel) as isize - pad as isize;
                        let (limit, n) = ((size + pad) as isize, size as isize);
                        padded += usize::from(y < limit && xx < limit);
                        if (0..n).contains(&y) && (0..n).contains(&xx) {
                            inside.push(f64::from(plane[y as usize * size + xx as usize]));
                        }
                    }
                    let sum: f64 = inside.iter().sum();
                    want.push((
                        match average {
                            None => inside.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                            Some(true) => sum / padded as f64,
                            Some(false) => sum / inside.len() as f64,
                        },
                        1.0,
                    ));
                }
            }
            check_everywhere(
                &model,
                &[(&shape, &x)],
                &want,
                &format!("{window:?} {average:?}"),
            );
        }
    }
}
