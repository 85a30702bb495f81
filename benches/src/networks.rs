//! Networks with random weights, for benches and tests: the shapes are those of the real ones.

use crate::normal;
use crate::shapes::MAX_POOL;
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding, Weights};
use lacuna::{DType, Error, Model, Result, Weight};

/// Shares of a weight: pseudo-random values of which `density` are not zero, scaled so that signals keep
/// their size.
pub fn weight(shape: &[usize], density: f64, seed: u64) -> Weight {
    let len: usize = shape.iter().product();
    let inner = len / shape.first().copied().unwrap_or(1).max(1);
    let scale = (2.0 / (inner as f64 * density).max(1.0)).sqrt() as f32;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut values = normal(len, seed);
    for v in &mut values {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let kept = ((state >> 40) as f64 / (1u64 << 24) as f64) < density;
        *v = if kept { *v * scale } else { 0.0 };
    }
    Weight::from_f32(shape, &values)
}

/// A convolution as it stands in a network.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Kernel height and width.
    pub kernel: usize,
    /// Vertical and horizontal stride.
    pub stride: usize,
    /// One input channel for each output channel.
    pub depthwise: bool,
}

impl Conv {
    const fn new(out: usize, kernel: usize, stride: usize) -> Conv {
        Conv {
            out,
            kernel,
            stride,
            depthwise: false,
        }
    }

    const fn depthwise(channels: usize, stride: usize) -> Conv {
        Conv {
            out: channels,
            kernel: 3,
            stride,
            depthwise: true,
        }
    }
}

struct Builder {
    graph: Graph,
    weights: Weights,
    density: f64,
}

/// A value and its channels.
#[derive(Clone)]
struct Value(String, usize);

impl Builder {
    fn new(name: &str, density: f64) -> (Builder, Value) {
        let graph = Graph {
            name: name.into(),
            inputs: vec![Input::f32("x", [1, 3, 224, 224].map(Dim::Fixed).to_vec())],
            ..Graph::default()
        };
        let builder = Builder {
            graph,
            weights: Weights::new(),
            density,
        };
        (builder, Value("x".into(), 3))
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[&str], channels: usize) -> Value {
        let output = format!("{name}.out");
        self.graph.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|i| (*i).into()).collect(),
            output: output.clone(),
        });
        Value(output, channels)
    }

    /// Stems and depthwise convolutions keep every weight.
    fn conv(&mut self, name: &str, x: &Value, conv: Conv) -> Value {
        let groups = if conv.depthwise { conv.out } else { 1 };
        let shape = [conv.out, x.1 / groups, conv.kernel, conv.kernel];
        let density = if x.1 == 3 || conv.depthwise {
            1.0
        } else {
            self.density
        };
        let seed = self.weights.len() as u64 + 1;
        let names = [format!("{name}.weight"), format!("{name}.bias")];
        self.weights
            .insert(names[0].clone(), weight(&shape, density, seed));
        let bias = normal(conv.out, seed)
            .iter()
            .map(|b| b * 0.1)
            .collect::<Vec<_>>();
        self.weights
            .insert(names[1].clone(), Weight::from_f32(&[conv.out], &bias));
        let op = Op::Conv {
            strides: [conv.stride; 2],
            padding: Padding::Explicit([conv.kernel / 2; 4]),
            dilations: [1; 2],
            groups,
        };
        self.node(name, op, &[&x.0, &names[0], &names[1]], conv.out)
    }

    fn relu(&mut self, name: &str, x: &Value) -> Value {
        self.node(&format!("{name}.relu"), Op::Relu, &[&x.0], x.1)
    }

    fn conv_relu(&mut self, name: &str, x: &Value, conv: Conv) -> Value {
        let y = self.conv(name, x, conv);
        self.relu(name, &y)
    }

    fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.node(&format!("{name}.add"), Op::Add, &[&a.0, &b.0], a.1)
    }

    fn classify(mut self, x: &Value) -> Result<Model> {
        let pool = self.node("pool", Op::GlobalAveragePool, &[&x.0], x.1);
        let flat = self.node("flat", Op::Flatten { axis: 1 }, &[&pool.0], x.1);
        self.weights
            .insert("fc.weight".into(), weight(&[1000, x.1], 1.0, 7));
        self.weights
            .insert("fc.bias".into(), Weight::from_f32(&[1000], &[0.0; 1000]));
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        let y = self.node("fc", op, &[&flat.0, "fc.weight", "fc.bias"], 1000);
        self.graph.outputs = vec![y.0];
        Ok(Model::new(self.graph, self.weights)?.encoded())
    }
}

