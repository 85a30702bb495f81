//! Whole models through the plan that a GPU runs, beside the CPU's session. They need a C++ compiler, or a GPU.

mod choice;
mod decoders;
mod networks;

use super::super::sequence_tests::{Builder, model};
use super::{DeviceDecoder, DeviceDecoderOptions, DeviceSession};
use crate::cuda::{DeviceForm, DeviceOptions, DeviceStepInfo, Machine};
use crate::kernels::cuda::machine::machine;
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
