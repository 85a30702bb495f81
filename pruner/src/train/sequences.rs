//! Gradients through time against candle's, over an unrolled graph, and against central differences in f64.

use super::engine::Engine;
use super::gradients::{close, numbers, reference};
use super::loader::Batch;
use super::network::Network;
use super::tape::Tape;
use crate::tasks::{Found, Target};
use candle_core::{Device, Tensor};
use lacuna::model::{Op, Weight};
use lacuna::{Isa, Model};
use std::collections::HashMap;

const TIME: usize = 7;
const CHANNELS: usize = 5;
const CLASSES: usize = 3;
const SMOOTHING: f32 = 0.1;

/// A network of this architecture with weights large enough to leave the linear range.
fn network(arch: &str) -> Model {
    let options = lacuna_convert::Options {
        arch: Some(arch.into()),
        ..Default::default()
    };
    let mut model = lacuna_convert::untrained(&options, 0).unwrap();
    let names: Vec<String> = model.weights().keys().cloned().collect();
    for (i, name) in names.iter().enumerate() {
        let weight = &model.weights()[name];
        let shape = weight.shape().to_vec();
        let drawn = numbers(weight.numel(), i as u64 + 1);
        let values: Vec<f32> = match shape.len() {
            2 => drawn.iter().map(|x| 0.7 * x).collect(),
            _ => drawn.iter().map(|x| 0.9 * x - 0.2).collect(),
        };
        model
            .set_weight(name, Weight::from_f32(&shape, &values))
            .unwrap();
    }
    model
}

/// `U` stored the other way round.
fn turned(model: &Model) -> Model {
    let mut graph = model.graph().clone();
    let mut weights = model.weights().clone();
    let node = graph
        .nodes
        .iter_mut()
        .find(|n| n.inputs.contains(&"rnn.U".to_owned()));
    node.unwrap().op = Op::MatMul { trans_b: false };
    let old = weights["rnn.U"].to_f32().unwrap();
    let n = weights["rnn.U"].shape()[0];
    let values: Vec<f32> = (0..n * n).map(|i| old[i % n * n + i / n]).collect();
    weights.insert("rnn.U".into(), Weight::from_f32(&[n, n], &values));
    Model::new(graph, weights).unwrap()
}

fn labels(batch: usize) -> Vec<usize> {
    (0..batch).map(|n| n * 2 % CLASSES).collect()
}

fn batch_of(x: &[f32], batch: usize) -> Batch {
    Batch {
        samples: x.to_vec(),
        time: TIME,
        count: batch,
        targets: vec![Target::of_classes(&labels(batch))],
    }
}

/// A model with the gradients of a batch, and its loss.
fn step(model: &Model, x: &[f32], batch: usize) -> (Network, Found) {
    let mut network = Network::new(model).unwrap();
    let loss = (Tape::new().unwrap())
        .step(&mut network, &batch_of(x, batch), SMOOTHING)
        .unwrap()
        .remove(0);
    (network, loss)
}

fn against_candle(what: &str, model: &Model, batch: usize) {
    let x = numbers(batch * TIME * CHANNELS, 99);
    let (network, loss) = step(model, &x, batch);

    let device = Device::Cpu;
    let (reference, vars) = reference(model);
    let all = Tensor::from_vec(x, (batch, TIME, CHANNELS), &device).unwrap();
    let width = model.weights()["rnn.bias_gate"].numel();
    let mut state = Tensor::zeros((batch, width), candle_core::DType::F32, &device).unwrap();
    let mut logits = None;
    for t in 0..TIME {
        let step = all.narrow(1, t, 1).unwrap().squeeze(1).unwrap();
        let mut outputs = reference.run(&[step.contiguous().unwrap(), state]).unwrap();
        state = outputs.remove(1);
        logits = Some(outputs.remove(0));
    }
    let log = candle_nn::ops::log_softmax(&logits.unwrap(), 1).unwrap();
    let even = SMOOTHING / CLASSES as f32;
    let target: Vec<f32> = labels(batch)
        .iter()
        .flat_map(|&l| (0..CLASSES).map(move |c| even + if c == l { 1.0 - SMOOTHING } else { 0.0 }))
        .collect();
    let target = Tensor::from_vec(target, (batch, CLASSES), &device).unwrap();
    let expected = ((log * target).unwrap().sum_all().unwrap() * (-1.0 / batch as f64)).unwrap();
    let value = f64::from(expected.to_scalar::<f32>().unwrap());
    let found = loss.sum / batch as f64;
    assert!(
        (found - value).abs() < 1e-5 * value.max(1.0),
        "{what}: loss {found}, not {value}"
    );
    let gradients = expected.backward().unwrap();
    for (p, own) in network.parameters.iter().zip(&network.gradients) {
        if p.name.starts_with("input.") {
            assert!(own.is_empty(), "{what}: {} is trained", p.name);
            continue;
        }
        let g = gradients.get(vars[&p.name].as_tensor()).unwrap();
        close(
            &format!("{what}: {}", p.name),
            own,
            &g.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        );
    }
}

#[test]
fn cells_have_candles_gradients() {
    let full = network("fastgrnn-5-19-3");
    against_candle("full rank", &full, 29);
    against_candle("one sequence", &full, 1);
    against_candle("turned", &turned(&full), 13);
    against_candle("low rank", &network("fastgrnn-5-37-3-4-6"), 12);
    against_candle("wide", &network("fastgrnn-5-80-3"), 3);
}

