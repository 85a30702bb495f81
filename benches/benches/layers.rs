//! Single layers of real networks, dense and at several densities, through a session: what the
//! plan chooses for each, on one thread.
//!
//! `cargo bench -p lacuna-bench -- 'conv1x1/.*/d0.1$'` runs a part of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lacuna::model::{Dim, Graph, Input, Node, Op, Padding};
use lacuna::{Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut, Weight};
use lacuna_bench::normal;
use lacuna_bench::shapes::{Conv, GEMMS, POINTWISE, SPATIAL, UNPRUNED};
use std::collections::BTreeMap;
use std::time::Duration;

/// Shares of weights that are not zero.
const DENSITIES: [f64; 4] = [1.0, 0.5, 0.2, 0.1];

/// Normal values, the small ones zero so that a share of `density` is left.
fn weight(shape: &[usize], density: f64) -> Weight {
    let len = shape.iter().product();
    let mut values = normal(len, 1);
    let mut sizes: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    let zeros = ((1.0 - density) * len as f64) as usize;
    if zeros > 0 {
        let (_, threshold, _) = sizes.select_nth_unstable_by(zeros - 1, f32::total_cmp);
        let threshold = *threshold;
        for v in values.iter_mut().filter(|v| v.abs() <= threshold) {
            *v = 0.0;
        }
    }
    Weight::from_f32(shape, &values)
}

/// A model of one node with an input, a weight and a bias.
fn model(op: Op, input: &[usize], weight: Weight) -> lacuna::Result<Model> {
    let outputs = weight.shape()[0];
    let graph = Graph {
        name: "layer".into(),
        inputs: vec![Input::f32(
            "x",
            input.iter().map(|d| Dim::Fixed(*d)).collect(),
        )],
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "layer".into(),
            op,
            inputs: vec!["x".into(), "weight".into(), "bias".into()],
            output: "y".into(),
        }],
    };
    let bias = Weight::from_f32(&[outputs], &normal(outputs, 2));
    let weights = BTreeMap::from([("weight".into(), weight), ("bias".into(), bias)]);
    Ok(Model::new(graph, weights)?.encoded())
}

/// Benches a layer at a density; its elements a second are multiply-accumulates of the dense
/// layer, so that densities compare.
fn layer(
    c: &mut Criterion,
    group: &str,
    name: &str,
    op: Op,
    input: &[usize],
    shape: &[usize],
    densities: &[f64],
) {
    let mut group = c.benchmark_group(format!("{group}/{name}"));
    for &density in densities {
        let id = format!("d{density}");
        let built = model(op.clone(), input, weight(shape, density)).and_then(|model| {
            let options = SessionOptions {
                threads: 1,
                ..SessionOptions::default()
            };
            Session::new(&model, options)
        });
        let mut session = match built {
            Ok(session) => session,
            Err(e) => panic!("{name}: {e}"),
        };
        let macs: u64 = session.steps().iter().map(|s| s.dense_macs).sum();
        group.throughput(Throughput::Elements(macs));
        let x = normal(input.iter().product(), 3);
        let mut y = Tensor::zeros(&session.outputs()[0].1);
        let inputs = [TensorView::f32(input, &x)];
        let mut outputs = [TensorViewMut::f32(&y.shape, &mut y.data)];
        group.bench_function(id, |b| {
            b.iter(|| {
                session
                    .run_into(&inputs, &mut outputs)
                    .expect("planned for these shapes")
            });
        });
    }
    group.finish();
}

fn convolutions(c: &mut Criterion, group: &str, list: &[Conv], densities: &[f64]) {
    for conv in list {
        let op = Op::Conv {
            strides: [conv.stride; 2],
            padding: Padding::Explicit([conv.kernel / 2; 4]),
            dilations: [1; 2],
            groups: conv.groups,
        };
        let (inputs, outputs) = conv.channels;
        let shape = [outputs, inputs / conv.groups, conv.kernel, conv.kernel];
        let input = [1, inputs, conv.size, conv.size];
        layer(c, group, conv.name, op, &input, &shape, densities);
    }
}

fn all(c: &mut Criterion) {
    convolutions(c, "conv1x1", &POINTWISE, &DENSITIES);
    convolutions(c, "conv3x3", &SPATIAL, &DENSITIES);
    convolutions(c, "unpruned", &UNPRUNED, &[1.0]);
    for (name, rows, inputs, outputs) in GEMMS {
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        layer(
            c,
            "linear",
            name,
            op,
            &[rows, inputs],
            &[outputs, inputs],
            &DENSITIES,
        );
    }
}

criterion_group! {
    name = layers;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = all
}
criterion_main!(layers);
