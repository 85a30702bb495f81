//! Whole models through the plan that a GPU runs, beside the CPU's session. They need a C++ compiler, or a GPU.

use super::super::sequence_tests::{Builder, model};
use super::{DeviceDecoder, DeviceDecoderOptions, DeviceSession};
use crate::cuda::{DeviceForm, DeviceOptions, DeviceStepInfo, Machine};
use crate::kernels::cuda::machine::{Host, machine};
use crate::model::{
    Coordinates, Dim, Graph, Input, Interpolation, Node, Op, PadMode, Padding, Resized, Weights,
    Window,
};
use crate::{
    DType, Decoder, DecoderOptions, GenerateOptions, Model, PhaseKind, Sampling, Session,
    SessionOptions, Stop, TensorView, Weight,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// As much of a model's products as `keep` says stays, in f16.
fn pruned(model: &Model, keep: impl Fn(usize, usize) -> bool) -> Model {
    let names: Vec<String> = model
        .product_weights()
        .iter()
        .map(|w| w.0.to_owned())
        .collect();
    let mut model = model.clone();
    for name in names {
        let weight = &model.weights()[&name];
        let (rows, cols) = weight.matrix();
        let mut values = weight.to_f32().unwrap();
        for r in 0..rows {
            for c in 0..cols {
                if !keep(r, c) {
                    values[r * cols + c] = 0.0;
                }
            }
        }
        let weight = Weight::from_f32(weight.shape(), &values);
        let weight = weight.to_dtype(DType::F16).unwrap().encode();
        model.set_weight(&name, weight).unwrap();
    }
    model
}

fn half(r: usize, c: usize) -> bool {
    (r * 7 + c * 5 + r * c) % 11 < 5
}

/// Two of each four columns.
fn two_four(r: usize, c: usize) -> bool {
    (c + r) % 4 < 2
}

fn near(got: &[f32], want: &[f32], part: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let fine = (g - w).abs() <= part * size;
        assert!(fine, "{what}: element {i} is {g}, not {w}, of {size}");
    }
}

fn every(model: &Model, form: DeviceForm) -> BTreeMap<String, Vec<DeviceForm>> {
    let weights = model.product_weights().into_iter();
    weights.map(|w| (w.0.to_owned(), vec![form])).collect()
}

/// A decoder with a layer of logits, which only the last token of a chunk goes through.
fn with_output_layer(model: &Model, rows: usize) -> Model {
    let (mut graph, mut weights) = (model.graph().clone(), model.weights().clone());
    let values: Vec<f32> = (0..rows * 40)
        .map(|i| ((i * 31 % 97) as f32 - 48.0) / 300.0)
        .collect();
    weights.insert("head".into(), Weight::from_f32(&[rows, 40], &values));
    graph.nodes.push(Node {
        name: "logits".into(),
        op: Op::MatMul { trans_b: true },
        inputs: vec![graph.outputs[0].clone(), "head".into()],
        output: "logits".into(),
    });
    graph.outputs = vec!["logits".into()];
    Model::new(graph, weights).unwrap()
}

/// Prompt and steps of a decoder on both.
fn decoders(model: &Model, plan: DeviceOptions, part: f32, what: &str) -> DeviceDecoder {
    let ids: Vec<u32> = (0..17).map(|i| (i * 7 + 3) % 30).collect();
    let cpu = DecoderOptions {
        threads: 1,
        capacity: 24,
        isa: Some("scalar".into()),
        ..DecoderOptions::default()
    };
    let mut cpu = Decoder::new(model, cpu).unwrap();
    let options = DeviceDecoderOptions {
        plan,
        capacity: 24,
        chunk: 5,
    };
    let mut device = DeviceDecoder::new(model, machine(), &options).unwrap();
    assert_eq!(device.vocabulary(), cpu.vocabulary());
    for part_of in [&ids[..12], &ids[12..13], &ids[13..14], &ids[14..17]] {
        let want = cpu.prefill(part_of).unwrap().to_vec();
        near(&device.prefill(part_of).unwrap(), &want, part, what);
    }
    // Another way on from position 12, and the most likely token without its logits.
    cpu.truncate(12);
    device.truncate(12);
    let want = cpu.step(29).unwrap().to_vec();
    near(&device.step(29).unwrap(), &want, part, what);
    cpu.truncate(12);
    device.truncate(12);
    let most = |v: &[f32]| v.iter().copied().fold(f32::MIN, f32::max);
    let best = device.next(&[29]).unwrap() as usize;
    assert!(
        want[best] >= most(&want) - part * most(&want).abs().max(1.0),
        "{what}"
    );
    assert!(
        device
            .prefill(&[30])
            .unwrap_err()
            .to_string()
            .contains("token 0 is 30")
    );
    assert!(
        device
            .prefill(&[1; 30])
            .unwrap_err()
            .to_string()
            .contains("30 tokens after 13")
    );
    assert_eq!(device.position(), 13);
    device
}

