//! A tiny network, images that it can learn, and a folder with both.

#![allow(dead_code)] // Each test binary uses its part.

use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Weight, Weights};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const SIDE: usize = 9;
pub const IMAGES: usize = 96;

pub fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 32_768.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Convolution, normalisation, a depthwise convolution, and a linear layer to three classes.
pub fn network() -> Model {
    let node = |name: &str, op: Op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: name.into(),
    };
    let conv = |stride, groups| Op::Conv {
        strides: [stride; 2],
        padding: Padding::Explicit([1; 4]),
        dilations: [1; 2],
        groups,
    };
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let image = [3, SIDE, SIDE].map(Dim::Fixed);
    let shape = std::iter::once(Dim::Symbol("N".into()))
        .chain(image)
        .collect();
    let graph = Graph {
        name: "tiny".into(),
        inputs: vec![Input::f32("x", shape)],
        outputs: vec!["fc".into()],
        nodes: vec![
            node("c1", conv(2, 1), &["x", "c1.w"]),
            node(
                "n1",
                Op::BatchNormalization { epsilon: 1e-5 },
                &["c1", "n1.s", "n1.b", "n1.m", "n1.v"],
            ),
            node("r1", Op::Relu, &["n1"]),
            node("c2", conv(1, 12), &["r1", "c2.w"]),
            node("r2", Op::HardSwish, &["c2"]),
            node("pool", Op::GlobalAveragePool, &["r2"]),
            node("flat", Op::Flatten { axis: 1 }, &["pool"]),
            node("fc", gemm, &["flat", "fc.w", "fc.b"]),
        ],
    };
    let mut weights = Weights::new();
    for (i, (name, shape)) in [
        ("c1.w", vec![12, 3, 3, 3]),
        ("c2.w", vec![12, 1, 3, 3]),
        ("fc.w", vec![3, 12]),
    ]
    .iter()
    .enumerate()
    {
        let values = numbers(shape.iter().product(), i as u32);
        weights.insert(name.to_string(), Weight::from_f32(shape, &values));
    }
    for (name, value, len) in [
        ("n1.s", 1.0, 12),
        ("n1.b", 0.0, 12),
        ("n1.m", 0.0, 12),
        ("n1.v", 1.0, 12),
        ("fc.b", 0.0, 3),
    ] {
        weights.insert(name.into(), Weight::from_f32(&[len], &vec![value; len]));
    }
    Model::new(graph, weights).unwrap()
}

/// Noise in which the strongest colour is the class.
pub fn images(path: &Path, count: usize, label: impl Fn(usize) -> u8) {
    let plane = SIDE * SIDE;
    let noise = numbers(count * 3 * plane, 9);
    let pixels: Vec<u8> = (noise.iter().enumerate())
        .map(|(i, x)| {
            (110.0
                + 90.0 * x
                + if i / plane % 3 == i / plane / 3 % 3 {
                    40.0
                } else {
                    0.0
                }) as u8
        })
        .collect();
    let labels: Vec<u8> = (0..count).map(label).collect();
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::U8, shape, data).unwrap();
    let mut tensors = Vec::new();
    for split in ["train", "test"] {
        tensors.push((
            format!("{split}_images"),
            view(vec![count, 3, SIDE, SIDE], &pixels),
        ));
        tensors.push((format!("{split}_labels"), view(vec![count], &labels)));
    }
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        images(&place.file("data.safetensors"), IMAGES, |i| (i % 3) as u8);
        network().save(place.file("in.safetensors")).unwrap();
        place
    }

    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
        command
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.args([
            "global-mp",
            "in.safetensors",
            "--sparsity",
            "0.6",
            "--fine-tune",
            "12",
            "--data",
            "data.safetensors",
        ]);
        command.args([
            "--batch",
            "4",
            "--lr",
            "0.05",
            "--crop",
            "1",
            "--flip",
            "--test-split",
            "test",
            "-o",
            output,
        ]);
        command.args(more);
        command
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }
}

pub fn well(output: Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Starts a program again and again, kills it a little later every time, so that kills fall into steps and into writes, until
/// it ends by itself. `whole` is how long it takes undisturbed. At least one kill finds a checkpoint.
pub fn until_it_ends(whole: Duration, checkpoint: &Path, program: impl Fn() -> Command) {
    let mut kills = 0;
    for round in 1..=200u32 {
        let mut child = program().spawn().unwrap();
        let until = Instant::now() + whole * round / 40 + Duration::from_millis(u64::from(round));
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(_) => break true,
                None if Instant::now() >= until => break false,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if ended {
            well(child.wait_with_output().unwrap());
            assert!(kills > 0, "no kill came after a checkpoint");
            return;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += usize::from(checkpoint.exists());
    }
    panic!("it never ended by itself");
}
