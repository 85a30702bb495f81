//! Small networks with every way that channels go through a graph.
#![allow(dead_code)] // Each test binary uses its part.

use lacuna::Model;
use lacuna::model::{
    Coordinates, Dim, Graph, Input, Interpolation, Node, Op, PadMode, Padding, Resized, Symbols,
    Weight, Weights, Window, infer_shapes,
};

/// A graph under construction, its weights random.
pub struct Net {
    graph: Graph,
    weights: Weights,
    state: u64,
}

impl Net {
    /// A network on pictures.
    pub fn new(name: &str, channels: usize, size: usize, seed: u64) -> Net {
        let fixed = [channels, size, size].map(Dim::Fixed);
        let batch = Dim::Symbol("N".into());
        Net::on(name, std::iter::once(batch).chain(fixed).collect(), seed)
    }

    /// A network on an input `x` of this shape.
    pub fn on(name: &str, shape: Vec<Dim>, seed: u64) -> Net {
        Net {
            graph: Graph {
                name: name.into(),
                inputs: vec![Input::f32("x", shape)],
                ..Graph::default()
            },
            weights: Weights::new(),
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn dice(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    }

    /// A weight with values around 0, or around `middle`.
    pub fn weight(&mut self, name: &str, shape: &[usize], spread: f32, middle: f32) -> String {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| middle + spread * self.dice()).collect();
        self.weights
            .insert(name.into(), Weight::from_f32(shape, &values));
        name.into()
    }

    pub fn node(&mut self, name: &str, op: Op, inputs: &[&str]) -> String {
        self.graph.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|i| i.to_string()).collect(),
            output: name.into(),
        });
        name.into()
    }

    /// The sizes of a value; 0 for a symbol.
    pub fn shape(&self, value: &str) -> Vec<usize> {
        let graph = Graph {
            outputs: vec![value.into()],
            ..self.graph.clone()
        };
        let shapes = infer_shapes(&graph, &self.weights, &Symbols::new()).unwrap();
        let size = |d: &Dim| match d {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) => 0,
        };
        shapes[value].iter().map(size).collect()
    }

    /// A square convolution that keeps the size at stride 1, with a bias.
    pub fn conv(
        &mut self,
        name: &str,
        x: &str,
        out: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> String {
        self.conv_padded(name, x, out, [kernel, stride, kernel / 2, groups], true)
    }

    /// A convolution by kernel, stride, padding and groups.
    pub fn conv_padded(
        &mut self,
        name: &str,
        x: &str,
        out: usize,
        how: [usize; 4],
        bias: bool,
    ) -> String {
        let [kernel, stride, pad, groups] = how;
        let own = self.shape(x)[1] / groups;
        let spread = (3.0 / (own * kernel * kernel) as f32).sqrt();
        let weight = self.weight(
            &format!("{name}.weight"),
            &[out, own, kernel, kernel],
            spread,
            0.0,
        );
        let op = Op::Conv {
            strides: [stride; 2],
            padding: Padding::Explicit([pad; 4]),
            dilations: [1; 2],
            groups,
        };
        match bias {
            true => {
                let bias = self.weight(&format!("{name}.bias"), &[out], 0.3, 0.0);
                self.node(name, op, &[x, &weight, &bias])
            }
            false => self.node(name, op, &[x, &weight]),
        }
    }

    pub fn norm(&mut self, name: &str, x: &str) -> String {
        let c = self.shape(x)[1];
        let parts = [
            ("weight", 0.5, 1.0),
            ("bias", 0.4, 0.0),
            ("mean", 0.2, 0.0),
            ("var", 0.3, 1.0),
        ];
        let parts = parts
            .map(|(p, spread, middle)| self.weight(&format!("{name}.{p}"), &[c], spread, middle));
        let op = Op::BatchNormalization { epsilon: 1e-5 };
        self.node(name, op, &[x, &parts[0], &parts[1], &parts[2], &parts[3]])
    }

    /// Convolution without a bias by kernel, stride and groups, normalisation and an activation.
    pub fn block(&mut self, name: &str, x: &str, out: usize, how: [usize; 3], act: Op) -> String {
        let [kernel, stride, groups] = how;
        let how = [kernel, stride, kernel / 2, groups];
        let y = self.conv_padded(&format!("{name}.conv"), x, out, how, false);
        let y = self.norm(&format!("{name}.bn"), &y);
        self.node(&format!("{name}.act"), act, &[&y])
    }

    pub fn linear(&mut self, name: &str, x: &str, out: usize) -> String {
        let depth = *self.shape(x).last().unwrap();
        let spread = (3.0 / depth as f32).sqrt();
        let weight = self.weight(&format!("{name}.weight"), &[out, depth], spread, 0.0);
        let bias = self.weight(&format!("{name}.bias"), &[out], 0.3, 0.0);
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        self.node(name, op, &[x, &weight, &bias])
    }

    /// A linear layer over tokens, without a bias.
    pub fn product(&mut self, name: &str, x: &str, out: usize) -> String {
        let depth = *self.shape(x).last().unwrap();
        let spread = (3.0 / depth as f32).sqrt();
        let weight = self.weight(&format!("{name}.weight"), &[out, depth], spread, 0.0);
        self.node(name, Op::MatMul { trans_b: true }, &[x, &weight])
    }

    pub fn pool(&mut self, name: &str, x: &str, kernel: usize, stride: usize) -> String {
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            padding: Padding::Explicit([kernel / 2; 4]),
            dilations: [1; 2],
            ceil_mode: false,
        };
        self.node(name, Op::MaxPool(window), &[x])
    }

    pub fn concat(&mut self, name: &str, parts: &[&str]) -> String {
        self.node(name, Op::Concat { axis: 1 }, parts)
    }

    /// Channels `from` to `to`.
    pub fn slice(&mut self, name: &str, x: &str, from: i64, to: i64) -> String {
        let op = Op::Slice {
            axes: vec![1],
            starts: vec![from],
            ends: vec![to],
            steps: vec![1],
        };
        self.node(name, op, &[x])
    }

    /// Global pooling, flattened, and a linear layer.
    pub fn classify(&mut self, x: &str, classes: usize) -> String {
        let y = self.node("gap", Op::GlobalAveragePool, &[x]);
        let y = self.node("flat", Op::Flatten { axis: 1 }, &[&y]);
        self.linear("fc", &y, classes)
    }

    pub fn finish(mut self, outputs: &[&str]) -> Model {
        self.graph.outputs = outputs.iter().map(|o| o.to_string()).collect();
        Model::new(self.graph, self.weights).unwrap()
    }
}