#[test]
#[ignore = "needs a C++ compiler"]
fn decoders_say_what_the_cpu_says() {
    let plain = with_output_layer(&model(4, 2, 16, 16, true), 37);
    for (rotary, heads) in [(true, (4, 2)), (false, (3, 3))] {
        let model = pruned(&model(heads.0, heads.1, 16, 16, rotary), half);
        let device = decoders(&model, DeviceOptions::default(), 4e-3, "chosen");
        assert!(device.memory().cache > 0);
    }
    let sparse = pruned(&plain, half);
    for form in [
        DeviceForm::DenseVector,
        DeviceForm::DenseMma,
        DeviceForm::DenseWgmma,
        DeviceForm::BitmaskVector,
        DeviceForm::BitmaskMma,
        DeviceForm::BitmaskWgmma,
    ] {
        let plan = DeviceOptions {
            forms: every(&sparse, form),
            ..DeviceOptions::default()
        };
        let device = decoders(&sparse, plan, 6e-3, form.name());
        let steps = device.steps(PhaseKind::Step);
        let forms = steps
            .iter()
            .filter_map(|s| s.choice.as_ref())
            .map(|c| c.form);
        assert!(forms.clone().count() > 10 && forms.clone().all(|f| f == form));
    }
    let quarter = pruned(&plain, two_four);
    for form in [DeviceForm::TwoOfFourMma, DeviceForm::TwoOfFourWgmma] {
        let forms: BTreeMap<_, _> = quarter
            .product_weights()
            .iter()
            .filter(|w| quarter.weights()[w.0].is_two_four())
            .map(|w| (w.0.to_owned(), vec![form]))
            .collect();
        assert!(forms.len() > 5);
        let plan = DeviceOptions {
            forms,
            ..DeviceOptions::default()
        };
        decoders(&quarter, plan, 6e-3, form.name());
    }
    // Weights of f32 are rounded.
    decoders(&plain, DeviceOptions::default(), 8e-3, "f32");
}

#[test]
#[ignore = "needs a C++ compiler"]
fn tokens_are_chosen_on_the_device() {
    let model = pruned(&with_output_layer(&model(4, 2, 16, 16, true), 30), half);
    let options = DeviceDecoderOptions {
        capacity: 24,
        chunk: 5,
        ..DeviceDecoderOptions::default()
    };
    let mut device = DeviceDecoder::new(&model, machine(), &options).unwrap();
    let prompt = [3, 1, 4, 1, 5, 9, 2];
    let written = |device: &mut DeviceDecoder, sampling| {
        device.truncate(0);
        let options = GenerateOptions {
            sampling,
            max_tokens: 12,
            stop: Vec::new(),
        };
        let mut seen = Vec::new();
        let on_token = |t| {
            seen.push(t);
            ControlFlow::Continue(())
        };
        let got = device.generate(&prompt, &options, on_token).unwrap();
        assert_eq!((got.tokens.len(), got.stop), (12, Stop::Length));
        assert_eq!(got.tokens, seen);
        got.tokens
    };
    let greedy = written(&mut device, Sampling::default());
    device.truncate(0);
    let mut likely = vec![device.next(&prompt).unwrap()];
    for at in 0..11 {
        likely.push(device.next(&[likely[at]]).unwrap());
    }
    assert_eq!(greedy, likely);
    let warm = |top_k, seed| Sampling {
        temperature: 1.5,
        top_k,
        seed,
        ..Sampling::default()
    };
    assert_eq!(written(&mut device, warm(1, 5)), greedy);
    let drawn = written(&mut device, warm(3, 5));
    assert_eq!(written(&mut device, warm(3, 5)), drawn);
    assert_ne!(written(&mut device, warm(3, 6)), drawn);
    // Each is among the three most likely.
    device.truncate(0);
    let mut logits = device.prefill(&prompt).unwrap();
    for &token in &drawn {
        let of = logits[token as usize];
        assert!(logits.iter().filter(|l| **l > of).count() < 3);
        logits = device.step(token).unwrap();
    }
    // No room for more.
    device.truncate(0);
    let all = device.generate(&prompt, &GenerateOptions::default(), |_| {
        ControlFlow::Continue(())
    });
    assert_eq!(all.unwrap().stop, Stop::Capacity);
}

