//! Candle's engine against the tape: the same losses, gradients and statistics, and the same descent.

use super::engine::{Device, open};
use super::gradients::{BATCH, Net, channels_last, close, images, labels, numbers};
use super::loader::Batch;
use super::network::Network;
use super::optimiser::Memory;
use super::{DataSettings, Effort, Optimizer, TrainSettings, train};
use crate::tasks::Target;
use crate::{AllocatorName, Recipe};
use lacuna::Model;
use lacuna::model::{Op, Weight};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

impl Net {
    /// A convolution without bias, padded to keep the size at stride 1, and its normalisation.
    fn conv_norm(mut self, outputs: usize, each: usize, k: usize, stride: usize) -> Net {
        let own = |net: &Net| net.weights.len();
        let groups = if each == 1 { outputs } else { 1 };
        let w = self.weight(&[outputs, each, k, k]);
        let padding = lacuna::model::Padding::Explicit([k / 2; 4]);
        let op = Op::Conv {
            strides: [stride; 2],
            padding,
            dilations: [1; 2],
            groups,
        };
        let last = self.last.clone();
        let conv = self.node(op, &[&last, &w]);
        let parts: Vec<String> = (0..4).map(|_| self.weight(&[outputs])).collect();
        let seed = own(&self) as u64;
        let variance: Vec<f32> = numbers(outputs, seed).iter().map(|x| x.abs()).collect();
        self.weights
            .insert(parts[3].clone(), Weight::from_f32(&[outputs], &variance));
        let [s, b, m, v] = [0, 1, 2, 3].map(|i| parts[i].as_str());
        self.node(
            Op::BatchNormalization { epsilon: 1e-5 },
            &[&conv, s, b, m, v],
        );
        self
    }

    /// A residual block; with a stride its way round is a convolution too.
    fn block(self, inputs: usize, outputs: usize, stride: usize) -> Net {
        let from = self.last.clone();
        let mut net = (self.conv_norm(outputs, inputs, 3, stride).then(Op::Relu))
            .conv_norm(outputs, outputs, 3, 1);
        let way = net.last.clone();
        let round = if stride == 1 && inputs == outputs {
            from
        } else {
            net.last = from;
            net = net.conv_norm(outputs, inputs, 1, stride);
            net.last.clone()
        };
        let sum = net.node(Op::Add, &[&way, &round]);
        net.node(Op::Relu, &[&sum]);
        net
    }

    /// A pointwise convolution, a depthwise one, and a pointwise one without an activation, with limits of 6.
    fn inverted(self, inputs: usize, wide: usize, outputs: usize, stride: usize) -> Net {
        let six = || Op::Clip {
            min: Some(0.0),
            max: Some(6.0),
        };
        (self.conv_norm(wide, inputs, 1, 1).then(six()))
            .conv_norm(wide, 1, 3, stride)
            .then(six())
            .conv_norm(outputs, wide, 1, 1)
    }
}

fn resnet() -> Model {
    (Net::new([3, 9, 8]).conv_norm(8, 3, 3, 1).then(Op::Relu))
        .block(8, 8, 1)
        .block(8, 12, 2)
        .then(Op::GlobalAveragePool)
        .model()
}

fn mobilenet() -> Model {
    (Net::new([3, 9, 8]).conv_norm(8, 3, 3, 2).then(Op::Relu))
        .inverted(8, 24, 10, 1)
        .inverted(10, 20, 10, 2)
        .then(Op::GlobalAveragePool)
        .model()
}

