//! Random small transformers: the planned executor against the candle reference, and the gradients of
//! the reference against finite differences.
#![cfg(feature = "candle")]

mod common;

use candle_core::{Device, Tensor as Candle, Var};
use common::Dice;
use lacuna::candle::Reference;
use lacuna::model::{Dim, Graph, Input, Node, Op, Symbols, Weights};
use lacuna::{DType, Isa, Model, Session, SessionOptions, Tensor, TensorView, Weight};
use proptest::prelude::*;
use std::collections::HashMap;

struct Builder {
    dice: Dice,
    nodes: Vec<Node>,
    weights: Weights,
    width: usize,
}

const WORDS: usize = 23;

impl Builder {
    fn node(&mut self, op: Op, inputs: &[&str]) -> String {
        let name = format!("n{}", self.nodes.len());
        self.nodes.push(Node {
            name: name.clone(),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: name.clone(),
        });
        name
    }

    fn add(&mut self, weight: Weight) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.insert(name.clone(), weight);
        name
    }

    fn values(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.dice.value() * scale).collect()
    }

    /// A weight with a share of zeros, scaled so that a sum over a row stays near 1.
    fn weight(&mut self, shape: &[usize]) -> String {
        let keep = self.dice.pick(&[10, 50, 100]);
        let scale = 1.7 / (shape[1] as f32).sqrt();
        let mut values = self.values(shape[0] * shape[1], scale);
        for v in &mut values {
            if self.dice.below(100) >= keep {
                *v = 0.0;
            }
        }
        let weight = Weight::from_f32(shape, &values);
        let sparse = self.dice.coin();
        self.add(if sparse { weight.encode() } else { weight })
    }

    fn vector(&mut self, len: usize, scale: f32) -> String {
        let values = self.values(len, scale);
        self.add(Weight::from_f32(&[len], &values))
    }

    fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let w = self.weight(&[to, from]);
        self.node(Op::MatMul { trans_b: true }, &[x, &w])
    }

    fn norm(&mut self, x: &str) -> String {
        let (scale, bias) = (self.vector(self.width, 1.5), self.vector(self.width, 0.5));
        let epsilon = 1e-5;
        match self.dice.below(4) {
            0 => self.node(Op::LayerNormalization { epsilon }, &[x, &scale, &bias]),
            1 => self.node(Op::LayerNormalization { epsilon }, &[x, &scale]),
            2 => self.node(Op::RMSNormalization { epsilon }, &[x, &scale]),
            _ => self.node(Op::LpNormalization { axis: -1 }, &[x]),
        }
    }

    fn attend(&mut self, x: &str, masked: bool) -> String {
        let (heads, kv_heads) = self.dice.pick(&[(1, 1), (3, 1), (6, 2), (4, 4)]);
        let (size, value_size) = self.dice.pick(&[(4, 4), (16, 16), (20, 11), (6, 18)]);
        let mut q = self.linear(x, self.width, heads * size);
        let mut k = self.linear(x, self.width, kv_heads * size);
        let v = self.linear(x, self.width, kv_heads * value_size);
        if self.dice.coin() {
            let pairs = 1 + self.dice.below(size / 2);
            let values = self.values(pairs, 1.0);
            let frequencies = self.add(Weight::from_f32(&[pairs], &values));
            let (interleaved, scale) = (self.dice.coin(), self.dice.pick(&[1.0, 1.2]));
            let op = |heads| Op::RotaryEmbedding {
                heads,
                interleaved,
                scale,
            };
            q = self.node(op(heads), &[&q, &frequencies]);
            k = self.node(op(kv_heads), &[&k, &frequencies]);
        }
        let op = Op::Attention {
            heads,
            kv_heads,
            causal: self.dice.coin(),
            cache: self.dice.coin(),
            scale: self.dice.pick(&[None, Some(0.4)]),
        };
        let inputs = [q.as_str(), &k, &v, "mask"];
        let y = self.node(op, &inputs[..if masked { 4 } else { 3 }]);
        let y = self.linear(&y, heads * value_size, self.width);
        self.node(Op::Add, &[x, &y])
    }

    fn feed(&mut self, x: &str) -> String {
        let inner = 1 + self.dice.below(40);
        let gate = self.linear(x, self.width, inner);
        let op = match self.dice.below(5) {
            0 => Op::Gelu { approximate: false },
            1 => Op::Gelu { approximate: true },
            2 => Op::Swish { alpha: 1.702 },
            3 => Op::Tanh,
            _ => Op::Swish { alpha: 1.0 },
        };
        let mut y = self.node(op, &[&gate]);
        if self.dice.coin() {
            let up = self.linear(x, self.width, inner);
            let inputs = [y.as_str(), &up];
            let inputs = if self.dice.coin() {
                inputs
            } else {
                [inputs[1], inputs[0]]
            };
            y = self.node(Op::Mul, &inputs);
        }
        let y = self.linear(&y, inner, self.width);
        self.node(Op::Add, &[&y, x])
    }
}