struct Net(Builder);

impl Net {
    fn new(seed: u64) -> Net {
        Net(Builder {
            seed,
            nodes: Vec::new(),
            weights: Weights::new(),
        })
    }

    fn node(&mut self, op: Op, inputs: &[&str]) -> String {
        self.0.node(op, inputs)
    }

    fn conv(
        &mut self,
        x: &str,
        shape: [usize; 4],
        groups: usize,
        step: usize,
        pad: usize,
    ) -> String {
        let fan = (shape[1] * shape[2] * shape[3]) as f32;
        let (w, b) = (
            self.0.weight(&shape, 1.5 / fan.sqrt()),
            self.0.weight(&shape[..1], 0.3),
        );
        let op = Op::Conv {
            strides: [step; 2],
            padding: Padding::Explicit([pad; 4]),
            dilations: [1; 2],
            groups,
        };
        self.node(op, &[x, &w, &b])
    }

    fn model(self, inputs: Vec<Input>, outputs: &[String]) -> Model {
        let graph = Graph {
            name: "net".into(),
            inputs,
            outputs: outputs.to_vec(),
            nodes: self.0.nodes,
        };
        Model::new(graph, self.0.weights).unwrap()
    }
}

fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::Fixed(*d)).collect()
}

fn window(kernel: usize, step: usize, pad: usize) -> Window {
    Window {
        kernel: [kernel; 2],
        strides: [step; 2],
        padding: Padding::Explicit([pad; 4]),
        dilations: [1; 2],
        ceil_mode: false,
    }
}

/// Residuals, groups, depthwise, pools, batch normalization, a classifier.
fn network(images: usize) -> Model {
    let mut n = Net::new(3);
    let x = n.conv("x", [20, 3, 3, 3], 1, 1, 1);
    let norm: Vec<String> = (0..4)
        .map(|i| n.0.weight(&[20], if i == 3 { 0.0 } else { 0.5 }))
        .collect();
    let ones = n.0.weights.get_mut(&norm[3]).unwrap();
    *ones = Weight::from_f32(&[20], &[1.25; 20]);
    let inputs = [&x, &norm[0], &norm[1], &norm[2], &norm[3]].map(String::as_str);
    let x = n.node(Op::BatchNormalization { epsilon: 1e-5 }, &inputs);
    let x = n.node(Op::Relu, &[&x]);
    let y = n.conv(&x, [20, 20, 1, 1], 1, 1, 0);
    let y = n.node(Op::Add, &[&y, &x]);
    let y = n.node(
        Op::Clip {
            min: Some(0.0),
            max: Some(6.0),
        },
        &[&y],
    );
    let y = n.node(Op::MaxPool(window(3, 2, 1)), &[&y]);
    let z = n.conv(&y, [20, 1, 3, 3], 20, 1, 1);
    let z = n.node(Op::HardSwish, &[&z]);
    let z = n.conv(&z, [24, 10, 3, 2], 2, 1, 1);
    let z = n.node(Op::Swish { alpha: 1.0 }, &[&z]);
    let op = Op::AveragePool {
        window: window(2, 2, 0),
        count_include_pad: false,
    };
    let z = n.node(op, &[&z]);
    let z = n.node(Op::GlobalAveragePool, &[&z]);
    let z = n.node(Op::Flatten { axis: 1 }, &[&z]);
    let (w, b) = (n.0.weight(&[11, 24], 0.4), n.0.weight(&[11], 0.2));
    let op = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let z = n.node(op, &[&z, &w, &b]);
    let p = n.node(Op::Softmax { axis: 1 }, &[&z]);
    let inputs = vec![Input::f32("x", fixed(&[images, 3, 13, 11]))];
    n.model(inputs, &[z, p])
}

fn image(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0)
        .collect()
}