#[test]
fn both_engines_have_the_same_loss_gradients_and_statistics() {
    for (what, model) in [("resnet", resnet()), ("mobilenet", mobilenet())] {
        let (x, input) = images(&model);
        let x = channels_last(&x, input);
        let [own, other] = [Device::Cpu, Device::Candle].map(|device| {
            let mut network = Network::new(&model).unwrap();
            let mut engine = open(device, &network).unwrap();
            let loss = engine
                .step(&mut network, &Batch::of_images(&x, &labels()), 0.1)
                .unwrap()
                .remove(0);
            (network, loss)
        });
        let (loss, expected) = (other.1.sum, own.1.sum);
        assert!(
            (loss - expected).abs() <= 1e-5 * expected,
            "{what}: loss {loss} is not {expected}"
        );
        assert_eq!(other.1.correct, own.1.correct, "{what}");
        let size = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let sizes = own.0.gradients.iter().map(|g| size(g));
        let largest = sizes.fold(0.0, f64::max);
        for (i, p) in own.0.parameters.iter().enumerate() {
            let (found, expected) = (&other.0.gradients[i], &own.0.gradients[i]);
            let apart: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            assert!(
                // A bias before a normalisation has no gradient but rounding.
                size(&apart) <= 1e-4 * size(expected).max(1e-2 * largest),
                "{what}: the gradient of {}: {} of {}",
                p.name,
                size(&apart),
                size(expected)
            );
            // Running statistics were moved, and alike.
            close(&p.name, &other.0.parameters[i].data, &p.data);
            if p.role == super::network::Role::Statistic {
                assert_ne!(p.data, model.weights()[&p.name].to_f32().unwrap());
            }
        }
    }
}

/// Classes, pixels of a resized map and a distance, of which the last two read the same value.
#[test]
fn both_engines_have_the_same_losses_and_gradients_of_several_tasks() {
    let mut net = (Net::new([3, 9, 8]).conv_norm(8, 3, 3, 1).then(Op::Relu))
        .block(8, 12, 2)
        .conv_norm(4, 12, 1, 1);
    let map = net.last.clone();
    let resize = Op::Resize {
        resized: lacuna::model::Resized::Sizes([9, 8]),
        interpolation: lacuna::model::Interpolation::Linear,
        coordinates: lacuna::model::Coordinates::HalfPixel,
    };
    let pixels = net.node(resize, &[&map]);
    net.last = map.clone();
    let model = net.then(Op::GlobalAveragePool).model();
    let mut graph = model.graph().clone();
    graph.outputs.extend([pixels.clone(), map.clone()]);
    let model = Model::new(graph, model.weights().clone()).unwrap();
    let task = |text: String| text.parse().unwrap();
    let tasks = [
        task(format!(
            "name=a,output={},loss=cross-entropy,labels=x",
            model.graph().outputs[0]
        )),
        task(format!(
            "name=b,output={pixels},loss=cross-entropy,labels=x,ignore=9,weight=0.3"
        )),
        task(format!("name=c,output={map},loss=mse,weight=2")),
    ];
    let (x, input) = images(&model);
    let x = channels_last(&x, input);
    let [own, other] = [Device::Cpu, Device::Candle].map(|device| {
        let mut network = Network::with_tasks(&model, &tasks).unwrap();
        let mut batch = Batch::of_images(&x, &labels());
        let each = |h: &crate::tasks::Head| h.rows * h.width * BATCH;
        let mask: Vec<usize> = (0..BATCH * 72).map(|i| [0, 3, 9, 1, 2][i % 5]).collect();
        batch.targets.push(Target::of_classes(&mask));
        batch
            .targets
            .push(Target::Numbers(numbers(each(&network.heads[2]), 3)));
        let mut engine = open(device, &network).unwrap();
        let losses = engine.step(&mut network, &batch, 0.1).unwrap();
        (network, losses)
    });
    for (a, b) in own.1.iter().zip(&other.1) {
        assert!((a.sum - b.sum).abs() <= 1e-5 * a.sum, "{a:?} {b:?}");
        assert!(a.sum > 0.0);
    }
    for (i, p) in own.0.parameters.iter().enumerate() {
        close(&p.name, &other.0.gradients[i], &own.0.gradients[i]);
    }
}