/// Residual blocks, one with a projection.
pub fn resnet(seed: u64) -> Model {
    let mut n = Net::new("resnet", 3, 12, seed);
    let x = n.block("stem", "x", 10, [3, 1, 1], Op::Relu);
    let y = n.block("a1", &x, 7, [3, 1, 1], Op::Relu);
    let y = n.conv_padded("a2.conv", &y, 10, [3, 1, 1, 1], false);
    let y = n.norm("a2.bn", &y);
    let y = n.node("a.add", Op::Add, &[&x, &y]);
    let x = n.node("a.out", Op::Relu, &[&y]);
    let y = n.block("b1", &x, 9, [1, 1, 1], Op::Relu);
    let y = n.conv_padded("b2.conv", &y, 14, [3, 2, 1, 1], false);
    let y = n.norm("b2.bn", &y);
    let s = n.conv_padded("b.down", &x, 14, [1, 2, 0, 1], false);
    let s = n.norm("b.down.bn", &s);
    let y = n.node("b.add", Op::Add, &[&y, &s]);
    let y = n.node("b.out", Op::Relu, &[&y]);
    let y = n.classify(&y, 5);
    n.finish(&[&y])
}

/// The shortcut of CIFAR's ResNets: every second place, and channels of zeros.
pub fn padded_shortcut(seed: u64) -> Model {
    let mut n = Net::new("padded shortcut", 3, 8, seed);
    let x = n.block("stem", "x", 6, [3, 1, 1], Op::Relu);
    let y = n.block("a1", &x, 12, [3, 2, 1], Op::Relu);
    let y = n.conv_padded("a2", &y, 12, [3, 1, 1, 1], false);
    let y = n.norm("a2.bn", &y);
    let op = Op::Slice {
        axes: vec![2, 3],
        starts: vec![0, 0],
        ends: vec![i64::MAX, i64::MAX],
        steps: vec![2, 2],
    };
    let s = n.node("places", op, &[&x]);
    let op = Op::Pad {
        pads: vec![0, 2, 0, 0, 0, 4, 0, 0],
        mode: PadMode::Constant(0.0),
    };
    let s = n.node("channels", op, &[&s]);
    let y = n.node("add", Op::Add, &[&y, &s]);
    let y = n.node("out", Op::Relu, &[&y]);
    let y = n.classify(&y, 4);
    n.finish(&[&y])
}

