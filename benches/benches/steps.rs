//! Kernels without a choice of forms, at the sizes of real networks: pooling, attention, normalization,
//! positions, softmax, and element by element.
//!
//! `cargo bench -p lacuna-bench --bench steps -- attention` runs a part of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lacuna::model::{Dim, Graph, Input, Node, Op, Weights};
use lacuna::{Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut, Weight};
use lacuna_bench::normal;
use lacuna_bench::shapes::{HEADS, MAX_POOL, POOLED, TOKENS};
use std::time::Duration;

/// Benches one node on one thread; its bytes a second are those of its inputs and output.
fn node(c: &mut Criterion, name: &str, op: Op, inputs: &[&[usize]], weights: &[(&str, Weight)]) {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let fixed = |shape: &[usize]| shape.iter().map(|d| Dim::Fixed(*d)).collect();
    let given = names
        .iter()
        .zip(inputs)
        .map(|(n, s)| Input::f32(n, fixed(s)));
    let weight_names = weights.iter().map(|w| w.0.to_owned());
    let graph = Graph {
        name: name.into(),
        inputs: given.collect(),
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: name.into(),
            op,
            inputs: names.iter().cloned().chain(weight_names).collect(),
            output: "y".into(),
        }],
    };
    let weights: Weights = weights
        .iter()
        .map(|(n, w)| ((*n).to_owned(), w.clone()))
        .collect();
    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    let session = Model::new(graph, weights).and_then(|m| Session::new(&m, options));
    let mut session = match session {
        Ok(session) => session,
        Err(e) => panic!("{name}: {e}"),
    };
    let data: Vec<Vec<f32>> = inputs
        .iter()
        .map(|s| normal(s.iter().product(), 3))
        .collect();
    let views: Vec<TensorView<'_>> = inputs
        .iter()
        .zip(&data)
        .map(|(s, d)| TensorView::f32(s, d))
        .collect();
    let mut y = Tensor::zeros(&session.outputs()[0].1);
    let bytes = 4 * (data.iter().map(Vec::len).sum::<usize>() + y.data.len());
    let mut outputs = [TensorViewMut::f32(&y.shape, &mut y.data)];
    let mut group = c.benchmark_group("steps");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            session
                .run_into(&views, &mut outputs)
                .expect("planned for these shapes")
        });
    });
    group.finish();
}

fn all(c: &mut Criterion) {
    for (channels, size) in POOLED {
        let x: &[usize] = &[1, channels, size, size];
        node(
            c,
            &format!("maxpool/{channels}x{size}"),
            Op::MaxPool(MAX_POOL),
            &[x],
            &[],
        );
        node(
            c,
            &format!("mean/{channels}x{size}"),
            Op::GlobalAveragePool,
            &[x],
            &[],
        );
    }
    let (heads, kv_heads, width) = HEADS;
    for (tokens, features) in TOKENS {
        let x: &[usize] = &[1, tokens, features];
        let at = |what: &str| format!("{what}/{tokens}x{features}");
        let one = Weight::from_f32(&[features], &vec![1.0; features]);
        let scale = [("scale", one.clone())];
        node(
            c,
            &at("rmsnorm"),
            Op::RMSNormalization { epsilon: 1e-5 },
            &[x],
            &scale,
        );
        node(
            c,
            &at("layernorm"),
            Op::LayerNormalization { epsilon: 1e-5 },
            &[x],
            &scale,
        );
        node(c, &at("softmax"), Op::Softmax { axis: -1 }, &[x], &[]);
        node(c, &at("add"), Op::Add, &[x, x], &[]);
        node(c, &at("mul"), Op::Mul, &[x, x], &[]);
        for (name, op) in [
            ("relu", Op::Relu),
            ("swish", Op::Swish { alpha: 1.0 }),
            ("gelu", Op::Gelu { approximate: false }),
            ("hardswish", Op::HardSwish),
            ("sigmoid", Op::Sigmoid),
            ("tanh", Op::Tanh),
        ] {
            node(c, &at(name), op, &[x], &[]);
        }
        let angles: Vec<f32> = (0..width / 2)
            .map(|i| 10000f32.powf(-2.0 * i as f32 / width as f32))
            .collect();
        let rotary = Op::RotaryEmbedding {
            heads,
            interleaved: false,
            scale: 1.0,
        };
        let frequencies = [("frequencies", Weight::from_f32(&[width / 2], &angles))];
        node(c, &at("rotary"), rotary, &[x], &frequencies);
        let kv: &[usize] = &[1, tokens, kv_heads * width];
        let attention = Op::Attention {
            heads,
            kv_heads,
            causal: true,
            cache: false,
            scale: None,
        };
        node(c, &at("attention"), attention, &[x, kv, kv], &[]);
    }
}

criterion_group! {
    name = steps;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(200));
    targets = all
}
criterion_main!(steps);