/// Both sessions on the same inputs.
fn sessions(
    model: &Model,
    machine: Box<dyn Machine>,
    options: &DeviceOptions,
    inputs: &[TensorView<'_>],
    part: f32,
    what: &str,
) -> DeviceSession {
    let cpu = SessionOptions {
        threads: 1,
        isa: Some("scalar".into()),
        ..SessionOptions::default()
    };
    let mut cpu = Session::new(model, cpu).unwrap();
    let mut device = DeviceSession::new(model, machine, options).unwrap();
    assert_eq!(device.inputs(), cpu.inputs());
    let want = cpu.run(inputs).unwrap();
    // Twice: nothing of a run is left for the next.
    for _ in 0..2 {
        let got = device.run(inputs).unwrap();
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.shape, want.shape);
            near(&got.data, &want.data, part, &format!("{what}, output {i}"));
        }
    }
    device
}

#[test]
#[ignore = "needs a C++ compiler"]
fn networks_say_what_the_cpu_says() {
    for images in [1, 2] {
        let model = pruned(&network(images), half);
        let data = image(images * 3 * 13 * 11);
        let shape = [images, 3, 13, 11];
        let inputs = [TensorView::f32(&shape, &data)];
        let options = DeviceOptions::default();
        sessions(&model, machine(), &options, &inputs, 3e-3, "chosen");
        for form in [
            DeviceForm::DenseVector,
            DeviceForm::DenseMma,
            DeviceForm::DenseWgmma,
            DeviceForm::BitmaskVector,
            DeviceForm::BitmaskMma,
            DeviceForm::BitmaskWgmma,
        ] {
            let depthwise = |n: &String| model.weights()[n].shape().get(1) == Some(&1);
            let mut forms = every(&model, form);
            forms.retain(|n, _| !depthwise(n));
            let options = DeviceOptions {
                forms,
                ..DeviceOptions::default()
            };
            let device = sessions(&model, machine(), &options, &inputs, 3e-3, form.name());
            let forms = device
                .steps()
                .iter()
                .filter_map(|s| s.choice.as_ref())
                .map(|c| c.form);
            assert!(forms.clone().count() == 4 && forms.clone().all(|f| f == form));
        }
        // Of f32, dense.
        sessions(&network(images), machine(), &options, &inputs, 3e-3, "f32");
        let bad = vec![f32::NAN; data.len()];
        let mut device = DeviceSession::new(&model, machine(), &options).unwrap();
        let error = device.run(&[TensorView::f32(&shape, &bad)]).unwrap_err();
        assert!(error.to_string().contains("element 0 is NaN"), "{error}");
    }
}

/// Whatever goes element by element, along axes, by index, or moves.
#[test]
#[ignore = "needs a C++ compiler"]
fn transposed_convolutions_say_what_the_cpu_says() {
    let mut n = Net::new(10);
    let mut outputs = Vec::new();
    for (groups, shape, strides, dilations) in [
        (1, [5, 3, 3, 3], [2, 3], [1, 2]),
        (1, [5, 2, 2, 3], [1, 1], [1, 1]),
        (5, [5, 1, 4, 2], [3, 1], [1, 1]),
    ] {
        let op = Op::ConvTranspose {
            strides,
            pads: [1, 0, 0, 1],
            output_padding: [strides[0] - 1, 0],
            dilations,
            groups,
        };
        let (w, b) = (
            n.0.weight(&shape, 0.4),
            n.0.weight(&[groups * shape[1]], 1.0),
        );
        outputs.push(n.node(op, &["x", &w, &b]));
    }
    let model = n.model(vec![Input::f32("x", fixed(&[2, 5, 3, 5]))], &outputs);
    let data = image(150);
    let inputs = [TensorView::f32(&[2, 5, 3, 5], &data)];
    let options = DeviceOptions::default();
    let device = sessions(&model, machine(), &options, &inputs, 3e-3, "transposed");
    // Each place within the stride is a convolution of its own, and one step puts them together.
    let steps = device.steps().iter();
    let kernels = |k: &str| steps.clone().filter(|s| s.info.kernel.contains(k)).count();
    assert_eq!(kernels("_conv_"), 2 * 3 + 1);
    assert_eq!(kernels("f32_depthwise"), 3);
    assert!(steps.clone().all(|s| s.info.op == "ConvTranspose"));
}