/// Layers that read all layers before them.
pub fn densenet(seed: u64) -> Model {
    let mut n = Net::new("densenet", 3, 10, seed);
    let mut all = vec![n.conv("stem", "x", 8, 3, 1, 1)];
    for i in 0..3 {
        let parts: Vec<&str> = all.iter().map(String::as_str).collect();
        let x = match parts[..] {
            [one] => one.to_owned(),
            _ => n.concat(&format!("{i}.cat"), &parts),
        };
        let y = n.norm(&format!("{i}.bn"), &x);
        let y = n.node(&format!("{i}.relu"), Op::Relu, &[&y]);
        let y = n.block(&format!("{i}.narrow"), &y, 12, [1, 1, 1], Op::Relu);
        all.push(n.conv_padded(&format!("{i}.grow"), &y, 5, [3, 1, 1, 1], false));
    }
    let parts: Vec<&str> = all.iter().map(String::as_str).collect();
    let x = n.concat("cat", &parts);
    let y = n.norm("last", &x);
    let y = n.node("last.relu", Op::Relu, &[&y]);
    let y = n.classify(&y, 6);
    n.finish(&[&y])
}

/// Inverted residuals with gates.
pub fn mobilenet(seed: u64) -> Model {
    let mut n = Net::new("mobilenet", 3, 12, seed);
    let mut x = n.block("stem", "x", 8, [3, 2, 1], Op::HardSwish);
    for (i, (wide, out, stride)) in [(16, 8, 1), (20, 12, 2), (24, 12, 1)]
        .into_iter()
        .enumerate()
    {
        let y = n.block(&format!("{i}.expand"), &x, wide, [1, 1, 1], Op::HardSwish);
        let y = n.block(
            &format!("{i}.depth"),
            &y,
            wide,
            [3, stride, wide],
            Op::HardSwish,
        );
        let g = n.node(&format!("{i}.gap"), Op::GlobalAveragePool, &[&y]);
        let g = n.conv(&format!("{i}.squeeze"), &g, 6, 1, 1, 1);
        let g = n.node(&format!("{i}.squeeze.act"), Op::Relu, &[&g]);
        let g = n.conv(&format!("{i}.excite"), &g, wide, 1, 1, 1);
        let gate = Op::HardSigmoid {
            alpha: 1.0 / 6.0,
            beta: 0.5,
        };
        let g = n.node(&format!("{i}.gate"), gate, &[&g]);
        let y = n.node(&format!("{i}.gated"), Op::Mul, &[&y, &g]);
        let y = n.conv_padded(&format!("{i}.project"), &y, out, [1, 1, 0, 1], false);
        let y = n.norm(&format!("{i}.project.bn"), &y);
        x = match stride == 1 && n.shape(&x) == n.shape(&y) {
            true => n.node(&format!("{i}.add"), Op::Add, &[&x, &y]),
            false => y,
        };
    }
    let y = n.classify(&x, 7);
    n.finish(&[&y])
}

