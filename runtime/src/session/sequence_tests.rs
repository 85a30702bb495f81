//! A sequence in pieces: however its tokens are handed over, the last layer sees the same.

use super::bound::{Arena, Bound, Cache};
use super::{Session, SessionOptions};
use crate::kernels::cpu::team::Team;
use crate::kernels::cpu::{Isa, Sequence};
use crate::model::{Dim, Graph, Input, Node, Op, Symbols, Weights};
use crate::plan::{Plan, PlanOptions, Slot};
use crate::{Model, TensorView, Weight};

const WORDS: usize = 30;

pub(super) struct Builder {
    pub seed: u64,
    pub nodes: Vec<Node>,
    pub weights: Weights,
}

impl Builder {
    pub fn weight(&mut self, shape: &[usize], scale: f32) -> String {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                let seed = self.seed.wrapping_mul(6364136223846793005);
                self.seed = seed.wrapping_add(1442695040888963407);
                ((self.seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale
            })
            .collect();
        let name = format!("w{}", self.weights.len());
        self.weights
            .insert(name.clone(), Weight::from_f32(shape, &values));
        name
    }

    pub fn node(&mut self, op: Op, inputs: &[&str]) -> String {
        let name = format!("n{}", self.nodes.len());
        self.nodes.push(Node {
            name: name.clone(),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: name.clone(),
        });
        name
    }

    pub fn linear(&mut self, x: &str, from: usize, to: usize) -> String {
        let w = self.weight(&[to, from], 1.5 / (from as f32).sqrt());
        self.node(Op::MatMul { trans_b: true }, &[x, &w])
    }
}

/// Two layers with grouped heads, and position vectors or rotations.
pub(super) fn model(
    heads: usize,
    kv_heads: usize,
    size: usize,
    value_size: usize,
    rotary: bool,
) -> Model {
    let mut b = Builder {
        seed: (heads * size) as u64,
        nodes: Vec::new(),
        weights: Weights::new(),
    };
    let width = 40;
    let table = b.weight(&[WORDS, width], 1.0);
    let mut x = b.node(Op::Gather { axis: 0 }, &[&table, "ids"]);
    if !rotary {
        let places = b.weight(&[200, width], 0.5);
        x = b.node(Op::PositionEmbedding, &[&x, &places]);
    }
    for _ in 0..2 {
        let scale = b.weight(&[width], 1.0);
        let y = b.node(Op::RMSNormalization { epsilon: 1e-5 }, &[&x, &scale]);
        let mut q = b.linear(&y, width, heads * size);
        let mut k = b.linear(&y, width, kv_heads * size);
        let v = b.linear(&y, width, kv_heads * value_size);
        if rotary {
            let frequencies = b.weight(&[size / 2], 1.0);
            let op = |heads| Op::RotaryEmbedding {
                heads,
                interleaved: false,
                scale: 1.0,
            };
            q = b.node(op(heads), &[&q, &frequencies]);
            k = b.node(op(kv_heads), &[&k, &frequencies]);
        }
        let op = Op::Attention {
            heads,
            kv_heads,
            causal: true,
            cache: true,
            scale: None,
        };
        let y = b.node(op, &[&q, &k, &v]);
        let y = b.linear(&y, heads * value_size, width);
        x = b.node(Op::Add, &[&y, &x]);
        let (gate, up) = (b.linear(&x, width, 50), b.linear(&x, width, 50));
        let gate = b.node(Op::Swish { alpha: 1.0 }, &[&gate]);
        let y = b.node(Op::Mul, &[&gate, &up]);
        let y = b.linear(&y, 50, width);
        x = b.node(Op::Add, &[&x, &y]);
    }
    let graph = Graph {
        name: "decoder".into(),
        inputs: vec![Input::i64(
            "ids",
            vec![Dim::Fixed(1), Dim::Symbol("T".into())],
        )],
        outputs: vec![x],
        nodes: b.nodes,
    };
    Model::new(graph, b.weights).unwrap()
}

fn plan(model: &Model, isa: Isa, tokens: usize, capacity: usize) -> Plan {
    let options = PlanOptions {
        symbols: Symbols::from([("T".into(), tokens)]),
        capacity: Some(capacity),
        ..PlanOptions::new(isa)
    };
    Plan::new(model, &options).unwrap()
}