#[test]
#[ignore = "needs a C++ compiler"]
fn other_operators_say_what_the_cpu_says() {
    let mut n = Net::new(9);
    let wide = n.0.weight(&[5, 1, 5], 1.0);
    let slope = n.0.weight(&[5, 1, 1], 0.5);
    let mut outputs = Vec::new();
    for op in [
        Op::LeakyRelu { alpha: 0.1 },
        Op::HardSigmoid {
            alpha: 0.3,
            beta: 0.4,
        },
        Op::Erf,
        Op::Sigmoid,
        Op::Tanh,
        Op::Gelu { approximate: false },
        Op::Gelu { approximate: true },
        Op::Swish { alpha: 1.7 },
        Op::Relu,
        Op::Softmax { axis: 1 },
        Op::Softmax { axis: -1 },
        Op::LpNormalization { axis: 1 },
        Op::LpNormalization { axis: -1 },
        Op::Transpose {
            perm: vec![0, 2, 3, 1],
        },
        Op::ReduceMean {
            axes: vec![1, 3],
            keepdims: false,
        },
        Op::ReduceMean {
            axes: vec![],
            keepdims: true,
        },
        Op::Pad {
            pads: vec![0, 1, 2, 0, 0, -1, 1, 2],
            mode: PadMode::Constant(0.5),
        },
        Op::Pad {
            pads: vec![0, 0, 2, 1, 0, 0, 1, 2],
            mode: PadMode::Reflect,
        },
        Op::Slice {
            axes: vec![1, 3],
            starts: vec![-1, 0],
            ends: vec![0, 9],
            steps: vec![-2, 2],
        },
        Op::MaxPool(window(3, 1, 1)),
        Op::AveragePool {
            window: window(3, 2, 1),
            count_include_pad: true,
        },
        Op::Resize {
            resized: Resized::Scales([1.7, 2.0]),
            interpolation: Interpolation::Linear,
            coordinates: Coordinates::HalfPixel,
        },
    ] {
        outputs.push(n.node(op, &["x"]));
    }
    outputs.push(n.node(Op::Mul, &["x", &wide]));
    outputs.push(n.node(Op::Div, &["x", &wide]));
    outputs.push(n.node(Op::PRelu, &["x", &slope]));
    outputs.push(n.node(Op::Sub, &[&outputs[0].clone(), "x"]));
    let more = n.node(
        Op::Concat { axis: 1 },
        &[&outputs[0].clone(), "x", &outputs[2].clone()],
    );
    let (scale, bias) = (n.0.weight(&[15], 1.0), n.0.weight(&[15], 1.0));
    outputs.push(n.node(
        Op::InstanceNormalization { epsilon: 1e-3 },
        &[&more, &scale, &bias],
    ));
    let turned = n.node(
        Op::Transpose {
            perm: vec![0, 1, 3, 2],
        },
        &["x"],
    );
    outputs.push(n.node(Op::MatMul { trans_b: false }, &["x", &turned]));
    outputs.push(n.node(Op::MatMul { trans_b: true }, &["x", "x"]));
    let (scale, bias) = (n.0.weight(&[5], 1.0), n.0.weight(&[5], 1.0));
    outputs.push(n.node(
        Op::LayerNormalization { epsilon: 1e-5 },
        &["x", &scale, &bias],
    ));
    outputs.push(more);
    let model = n.model(vec![Input::f32("x", fixed(&[2, 5, 3, 5]))], &outputs);
    let data = image(150);
    let inputs = [TensorView::f32(&[2, 5, 3, 5], &data)];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        2e-5,
        "operators",
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn a_recurrent_step_says_what_the_cpu_says() {
    let mut n = Net::new(7);
    let vectors = [(19, 1.0), (19, 1.0), (1, 2.0), (1, 2.0)].map(|(n_, s)| n.0.weight(&[n_], s));
    let inputs = ["u", "h", &vectors[0], &vectors[1], &vectors[2], &vectors[3]];
    let y = n.node(Op::FastGRNN, &inputs);
    let model = n.model(
        ["u", "h"].map(|i| Input::f32(i, fixed(&[3, 19]))).to_vec(),
        &[y],
    );
    let (u, h) = (image(57), image(57));
    let inputs = [TensorView::f32(&[3, 19], &u), TensorView::f32(&[3, 19], &h)];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        1e-5,
        "cell",
    );
}