/// C3 and C2f blocks, pooled pyramids, and heads that share a layer.
pub fn detector(seed: u64) -> Model {
    let act = || Op::Swish { alpha: 1.0 };
    let mut n = Net::new("detector", 3, 16, seed);
    let x = n.block("stem", "x", 8, [3, 2, 1], act());
    // C3: two ways, one with a residual, joined.
    let a = n.block("c3.1", &x, 6, [1, 1, 1], act());
    let m = n.block("c3.m1", &a, 6, [1, 1, 1], act());
    let m = n.block("c3.m2", &m, 6, [3, 1, 1], act());
    let a = n.node("c3.add", Op::Add, &[&a, &m]);
    let b = n.block("c3.2", &x, 6, [1, 1, 1], act());
    let y = n.concat("c3.cat", &[&a, &b]);
    let p3 = n.block("c3.3", &y, 12, [1, 1, 1], act());
    // C2f: one layer in two halves, of which one goes on.
    let y = n.block("c2f.1", &p3, 10, [1, 1, 1], act());
    let left = n.slice("c2f.left", &y, 0, 5);
    let right = n.slice("c2f.right", &y, 5, 10);
    let m = n.block("c2f.m", &right, 5, [3, 1, 1], act());
    let y = n.concat("c2f.cat", &[&left, &right, &m]);
    let y = n.block("c2f.2", &y, 12, [1, 1, 1], act());
    let p4 = n.block("down", &y, 12, [3, 2, 1], act());
    // SPPF.
    let y = n.block("sppf.1", &p4, 6, [1, 1, 1], act());
    let y1 = n.pool("sppf.a", &y, 3, 1);
    let y2 = n.pool("sppf.b", &y1, 3, 1);
    let y = n.concat("sppf.cat", &[&y, &y1, &y2]);
    let p5 = n.block("sppf.2", &y, 12, [1, 1, 1], act());
    // Heads: one layer for all of them, then one for each.
    let mut outputs = Vec::new();
    let shared = n.weight("head.shared.weight", &[9, 12, 1, 1], 0.4, 0.0);
    let bias = n.weight("head.shared.bias", &[9], 0.3, 0.0);
    for (i, p) in [p3, p4, p5].iter().enumerate() {
        let op = Op::Conv {
            strides: [1; 2],
            padding: Padding::NONE,
            dilations: [1; 2],
            groups: 1,
        };
        let y = n.node(&format!("head{i}.shared"), op, &[p, &shared, &bias]);
        let y = n.node(&format!("head{i}.act"), act(), &[&y]);
        outputs.push(n.conv(&format!("head{i}.out"), &y, 6, 1, 1, 1));
    }
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    n.finish(&outputs)
}

/// Down, up and across: resizing, concatenation, slopes by channel, normalisation by plane.
pub fn unet(seed: u64) -> Model {
    let mut n = Net::new("unet", 2, 12, seed);
    let layer = |n: &mut Net, name: &str, x: &str, out: usize, stride: usize| {
        let y = n.conv(&format!("{name}.conv"), x, out, 3, stride, 1);
        let scale = n.weight(&format!("{name}.scale"), &[out], 0.3, 1.0);
        let shift = n.weight(&format!("{name}.shift"), &[out], 0.3, 0.0);
        let norm = Op::InstanceNormalization { epsilon: 1e-5 };
        let y = n.node(&format!("{name}.norm"), norm, &[&y, &scale, &shift]);
        let slope = n.weight(&format!("{name}.slope"), &[out, 1, 1], 0.2, 0.25);
        n.node(&format!("{name}.act"), Op::PRelu, &[&y, &slope])
    };
    let a = layer(&mut n, "a", "x", 6, 1);
    let b = layer(&mut n, "b", &a, 8, 2);
    let c = layer(&mut n, "c", &b, 10, 2);
    let up = |interpolation, coordinates| Op::Resize {
        resized: Resized::Scales([2.0; 2]),
        interpolation,
        coordinates,
    };
    let nearest = up(Interpolation::NearestFloor, Coordinates::Asymmetric);
    let y = n.node("c.up", nearest, &[&c]);
    let y = n.concat("b.cat", &[&y, &b]);
    let y = layer(&mut n, "d", &y, 7, 1);
    let linear = up(Interpolation::Linear, Coordinates::HalfPixel);
    let y = n.node("d.up", linear, &[&y]);
    let y = n.concat("a.cat", &[&y, &a]);
    let y = layer(&mut n, "e", &y, 5, 1);
    let y = n.conv("out", &y, 3, 1, 1, 1);
    n.finish(&[&y])
}

/// Transposed convolutions: of all channels, of groups, and of single channels.
pub fn transposed(seed: u64) -> Model {
    let mut n = Net::new("transposed", 2, 8, seed);
    let up = |n: &mut Net, name: &str, x: &str, own: usize, how: [usize; 5]| {
        let [kernel, stride, pad, more, groups] = how;
        let shape = [n.shape(x)[1], own, kernel, kernel];
        let weight = n.weight(&format!("{name}.weight"), &shape, 0.5, 0.0);
        let bias = n.weight(&format!("{name}.bias"), &[own * groups], 0.3, 0.0);
        let op = Op::ConvTranspose {
            strides: [stride; 2],
            pads: [pad; 4],
            output_padding: [more; 2],
            dilations: [1; 2],
            groups,
        };
        let y = n.node(name, op, &[x, &weight, &bias]);
        n.norm(&format!("{name}.bn"), &y)
    };
    let a = n.block("a", "x", 6, [3, 1, 1], Op::Relu);
    let b = n.block("b", &a, 9, [3, 2, 1], Op::Gelu { approximate: true });
    let y = up(&mut n, "up", &b, 7, [2, 2, 0, 0, 1]);
    let y = n.node("up.act", Op::Gelu { approximate: false }, &[&y]);
    let y = n.concat("cat", &[&y, &a]);
    let y = n.block("c", &y, 8, [3, 1, 1], Op::Erf);
    let y = up(&mut n, "groups", &y, 3, [3, 2, 1, 1, 2]);
    let y = n.node("groups.act", Op::LeakyRelu { alpha: 0.1 }, &[&y]);
    let y = n.conv("mix", &y, 6, 1, 1, 1);
    let y = n.node("mix.act", Op::Relu, &[&y]);
    let y = up(&mut n, "single", &y, 1, [4, 2, 1, 0, 6]);
    let y = n.node("single.act", Op::Relu, &[&y]);
    let y = n.conv("out", &y, 3, 1, 1, 1);
    n.finish(&[&y])
}