/// The output of every token, in runs of at most `chunk` tokens.
fn in_pieces(model: &Model, isa: Isa, threads: usize, ids: &[i64], chunk: usize) -> Vec<f32> {
    let capacity = ids.len() + 3;
    let (one, many) = (
        plan(model, isa, 1, capacity),
        plan(model, isa, chunk, capacity),
    );
    assert_eq!(one.cache_len, many.cache_len);
    let mut team = Team::new(threads).unwrap();
    let mut arena = Arena::new(&[&one, &many], threads).unwrap();
    let mut cache = Cache::new(one.cache_len).unwrap();
    let mut bound = [Bound::new(one, &arena), Bound::new(many, &arena)];
    let (mut past, mut outputs) = (0, Vec::new());
    while past < ids.len() {
        let tokens = chunk.min(ids.len() - past);
        let bound = &mut bound[usize::from(tokens > 1)];
        // What lies behind the run's tokens is no part of the sequence.
        let mut padded = vec![WORDS as i64 - 1; chunk];
        padded[..tokens].copy_from_slice(&ids[past..past + tokens]);
        let sequence = Sequence {
            past,
            tokens,
            cache: cache.as_mut_ptr(),
        };
        let input = [padded.as_ptr().cast()];
        // SAFETY: the arena was made for both plans, the cache for both; `padded` has `chunk` ids.
        unsafe { bound.run(&mut arena, &mut team, &input, sequence, None) };
        let output = &bound.plan.outputs[0];
        let Slot::Arena(at) = output.slot else {
            panic!("the output is computed");
        };
        let width = bound.plan.outputs()[0].1[2];
        outputs.extend_from_slice(&arena.elements()[at..at + tokens * width]);
        past += tokens;
    }
    outputs
}

#[test]
fn tokens_at_once_one_by_one_and_in_chunks_give_the_same() {
    let ids: Vec<i64> = (0..101).map(|i| (i * i + 3) % 27).collect();
    for (heads, kv_heads, size, value_size, rotary) in [
        (9, 3, 16, 16, true),
        (4, 4, 20, 20, false),
        (3, 1, 8, 33, true),
    ] {
        let model = model(heads, kv_heads, size, value_size, rotary);
        for isa in Isa::available() {
            let options = SessionOptions {
                isa: Some(isa.name().into()),
                threads: 2,
                symbols: Symbols::from([("T".into(), ids.len())]),
                ..SessionOptions::default()
            };
            let mut session = Session::new(&model, options).unwrap();
            let view = TensorView::i64(&[1, 101], &ids);
            let want = session.run(&[view]).unwrap().remove(0).data;
            for (chunk, threads) in [
                (1, 1),
                (1, 2),
                (7, 1),
                (7, 3),
                (64, 1),
                (64, 2),
                (101, 2),
                (128, 2),
            ] {
                let got = in_pieces(&model, isa, threads, &ids, chunk);
                assert_eq!(got.len(), want.len());
                for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                    assert!(
                        (a - b).abs() <= 2e-5 * (1.0 + b.abs()),
                        "{isa}, chunks of {chunk}, {threads} threads: element {i} is {a}, not {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_batch_a_mask_and_a_short_table_are_refused_with_a_cache() {
    let refuse = |change: &dyn Fn(&mut Graph), capacity: usize| {
        let model = model(2, 1, 8, 8, false);
        let mut graph = model.graph().clone();
        change(&mut graph);
        let model = Model::new(graph, model.weights().clone()).unwrap();
        let options = PlanOptions {
            symbols: Symbols::from([("T".into(), 4)]),
            capacity: Some(capacity),
            ..PlanOptions::new(Isa::Scalar)
        };
        Plan::new(&model, &options).unwrap_err().to_string()
    };
    let batch = |g: &mut Graph| g.inputs[0].shape[0] = Dim::Fixed(2);
    assert!(refuse(&batch, 50).contains("a batch of 2"));
    let masked = |g: &mut Graph| {
        let input = Input::i64("mask", g.inputs[0].shape.clone());
        g.inputs.push(input);
        let node = g.nodes.iter_mut().find(|n| n.op.name() == "Attention");
        node.unwrap().inputs.push("mask".into());
    };
    assert!(refuse(&masked, 50).contains("a mask"));
    assert!(refuse(&|_| (), 201).contains("201 positions, the table has 200"));
}