/// A transformer over ids `[N, T]`; with a mask, one that the mean at its end reads too.
fn transformer(seed: u64, layers: usize) -> (Model, bool) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (masked, width) = (dice.coin(), dice.pick(&[8, 17, 32, 50]));
    let mut b = Builder {
        dice,
        nodes: Vec::new(),
        weights: Weights::new(),
        width,
    };
    let table = b.weight(&[WORDS, width]);
    if b.dice.coin() {
        let half = b.weights[&table].decode();
        let bytes: Vec<u8> = half
            .to_f32()
            .unwrap_or_default()
            .iter()
            .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
            .collect();
        let half = Weight::dense(vec![WORDS, width], DType::BF16, bytes.into()).unwrap();
        b.weights.insert(table.clone(), half);
    }
    let mut x = b.node(Op::Gather { axis: 0 }, &[&table, "ids"]);
    if b.dice.coin() {
        let places = b.weight(&[40, width]);
        x = b.node(Op::PositionEmbedding, &[&x, &places]);
    }
    for _ in 0..layers {
        if b.dice.coin() {
            x = b.norm(&x);
        }
        x = if b.dice.coin() {
            b.attend(&x, masked)
        } else {
            b.feed(&x)
        };
    }
    x = b.norm(&x);
    if masked {
        x = b.node(Op::MaskedMean, &[&x, "mask"]);
    }
    if b.dice.coin() {
        x = b.linear(&x, width, 9);
    }
    if b.dice.coin() {
        x = b.node(Op::Softmax { axis: -1 }, &[&x]);
    }
    let shape = || vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())];
    let mut inputs = vec![Input::i64("ids", shape())];
    if masked {
        inputs.push(Input::i64("mask", shape()));
    }
    let graph = Graph {
        name: format!("seed {seed}"),
        inputs,
        outputs: vec![x],
        nodes: b.nodes,
    };
    (Model::new(graph, b.weights).unwrap(), masked)
}

/// max|a-b| / max|b|, where max|b| counts as 0.1 at least.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0.1f32, |m, b| m.max(b.abs()));
    let worst = |m: f32, d: f32| if d > m || d.is_nan() { d } else { m };
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, worst) / scale
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_computes_what_the_reference_computes(
        seed in any::<u64>(),
        batch in 1..3usize,
        tokens in 1..40usize,
        layers in 0..6usize,
    ) {
        let (model, masked) = transformer(seed, layers);
        let mut dice = Dice(seed | 1);
        let count = batch * tokens;
        let ids: Vec<i64> = (0..count)
            .map(|_| dice.below(2 * WORDS) as i64 - WORDS as i64)
            .collect();
        let hide = dice.pick(&[0, 30, 100]);
        let mask: Vec<i64> = (0..count).map(|_| i64::from(dice.below(100) >= hide)).collect();
        let shape = [batch, tokens];
        let given = [TensorView::i64(&shape, &ids), TensorView::i64(&shape, &mask)];
        let given = &given[..1 + usize::from(masked)];
        let candles: Vec<Candle> = given.iter().map(|&v| Candle::try_from(v).unwrap()).collect();
        let expected = Reference::new(&model).unwrap().run(&candles).unwrap();
        let expected = Tensor::try_from(&expected[0]).unwrap();
        for isa in Isa::available() {
            for dense in [false, true] {
                let options = SessionOptions {
                    threads: 1 + (seed % 2) as usize,
                    isa: Some(isa.name().into()),
                    dense,
                    symbols: Symbols::from([("N".into(), batch), ("T".into(), tokens)]),
                    ..SessionOptions::default()
                };
                let mut session = Session::new(&model, options).unwrap();
                let output = session.run(given).unwrap().remove(0);
                prop_assert_eq!(&output.shape, &expected.shape);
                let off = difference(&output.data, &expected.data);
                prop_assert!(off <= 3e-5, "{isa}, dense {dense}: {off}\n{:#?}", model.graph());
            }
        }
    }
}

