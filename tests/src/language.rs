//! A small decoder of two unlike blocks, its weights random.

use lacuna::model::{Dim, Graph, Input, Node, Op, Text, Weights};
use lacuna::{Model, Weight};

/// Tokens.
pub const VOCABULARY: usize = 53;
/// Features of a token.
const WIDTH: usize = 24;
const HEAD: usize = 8;

struct Builder {
    graph: Graph,
    weights: Weights,
    state: u64,
    width: usize,
}

impl Builder {
    fn random(&mut self, len: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.state = self
                .state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((self.state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale
        };
        (0..len).map(|_| next()).collect()
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[&str]) -> String {
        self.graph.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: format!("{name}.y"),
        });
        format!("{name}.y")
    }

    fn linear(&mut self, name: &str, x: &str, rows: usize, cols: usize) -> String {
        let values = self.random(rows * cols, 2.0 / (cols as f32).sqrt());
        let weight = format!("{name}.weight");
        let values = Weight::from_f32(&[rows, cols], &values);
        self.weights.insert(weight.clone(), values);
        self.node(name, Op::MatMul { trans_b: true }, &[x, &weight])
    }

    fn norm(&mut self, name: &str, x: &str) -> String {
        let width = self.width;
        let scale: Vec<f32> = self.random(width, 0.5).iter().map(|v| v + 1.0).collect();
        let weight = format!("{name}.weight");
        self.weights
            .insert(weight.clone(), Weight::from_f32(&[width], &scale));
        self.node(name, Op::RMSNormalization { epsilon: 1e-5 }, &[x, &weight])
    }

    fn block(&mut self, i: usize, x: &str, heads: usize, kv_heads: usize, hidden: usize) -> String {
        let name = |part: &str| format!("layers.{i}.{part}");
        let width = self.width;
        let h = self.norm(&name("input_norm"), x);
        let q = self.linear(&name("q_proj"), &h, heads * HEAD, width);
        let k = self.linear(&name("k_proj"), &h, kv_heads * HEAD, width);
        let v = self.linear(&name("v_proj"), &h, kv_heads * HEAD, width);
        let rotary = |heads| Op::RotaryEmbedding {
            heads,
            interleaved: false,
            scale: 1.0,
        };
        let q = self.node(&name("q_rotary"), rotary(heads), &[&q, "frequencies"]);
        let k = self.node(&name("k_rotary"), rotary(kv_heads), &[&k, "frequencies"]);
        let attention = Op::Attention {
            heads,
            kv_heads,
            causal: true,
            cache: true,
            scale: None,
        };
        let a = self.node(&name("attention"), attention, &[&q, &k, &v]);
        let o = self.linear(&name("o_proj"), &a, width, heads * HEAD);
        let x = self.node(&name("add_1"), Op::Add, &[x, &o]);
        let h = self.norm(&name("post_norm"), &x);
        let gate = self.linear(&name("gate_proj"), &h, hidden, width);
        let up = self.linear(&name("up_proj"), &h, hidden, width);
        let gate = self.node(&name("act"), Op::Swish { alpha: 1.0 }, &[&gate]);
        let both = self.node(&name("mul"), Op::Mul, &[&gate, &up]);
        let down = self.linear(&name("down_proj"), &both, width, hidden);
        self.node(&name("add_2"), Op::Add, &[&x, &down])
    }
}

/// The decoder; heads and widths differ from block to block, the embedding is also the output layer.
pub fn decoder() -> Model {
    with_sizes(WIDTH, VOCABULARY, [40, 17])
}

/// The same of any width, vocabulary, and hidden widths of the two blocks.
pub fn with_sizes(width: usize, vocabulary: usize, hidden: [usize; 2]) -> Model {
    let mut b = Builder {
        graph: Graph {
            name: "small decoder".into(),
            inputs: vec![Input::i64(
                "input_ids",
                vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())],
            )],
            ..Graph::default()
        },
        weights: Weights::new(),
        state: 11,
        width,
    };
    let table = b.random(vocabulary * width, 1.0);
    b.weights.insert(
        "embed.weight".into(),
        Weight::from_f32(&[vocabulary, width], &table),
    );
    let frequencies: Vec<f32> = (0..HEAD / 2).map(|i| 0.1f32.powi(i as i32)).collect();
    b.weights.insert(
        "frequencies".into(),
        Weight::from_f32(&[HEAD / 2], &frequencies),
    );
    let x = b.node(
        "embed",
        Op::Gather { axis: 0 },
        &["embed.weight", "input_ids"],
    );
    let x = b.block(0, &x, 6, 2, hidden[0]);
    let x = b.block(1, &x, 3, 3, hidden[1]);
    let x = b.norm("norm", &x);
    let y = b.node(
        "lm_head",
        Op::MatMul { trans_b: true },
        &[&x, "embed.weight"],
    );
    b.graph.outputs = vec![y];
    let mut model = Model::new(b.graph, b.weights).unwrap();
    model.text = Some(Text {
        context: 96,
        eos: vec![0],
        ..Text::default()
    });
    model
}

/// The same with every second weight of the blocks zero and encoded.
pub fn sparse(model: &Model) -> Model {
    let mut pruned = model.clone();
    let names: Vec<String> = model.prunable().iter().map(|p| p.0.to_owned()).collect();
    for name in names {
        let weight = &model.weights()[&name];
        let mut values = weight.to_f32().unwrap();
        for (i, v) in values.iter_mut().enumerate() {
            if (i * 7 + i / 5) % 2 == 0 {
                *v = 0.0;
            }
        }
        let zeros = Weight::from_f32(weight.shape(), &values).encode();
        pruned.set_weight(&name, zeros).unwrap();
    }
    pruned
}