#[test]
fn steps_of_both_engines_end_at_the_same_weights() {
    for optimizer in [Optimizer::Sgd, Optimizer::Adam] {
        for model in [resnet(), mobilenet()] {
            let (x, input) = images(&model);
            let x = channels_last(&x, input);
            let settings = TrainSettings {
                optimizer,
                ..TrainSettings::default()
            };
            let [own, other] = [Device::Cpu, Device::Candle].map(|device| {
                let mut network = Network::new(&model).unwrap();
                let mut engine = open(device, &network).unwrap();
                let mut memory = Memory::new(&network.parameters, optimizer);
                // Every third weight is gone.
                let masks: Vec<Vec<u8>> = (network.parameters.iter())
                    .map(|p| match p.shape.len() {
                        4 => (0..p.data.len()).map(|i| u8::from(i % 3 > 0)).collect(),
                        _ => Vec::new(),
                    })
                    .collect();
                for _ in 0..5 {
                    engine
                        .step(&mut network, &Batch::of_images(&x, &labels()), 0.0)
                        .unwrap();
                    let Network {
                        parameters,
                        gradients,
                        ..
                    } = &mut network;
                    memory.step(&settings, 0.01, parameters, gradients, &masks);
                }
                network
            });
            for (a, b) in other.parameters.iter().zip(&own.parameters) {
                let scale = b.data.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
                for (i, (x, y)) in a.data.iter().zip(&b.data).enumerate() {
                    assert!(
                        (x - y).abs() <= 1e-3 * scale,
                        "{optimizer:?}: {}[{i}] {x} is not {y}",
                        a.name
                    );
                    assert!(a.shape.len() != 4 || i % 3 > 0 || *x == 0.0);
                }
            }
        }
    }
}

/// Images of noise, some more than a batch.
fn noise(path: &Path, [c, h, w]: [usize; 3]) {
    let count = 4 * BATCH + 2;
    let bytes: Vec<u8> = (numbers(count * c * h * w, 5).iter())
        .map(|x| (127.0 + 127.0 * x) as u8)
        .collect();
    let labels: Vec<u8> = (0..count).map(|i| (i % 5) as u8).collect();
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::U8, shape, data).unwrap();
    let tensors = [
        ("train_images", view(vec![count, c, h, w], &bytes)),
        ("train_labels", view(vec![count], &labels)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn a_run_goes_on_on_another_device() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("noise.safetensors");
    noise(&data, [3, 9, 8]);
    let settings = TrainSettings {
        epochs: 3,
        batch: BATCH,
        lr: 0.01,
        data: DataSettings {
            path: data,
            ..DataSettings::default()
        },
        ..TrainSettings::default()
    };
    let recipe = Recipe::new(AllocatorName::GlobalMagnitude, 0.5);
    let [at, after] = ["run", "first"].map(|n| dir.path().join(n));
    let run = |device, checkpoint: &Path, keep: bool| {
        let effort = Effort {
            device,
            checkpoint: Some(checkpoint.to_owned()),
            ..Effort::default()
        };
        let mut resumed = 0;
        let trained = train(&resnet(), Some(&recipe), &settings, &effort, &mut |p| {
            resumed = p.resumed;
            if keep && p.row.is_some_and(|r| r.epoch == 1) {
                std::fs::copy(checkpoint, &after).unwrap();
            }
        });
        (trained.unwrap(), resumed)
    };
    let (whole, _) = run(Device::Cpu, &at, true);
    let (mixed, resumed) = run(Device::Candle, &after, false);
    assert_eq!(resumed, 1);
    let devices: Vec<Device> = mixed.rows.iter().map(|r| r.device).collect();
    assert_eq!(devices, [Device::Cpu, Device::Candle, Device::Candle]);
    assert_eq!(mixed.rows[0].loss, whole.rows[0].loss);
    for (name, weight) in whole.model.weights() {
        let other = &mixed.model.weights()[name];
        assert_eq!(other.count_nonzero(), weight.count_nonzero(), "{name}");
        let (found, expected) = (other.to_f32().unwrap(), weight.to_f32().unwrap());
        let scale = expected.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) <= 1e-2 * scale, "{name}");
    }
}

#[test]
fn a_gpu_that_is_not_built_for_is_refused_with_the_way_to_build() {
    let network = Network::new(&resnet()).unwrap();
    let e = open(Device::Cuda(0), &network).map(|_| ());
    let e = e.unwrap_err().to_string();
    // With CUDA there is none in most places where tests run; then the driver says so.
    assert!(e.contains("cuda:0"), "{e}");
    if !cfg!(feature = "cuda") {
        assert!(e.contains("--features cuda"), "{e}");
    }
}