/// Convolutions, flattened into linear layers.
pub fn vgg(seed: u64) -> Model {
    let mut n = Net::new("vgg", 2, 8, seed);
    let y = n.conv_padded("c1", "x", 6, [3, 1, 0, 1], true);
    let y = n.node("r1", Op::LeakyRelu { alpha: 0.1 }, &[&y]);
    let y = n.conv_padded("c2", &y, 8, [3, 1, 0, 2], true);
    let y = n.node("s2", Op::Sigmoid, &[&y]);
    let y = n.conv_padded("c3", &y, 7, [2, 1, 0, 1], true);
    let y = n.node("r3", Op::Tanh, &[&y]);
    let y = n.node("flat", Op::Flatten { axis: 1 }, &[&y]);
    let y = n.linear("f1", &y, 11);
    let y = n.node("s1", Op::Sigmoid, &[&y]);
    let y = n.linear("f2", &y, 4);
    n.finish(&[&y])
}

/// A block of a language model on vectors: grouped attention, heads that are normalised, a gated layer.
pub fn transformer(seed: u64) -> Model {
    let (heads, shared, size, width) = (6, 2, 4, 20);
    let shape = vec![Dim::Symbol("N".into()), Dim::Fixed(5), Dim::Fixed(width)];
    let mut n = Net::on("transformer", shape, seed);
    let scale = n.weight("norm", &[width], 0.3, 1.0);
    let rms = || Op::RMSNormalization { epsilon: 1e-5 };
    let y = n.node("input norm", rms(), &["x", &scale]);
    let q = n.product("q", &y, heads * size);
    let q = n.node(
        "q.split",
        Op::Reshape {
            shape: vec![0, 0, heads as i64, size as i64],
        },
        &[&q],
    );
    let scale = n.weight("q.norm", &[size], 0.3, 1.0);
    let q = n.node("q.normed", rms(), &[&q, &scale]);
    let q = n.node(
        "q.join",
        Op::Reshape {
            shape: vec![0, 0, (heads * size) as i64],
        },
        &[&q],
    );
    let k = n.product("k", &y, heads / shared * size);
    let frequencies = n.weight("frequencies", &[size / 2], 0.2, 0.5);
    let rotary = |heads| Op::RotaryEmbedding {
        heads,
        interleaved: false,
        scale: 1.0,
    };
    let q = n.node("q.rotary", rotary(heads), &[&q, &frequencies]);
    let k = n.node("k.rotary", rotary(heads / shared), &[&k, &frequencies]);
    let v = n.product("v", &y, heads / shared * 3);
    let bias = n.weight("v.bias", &[heads / shared * 3], 0.4, 0.0);
    let v = n.node("v.biased", Op::Add, &[&v, &bias]);
    let attention = Op::Attention {
        heads,
        kv_heads: heads / shared,
        causal: true,
        cache: false,
        scale: None,
    };
    let y = n.node("attention", attention, &[&q, &k, &v]);
    let y = n.product("o", &y, width);
    let x = n.node("residual", Op::Add, &["x", &y]);
    let gate = n.product("gate", &x, 13);
    let gate = n.node("gate.act", Op::Swish { alpha: 1.0 }, &[&gate]);
    let up = n.product("up", &x, 13);
    let y = n.node("gated", Op::Mul, &[&gate, &up]);
    let y = n.product("down", &y, width);
    let y = n.node("residual2", Op::Add, &[&x, &y]);
    n.finish(&[&y])
}