/// ResNet-50 (stride in the 3x3 convolutions), normalization folded.
///
/// # Errors
/// Never: the graph is sound.
pub fn resnet50(density: f64) -> Result<Model> {
    let (mut b, x) = Builder::new("resnet50", density);
    let stem = b.conv_relu("stem", &x, Conv::new(64, 7, 2));
    let mut x = b.node("maxpool", Op::MaxPool(MAX_POOL), &[&stem.0], 64);
    for (stage, (width, blocks)) in [(64, 3), (128, 4), (256, 6), (512, 3)]
        .into_iter()
        .enumerate()
    {
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let name = |part: &str| format!("stage{stage}.{block}.{part}");
            let short = match block {
                0 => b.conv(&name("down"), &x, Conv::new(4 * width, 1, stride)),
                _ => x.clone(),
            };
            let y = b.conv_relu(&name("reduce"), &x, Conv::new(width, 1, 1));
            let y = b.conv_relu(&name("spatial"), &y, Conv::new(width, 3, stride));
            let y = b.conv(&name("expand"), &y, Conv::new(4 * width, 1, 1));
            let y = b.add(&name("expand"), &y, &short);
            x = b.relu(&name("expand"), &y);
        }
    }
    b.classify(&x)
}

/// MobileNet-V1 of full width.
///
/// # Errors
/// Never: the graph is sound.
pub fn mobilenet_v1(density: f64) -> Result<Model> {
    let (mut b, x) = Builder::new("mobilenet_v1", density);
    let mut x = b.conv_relu("stem", &x, Conv::new(32, 3, 2));
    let blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)];
    let rest = [(512, 1); 5].into_iter().chain([(1024, 2), (1024, 1)]);
    for (i, (out, stride)) in blocks.into_iter().chain(rest).enumerate() {
        let y = b.conv_relu(&format!("dw{i}"), &x, Conv::depthwise(x.1, stride));
        x = b.conv_relu(&format!("pw{i}"), &y, Conv::new(out, 1, 1));
    }
    b.classify(&x)
}

/// MobileNet-V2 of full width.
///
/// # Errors
/// Never: the graph is sound.
pub fn mobilenet_v2(density: f64) -> Result<Model> {
    let (mut b, x) = Builder::new("mobilenet_v2", density);
    let mut x = b.conv_relu("stem", &x, Conv::new(32, 3, 2));
    // Expansion, output channels, blocks, stride of the first.
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    for (stage, (factor, out, blocks, first)) in stages.into_iter().enumerate() {
        for block in 0..blocks {
            let name = |part: &str| format!("stage{stage}.{block}.{part}");
            let stride = if block == 0 { first } else { 1 };
            let mut y = x.clone();
            if factor > 1 {
                y = b.conv_relu(&name("expand"), &y, Conv::new(factor * x.1, 1, 1));
            }
            y = b.conv_relu(&name("depthwise"), &y, Conv::depthwise(y.1, stride));
            y = b.conv(&name("project"), &y, Conv::new(out, 1, 1));
            x = match stride == 1 && x.1 == out {
                true => b.add(&name("project"), &y, &x),
                false => y,
            };
        }
    }
    let x = b.conv_relu("last", &x, Conv::new(1280, 1, 1));
    b.classify(&x)
}

/// The sizes of a Llama.
#[derive(Clone, Copy, Debug)]
pub struct Llama {
    /// Blocks.
    pub blocks: usize,
    /// Elements of a token's state.
    pub width: usize,
    /// Query heads, and heads of keys and values.
    pub heads: [usize; 2],
    /// Elements of a head.
    pub head: usize,
    /// Elements between the matrices of an MLP.
    pub neurons: usize,
    /// Tokens there are.
    pub vocabulary: usize,
}

impl Llama {
    /// Llama 3.1 8B.
    pub const B8: Llama = Llama {
        blocks: 32,
        width: 4096,
        heads: [32, 8],
        head: 128,
        neurons: 14336,
        vocabulary: 128_256,
    };
}