/// An encoder of two texts, one of them shorter: embeddings, positions, masks.
#[test]
#[ignore = "needs a C++ compiler"]
fn encoders_say_what_the_cpu_says() {
    let mut n = Net::new(5);
    let (table, places) = (n.0.weight(&[23, 24], 1.0), n.0.weight(&[12, 24], 0.5));
    let x = n.node(Op::Gather { axis: 0 }, &[&table, "ids"]);
    let x = n.node(Op::PositionEmbedding, &[&x, &places]);
    let (scale, bias) = (n.0.weight(&[24], 1.0), n.0.weight(&[24], 0.1));
    let x = n.node(
        Op::LayerNormalization { epsilon: 1e-5 },
        &[&x, &scale, &bias],
    );
    let (q, k) = (n.0.linear(&x, 24, 48), n.0.linear(&x, 24, 16));
    let v = n.0.linear(&x, 24, 16);
    let op = Op::Attention {
        heads: 6,
        kv_heads: 2,
        causal: false,
        cache: false,
        scale: Some(0.4),
    };
    let y = n.node(op, &[&q, &k, &v, "mask"]);
    let y = n.0.linear(&y, 48, 24);
    let x = n.node(Op::Add, &[&x, &y]);
    let mean = n.node(Op::MaskedMean, &[&x, "mask"]);
    let unit = n.node(Op::LpNormalization { axis: -1 }, &[&mean]);
    let inputs = ["ids", "mask"].map(|i| Input::i64(i, fixed(&[2, 9])));
    let model = n.model(inputs.to_vec(), &[x, unit]);
    let ids: Vec<i64> = (0..18).map(|i| (i * 5) % 23 - i64::from(i == 4)).collect();
    let mask: Vec<i64> = (0..18).map(|i| i64::from(i != 3 && i < 14)).collect();
    let inputs = [
        TensorView::i64(&[2, 9], &ids),
        TensorView::i64(&[2, 9], &mask),
    ];
    sessions(
        &model,
        machine(),
        &DeviceOptions::default(),
        &inputs,
        3e-3,
        "encoder",
    );
    let mut device = DeviceSession::new(&model, machine(), &DeviceOptions::default()).unwrap();
    let bad = vec![23; 18];
    let inputs = [
        TensorView::i64(&[2, 9], &bad),
        TensorView::i64(&[2, 9], &mask),
    ];
    let error = device.run(&inputs).unwrap_err().to_string();
    assert!(error.contains("element 0 is 23"), "{error}");
}

#[test]
#[ignore = "needs a C++ compiler"]
fn libraries_take_dense_layers_and_the_epilogue_follows() {
    for (form, kernel) in [
        (DeviceForm::DenseBlas, "cublas_gemm"),
        (DeviceForm::DenseBlasLt, "cublaslt_matmul"),
    ] {
        let mut host = Host::default();
        (host.limits.blas, host.limits.blas_lt) = (true, true);
        let model = network(2);
        let data = image(2 * 3 * 13 * 11);
        let inputs = [TensorView::f32(&[2, 3, 13, 11], &data)];
        let is_classifier = |w: &&(&str, &Node)| model.weights()[w.0].shape() == [11, 24];
        let weights = model.product_weights();
        let classifier = weights.iter().find(is_classifier).unwrap().0.to_owned();
        let options = DeviceOptions {
            forms: BTreeMap::from([(classifier, vec![form])]),
            ..DeviceOptions::default()
        };
        let device = sessions(&model, Box::new(host), &options, &inputs, 3e-3, kernel);
        let steps = device.steps().iter();
        let kernels: Vec<&str> = steps.map(|s| s.info.kernel.as_str()).collect();
        assert!(kernels.contains(&kernel), "{kernels:?}");
    }
}

#[test]
fn what_the_clock_says_is_taken_and_dense_where_it_is_faster() {
    let model = pruned(&network(1), half);
    for (fast, sparse) in [
        ("bitmask_mma", true),
        ("conv_dense_8", false),
        ("2to4", false),
    ] {
        let mut host = Host::default();
        host.clock = match fast {
            "bitmask_mma" => |w| {
                if w.kernel().contains("bitmask_mma") {
                    1e-6
                } else {
                    2e-6
                }
            },
            "conv_dense_8" => |w| {
                if w.kernel().contains("dense_8") {
                    1e-6
                } else {
                    2e-6
                }
            },
            _ => |w| {
                if w.kernel().contains("bitmask") {
                    2e-6
                } else {
                    1e-6
                }
            },
        };
        let options = DeviceOptions {
            tune: true,
            ..DeviceOptions::default()
        };
        let device = DeviceSession::new(&model, Box::new(host), &options).unwrap();
        let first = device.steps()[0].choice.clone().unwrap();
        assert!(first.measured);
        assert_eq!(first.form.is_dense(), !sparse, "{fast}");
        let reason = &device.steps()[0].info.reason;
        assert!(
            reason.contains("measured") && reason.contains(" us"),
            "{reason}"
        );
        assert!(first.legal.is_sorted_by(|a, b| a.seconds <= b.seconds));
    }
    let options = DeviceOptions {
        forms: every(&model, DeviceForm::TwoOfFourMma),
        ..DeviceOptions::default()
    };
    let error = DeviceSession::new(&model, Box::new(Host::default()), &options).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("weight `w0`") && text.contains("dense-vector"),
        "{text}"
    );
}