/// The loss of the first networks above, in f64 and by the definition.
fn loss_in_f64(x: &[f64], p: &HashMap<String, Vec<f64>>, batch: usize, low: bool) -> f64 {
    let width = p["rnn.bias_gate"].len();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let times = |matrix: &str, x: &[f64]| -> Vec<f64> {
        let rows = p[matrix].chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
            .collect()
    };
    let product = |name: &str, x: &[f64]| match low {
        true => times(&format!("rnn.{name}2"), &times(&format!("rnn.{name}1"), x)),
        false => times(&format!("rnn.{name}"), x),
    };
    let (zeta, nu) = (sigmoid(p["rnn.zeta"][0]), sigmoid(p["rnn.nu"][0]));
    let mut loss = 0.0;
    for (sequence, label) in x.chunks_exact(TIME * CHANNELS).zip(labels(batch)) {
        let mut h = vec![0.0; width];
        for step in sequence.chunks_exact(CHANNELS) {
            let (wx, uh) = (product("W", step), product("U", &h));
            for (i, h) in h.iter_mut().enumerate() {
                let u = wx[i] + uh[i];
                let z = sigmoid(u + p["rnn.bias_gate"][i]);
                let c = (u + p["rnn.bias_update"][i]).tanh();
                *h = z * *h + (zeta * (1.0 - z) + nu) * c;
            }
        }
        let logits: Vec<f64> = (times("fc.weight", &h).iter().zip(&p["fc.bias"]))
            .map(|(a, b)| a + b)
            .collect();
        let log = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        for (class, l) in logits.iter().enumerate() {
            let smoothing = f64::from(SMOOTHING);
            let own = if class == label { 1.0 - smoothing } else { 0.0 };
            loss -= (own + smoothing / CLASSES as f64) * (l - log) / batch as f64;
        }
    }
    loss
}

#[test]
fn cells_have_the_gradients_of_central_differences() {
    for (arch, low) in [("fastgrnn-5-19-3", false), ("fastgrnn-5-18-3-4-6", true)] {
        let (model, batch) = (network(arch), 14);
        let x = numbers(batch * TIME * CHANNELS, 5);
        let (trained, loss) = step(&model, &x, batch);
        let x: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        let mut p: HashMap<String, Vec<f64>> = (model.weights().iter())
            .map(|(n, w)| {
                (
                    n.clone(),
                    w.to_f32().unwrap().iter().map(|&v| v.into()).collect(),
                )
            })
            .collect();
        let expected = loss_in_f64(&x, &p, batch, low);
        let found = loss.sum / batch as f64;
        assert!(
            (found - expected).abs() < 1e-5,
            "{arch}: {found} is not {expected}"
        );
        for (parameter, own) in trained.parameters.iter().zip(&trained.gradients) {
            assert_eq!(own.len(), parameter.data.len());
            let (mut found, mut differences) = (Vec::new(), Vec::new());
            for i in (0..own.len()).step_by(own.len().div_ceil(23)) {
                let mut at = |d: f64| {
                    p.get_mut(&parameter.name).unwrap()[i] += d;
                    let loss = loss_in_f64(&x, &p, batch, low);
                    p.get_mut(&parameter.name).unwrap()[i] -= d;
                    loss
                };
                differences.push(((at(1e-6) - at(-1e-6)) / 2e-6) as f32);
                found.push(own[i]);
            }
            close(&format!("{arch}: {}", parameter.name), &found, &differences);
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let model = network("fastgrnn-5-19-3-4-6");
    let x = numbers(14 * TIME * CHANNELS, 5);
    let run = |isa: Isa| {
        let mut network = Network::new(&model).unwrap();
        Tape::with_isa(isa)
            .step(&mut network, &batch_of(&x, 14), 0.0)
            .unwrap();
        network.gradients
    };
    let all: Vec<Vec<Vec<f32>>> = Isa::available().into_iter().map(run).collect();
    for other in &all[1..] {
        for (a, b) in all[0].iter().zip(other) {
            close("between instruction sets", b, a);
        }
    }
}

#[test]
fn other_graphs_are_refused_by_name() {
    let model = network("fastgrnn-5-19-3");
    let refused = |change: &dyn Fn(&mut lacuna::model::Graph)| {
        let mut graph = model.graph().clone();
        change(&mut graph);
        let model = Model::new(graph, model.weights().clone()).unwrap();
        match Network::new(&model) {
            Ok(_) => panic!("is trained"),
            Err(e) => e.to_string(),
        }
    };
    let at = |graph: &lacuna::model::Graph, op: &Op| {
        graph.nodes.iter().position(|n| n.op == *op).unwrap()
    };
    let error = refused(&|g| {
        let sum = at(g, &Op::Add);
        g.nodes[sum].op = Op::Mul;
    });
    assert!(error.contains("not a sum of two"), "{error}");
    let error = refused(&|g| {
        let sum = at(g, &Op::Add);
        g.nodes[sum].inputs[1] = "h".into();
    });
    assert!(error.contains("no operand of it is a product"), "{error}");
    let error = refused(&|g| {
        let cell = at(g, &Op::FastGRNN);
        g.nodes[cell].inputs[3] = g.nodes[cell].inputs[2].clone();
    });
    assert!(error.contains("reads a weight twice"), "{error}");
}