/// A Llama of f16 weights whose blocks share those of one, so that it takes the memory of one and, where a block is larger
/// than every cache, the time of all. `density` is that of the linear layers; the embedding, which the output layer shares, is dense.
///
/// # Errors
/// When a size is 0.
pub fn llama(sizes: &Llama, density: f64) -> Result<Model> {
    let &Llama {
        width,
        head,
        neurons,
        vocabulary,
        heads: [heads, kv_heads],
        ..
    } = sizes;
    let mut weights = Weights::new();
    let mut insert = |name: &str, shape: [usize; 2], density: f64| {
        let half = weight(&shape, density, weights.len() as u64 + 1).to_dtype(DType::F16);
        weights.insert(name.to_owned(), half.map_err(Error::Option)?);
        Ok::<(), Error>(())
    };
    insert("embed", [vocabulary, width], 1.0)?;
    for (name, rows, cols) in [
        ("q", heads * head, width),
        ("k", kv_heads * head, width),
        ("v", kv_heads * head, width),
        ("o", width, heads * head),
        ("gate", neurons, width),
        ("up", neurons, width),
        ("down", width, neurons),
    ] {
        insert(name, [rows, cols], density)?;
    }
    weights.insert("norm".into(), Weight::from_f32(&[width], &vec![1.0; width]));
    let pairs = head / 2;
    let frequency = |i: usize| 500_000f32.powf(-(i as f32) / pairs as f32);
    let frequencies: Vec<f32> = (0..pairs).map(frequency).collect();
    weights.insert(
        "frequencies".into(),
        Weight::from_f32(&[pairs], &frequencies),
    );

    let mut nodes: Vec<Node> = Vec::new();
    let mut node = |name: String, op: Op, inputs: &[&str]| {
        let output = format!("{name}.out");
        nodes.push(Node {
            name,
            op,
            inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: output.clone(),
        });
        output
    };
    let norm = Op::RMSNormalization { epsilon: 1e-5 };
    let linear = Op::MatMul { trans_b: true };
    let rotate = |heads| Op::RotaryEmbedding {
        heads,
        interleaved: false,
        scale: 1.0,
    };
    let mut x = node("embed".into(), Op::Gather { axis: 0 }, &["embed", "ids"]);
    for block in 0..sizes.blocks {
        let name = |part: &str| format!("block{block}.{part}");
        let y = node(name("norm"), norm.clone(), &[&x, "norm"]);
        let q = node(name("q"), linear.clone(), &[&y, "q"]);
        let q = node(name("q.rotary"), rotate(heads), &[&q, "frequencies"]);
        let k = node(name("k"), linear.clone(), &[&y, "k"]);
        let k = node(name("k.rotary"), rotate(kv_heads), &[&k, "frequencies"]);
        let v = node(name("v"), linear.clone(), &[&y, "v"]);
        let op = Op::Attention {
            heads,
            kv_heads,
            causal: true,
            cache: true,
            scale: None,
        };
        let y = node(name("attention"), op, &[&q, &k, &v]);
        let y = node(name("o"), linear.clone(), &[&y, "o"]);
        x = node(name("attention.residual"), Op::Add, &[&x, &y]);
        let y = node(name("mlp.norm"), norm.clone(), &[&x, "norm"]);
        let gate = node(name("gate"), linear.clone(), &[&y, "gate"]);
        let gate = node(name("act"), Op::Swish { alpha: 1.0 }, &[&gate]);
        let up = node(name("up"), linear.clone(), &[&y, "up"]);
        let y = node(name("product"), Op::Mul, &[&gate, &up]);
        let y = node(name("down"), linear.clone(), &[&y, "down"]);
        x = node(name("mlp.residual"), Op::Add, &[&x, &y]);
    }
    let y = node("norm".into(), norm, &[&x, "norm"]);
    let logits = node("head".into(), linear, &[&y, "embed"]);
    let graph = Graph {
        name: "llama".into(),
        inputs: vec![Input::i64(
            "ids",
            ["N", "T"].map(|s| Dim::Symbol(s.into())).to_vec(),
        )],
        outputs: vec![logits],
        nodes,
    };
    Ok(Model::new(graph, weights)?.encoded())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna::{Decoder, DecoderOptions};

    #[test]
    fn a_llama_of_one_block_s_weights_reads_tokens() {
        let sizes = Llama {
            blocks: 3,
            width: 32,
            heads: [4, 2],
            head: 8,
            neurons: 48,
            vocabulary: 40,
        };
        let model = llama(&sizes, 0.5).unwrap();
        assert!(model.is_language_model());
        let density = model.weights()["gate"].density();
        assert!((0.4..0.6).contains(&density), "{density}");
        let mut decoder = Decoder::new(&model, DecoderOptions::default()).unwrap();
        let logits = decoder.prefill(&[1, 39, 7]).unwrap().to_vec();
        assert_eq!(logits.len(), 40);
        // Not the same whatever came before.
        decoder.truncate(0);
        assert_ne!(decoder.prefill(&[7]).unwrap(), logits);
        assert!(logits.iter().all(|l| l.is_finite()));
    }
}