#[test]
fn integer_inputs_take_any_integer_dtype_and_no_other() {
    let (model, _) = (0..)
        .map(|seed| transformer(seed, 0))
        .find(|t| !t.1)
        .unwrap();
    let reference = Reference::new(&model).unwrap();
    let ids = |dtype| {
        let ids = Candle::new(&[[1i64, 2, 3]], &Device::Cpu).unwrap();
        ids.to_dtype(dtype).unwrap()
    };
    let wide = reference.run(&[ids(candle_core::DType::I64)]).unwrap();
    let narrow = reference.run(&[ids(candle_core::DType::U32)]).unwrap();
    let values = |t: &Candle| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&wide[0]), values(&narrow[0]));
    let error = reference.run(&[ids(candle_core::DType::F32)]).unwrap_err();
    assert!(error.to_string().contains("I64"), "{error}");
    let outside = Candle::new(&[[0i64, WORDS as i64]], &Device::Cpu).unwrap();
    let error = reference.run(&[outside]).unwrap_err().to_string();
    assert!(error.contains("index 23 of an axis of 23"), "{error}");
}

#[test]
fn gradients_agree_with_finite_differences() {
    for seed in [3, 4, 5, 6, 7, 8, 9, 10] {
        let (model, masked) = transformer(seed, 4);
        let ids = Candle::new(&[[1i64, 2, 3, 2, 20]], &Device::Cpu).unwrap();
        let mask = Candle::new(&[[1i64, 0, 1, 1, 1]], &Device::Cpu).unwrap();
        let inputs = &[ids, mask][..1 + usize::from(masked)];
        let mut vars = HashMap::new();
        for (name, weight) in model.weights() {
            let values = weight.to_f32().unwrap();
            let tensor = Candle::from_vec(values, weight.shape(), &Device::Cpu).unwrap();
            vars.insert(name.clone(), Var::from_tensor(&tensor).unwrap());
        }
        let tensors = || vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone()));
        // Weighted, so that a softmax does not sum to a constant.
        let loss = |weights: HashMap<String, Candle>| {
            let reference = Reference::with_weights(&model, weights).unwrap();
            let y = reference
                .run(inputs)
                .unwrap()
                .remove(0)
                .flatten_all()
                .unwrap();
            let factors: Vec<f32> = (0..y.elem_count()).map(|i| (i % 7) as f32 - 2.5).collect();
            let factors = Candle::from_vec(factors, y.elem_count(), &Device::Cpu).unwrap();
            (y * factors).unwrap().sum_all().unwrap()
        };
        let grads = loss(tensors().collect()).backward().unwrap();
        let frequencies: Vec<&String> = (model.graph().nodes.iter())
            .filter(|n| matches!(n.op, Op::RotaryEmbedding { .. }))
            .map(|n| &n.inputs[1])
            .collect();
        for (name, var) in &vars {
            if frequencies.contains(&name) {
                continue;
            }
            let Some(grad) = grads.get(var.as_tensor()) else {
                // Weights that no node reads.
                assert!(
                    !model.graph().nodes.iter().any(|n| n.inputs.contains(name)),
                    "{name}"
                );
                continue;
            };
            // Along the gradient itself the slope is its squared length.
            let square = grad
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            if square < 1e-3 {
                continue;
            }
            let step = 2e-3 / f64::from(square).sqrt();
            let at = |sign: f64| {
                let moved = (var.as_tensor() + (grad * (step * sign)).unwrap()).unwrap();
                let mut weights: HashMap<String, Candle> = tensors().collect();
                weights.insert(name.clone(), moved);
                f64::from(loss(weights).to_scalar::<f32>().unwrap())
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            let off = (slope / f64::from(square) - 1.0).abs();
            let loss_size = f64::from(loss(tensors().collect()).to_scalar::<f32>().unwrap()).abs();
            let rounding = 2e-6 * (1.0 + loss_size) / (step * f64::from(square));
            assert!(
                off < 0.02 + rounding,
                "seed {seed}, {name}: {slope} and {square}"
            );
        }
    }
}