#[test]
#[ignore = "needs a C++ compiler"]
fn steps_are_timed_with_weights_that_no_cache_holds() {
    let model = pruned(&model(4, 2, 16, 16, true), half);
    let options = DeviceDecoderOptions {
        capacity: 8,
        chunk: 3,
        ..DeviceDecoderOptions::default()
    };
    let mut device = DeviceDecoder::new(&model, Box::new(Host::default()), &options).unwrap();
    let before = device.prefill(&[1, 2, 3]).unwrap();
    let (ceilings, times) = device.measure(PhaseKind::Step, 3).unwrap();
    assert_eq!(ceilings.gemm, None);
    assert_eq!(times.len(), device.steps(PhaseKind::Step).len());
    for (step, time) in device.steps(PhaseKind::Step).iter().zip(&times) {
        assert_eq!(time.copies > 1, step.choice.is_some(), "{}", step.info.node);
        // The clock counts a microsecond for each launch.
        let launches = step.launches.len() as f64;
        assert!((time.seconds / (launches * 1e-6) - 1.0).abs() < 1e-9);
    }
    assert_eq!(device.time(PhaseKind::Step, 3, 4).unwrap().len(), 4);
    assert!(device.time(PhaseKind::Chunk, 6, 1).is_err());
    device.truncate(0);
    assert_eq!(device.prefill(&[1, 2, 3]).unwrap(), before);
}

/// A file, whole, beside the CPU: `LACUNA_CUDA_MODEL` names it.
#[test]
#[ignore = "needs a C++ compiler and a model"]
fn a_file_says_what_the_cpu_says() {
    let Ok(path) = std::env::var("LACUNA_CUDA_MODEL") else {
        return;
    };
    let model = Model::open(&path).unwrap();
    let show = |steps: &[&DeviceStepInfo]| {
        for step in steps.iter().take(12) {
            println!(
                "{} {} {}",
                step.info.node, step.info.kernel, step.info.reason
            );
        }
    };
    let far = |got: &[f32], want: &[f32], what: &str| {
        let far = got
            .iter()
            .zip(want)
            .map(|(g, w)| (g - w).abs())
            .fold(0.0, f32::max);
        let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        println!("{path}, {what}: outputs up to {size}, at most {far} apart");
        near(got, want, 1e-2, what);
    };
    if !model.is_language_model() {
        let mut cpu = Session::new(&model, SessionOptions::default()).unwrap();
        let options = DeviceOptions::default();
        let mut device = DeviceSession::new(&model, machine(), &options).unwrap();
        let shape = cpu.inputs()[0].1.clone();
        let data = image(shape.iter().product());
        let inputs = [TensorView::f32(&shape, &data)];
        let (got, want) = (device.run(&inputs).unwrap(), cpu.run(&inputs).unwrap());
        show(&device.steps().iter().collect::<Vec<_>>());
        far(&got[0].data, &want[0].data, "network");
        return;
    }
    let ids = [1u32, 4093, 253, 281, 260, 905];
    let mut cpu = Decoder::new(&model, DecoderOptions::default()).unwrap();
    let options = DeviceDecoderOptions {
        capacity: 64,
        chunk: 16,
        ..DeviceDecoderOptions::default()
    };
    let mut device = DeviceDecoder::new(&model, machine(), &options).unwrap();
    show(&device.steps(PhaseKind::Step));
    show(&device.steps(PhaseKind::Chunk));
    for (part, what) in [(&ids[..5], "chunk"), (&ids[5..], "step")] {
        let want = cpu.prefill(part).unwrap().to_vec();
        far(&device.prefill(part).unwrap(), &want, what);
    }
}
