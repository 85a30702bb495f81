//! Linear layers of language models from the model's own bytes: dtypes, densities, columns, threads,
//! with the weights in the caches (`warm`) and read from memory (`cold`: many copies in turn), and inputs rounded
//! to bfloat16 (`rounded`).
//!
//! `cargo bench -p lacuna-bench --bench linear -- '576x576/bf16/d0.5/n1/.*cold'` runs a part of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lacuna::model::{Bitmask, Bytes, Dim, Encoding, Graph, Input, Node, Op, Storage, Weights};
use lacuna::plan::{Form, Forms, Variant};
use lacuna::{DType, Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut, Weight};
use lacuna_bench::normal;
use lacuna_bench::shapes::LINEAR;
use std::time::Duration;

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
/// Shares of weights that are not zero, by name; `2of4` keeps two of each four columns.
const DENSITIES: [(&str, f64); 4] = [("d1", 1.0), ("d0.5", 0.5), ("d0.3", 0.3), ("2of4", 0.5)];
/// Columns of activations: tokens.
const COLUMNS: [usize; 5] = [1, 4, 8, 16, 128];
/// Bytes of weights that no cache holds.
const COLD: usize = 128 << 20;

/// Normal values, each kept with probability `density`, or the larger two of each four; encoded where some are not.
fn weight(outer: usize, inner: usize, dtype: DType, (name, density): (&str, f64)) -> Weight {
    let mut state = 1u64;
    let mut values = normal(outer * inner, 1);
    if name == "2of4" {
        for group in values.chunks_exact_mut(4) {
            let mut order = [0, 1, 2, 3];
            order.sort_by(|&a, &b| group[a].abs().total_cmp(&f32::abs(group[b])));
            (group[order[0]], group[order[1]]) = (0.0, 0.0);
        }
        let weight = Weight::from_f32(&[outer, inner], &values);
        let weight = weight.to_dtype(dtype).expect("normal values fit");
        return weight.stored_best();
    }
    let values = values.into_iter().map(|v| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let kept = (state >> 40) as f64 / (1u64 << 24) as f64;
        if kept < density { v } else { 0.0 }
    });
    let values: Vec<f32> = values.collect();
    let weight = Weight::from_f32(&[outer, inner], &values);
    let weight = weight.to_dtype(dtype).expect("normal values fit");
    if density < 1.0 {
        weight.encode()
    } else {
        weight
    }
}

/// The same weight in bytes of its own.
fn copy(weight: &Weight) -> Weight {
    let bytes = |b: &Bytes| Bytes::from(b.to_vec());
    let (shape, dtype) = (weight.shape().to_vec(), weight.dtype());
    match weight.encoding() {
        Encoding::Dense(b) => Weight::dense(shape, dtype, bytes(b)),
        Encoding::Bitmask(b) => {
            let b = Bitmask {
                values: bytes(&b.values),
                mask: bytes(&b.mask),
                row_offsets: b.row_offsets.as_ref().map(bytes),
                ..*b
            };
            Weight::bitmask(shape, dtype, b)
        }
    }
    .expect("as the weight that it copies")
}

/// Layers that all read the input, each with a weight of its own.
fn model(weight: &Weight, columns: usize, layers: usize) -> lacuna::Result<Model> {
    let inner = weight.shape()[1];
    let graph = Graph {
        name: "layers".into(),
        inputs: vec![Input::f32(
            "x",
            vec![Dim::Fixed(columns), Dim::Fixed(inner)],
        )],
        outputs: vec![format!("y{}", layers - 1)],
        nodes: (0..layers)
            .map(|i| Node {
                name: format!("layer{i}"),
                op: Op::MatMul { trans_b: true },
                inputs: vec!["x".into(), format!("w{i}")],
                output: format!("y{i}"),
            })
            .collect(),
    };
    let weights: Weights = (0..layers)
        .map(|i| (format!("w{i}"), copy(weight)))
        .collect();
    Model::new(graph, weights)
}

/// The forms that execute a weight of 16 bits as it is stored; a small model's would be decoded.
fn forms(model: &Model) -> Forms {
    let asked = |w: &Weight| match w.storage() {
        Storage::Dense => [Form::DenseRows, Form::DenseChunk],
        Storage::Bitmask => [Form::BitmaskRows, Form::BitmaskChunk],
        Storage::TwoFour => [Form::TwoOfFourRows, Form::TwoOfFourChunk],
    };
    let halves = model
        .weights()
        .iter()
        .filter(|(_, w)| w.dtype() != DType::F32);
    halves
        .map(|(n, w)| (n.clone(), asked(w).map(Variant::plain).to_vec()))
        .collect()
}

fn layer(
    c: &mut Criterion,
    name: &str,
    model: &Model,
    threads: usize,
    x: &[f32],
    shape: [usize; 2],
) {
    let options = SessionOptions {
        threads,
        forms: forms(model),
        round_inputs: name.ends_with("rounded"),
        ..SessionOptions::default()
    };
    let mut session = match Session::new(model, options) {
        Ok(session) => session,
        Err(e) => panic!("{name}: {e}"),
    };
    let bytes: usize = session.steps().iter().map(|s| s.weight_bytes).sum();
    let mut y = Tensor::zeros(&session.outputs()[0].1);
    let inputs = [TensorView::f32(&shape, x)];
    let mut outputs = [TensorViewMut::f32(&y.shape, &mut y.data)];
    let mut group = c.benchmark_group("linear");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            session
                .run_into(&inputs, &mut outputs)
                .expect("planned for these shapes")
        });
    });
    group.finish();
}

fn all(c: &mut Criterion) {
    for (outer, inner) in LINEAR {
        for dtype in DTYPES {
            for density in DENSITIES {
                let weight = weight(outer, inner, dtype, density);
                for columns in COLUMNS {
                    let x = normal(columns * inner, 3);
                    for (place, layers) in [("warm", 1), ("cold", COLD.div_ceil(weight.byte_len()))]
                    {
                        // Many columns are bound by arithmetic.
                        if place == "cold" && columns > 16 {
                            continue;
                        }
                        let model = match model(&weight, columns, layers) {
                            Ok(model) => model,
                            Err(e) => panic!("{outer}x{inner}: {e}"),
                        };
                        let rounded = ["", "-rounded"];
                        let rounded = &rounded[..1 + usize::from(dtype == DType::BF16)];
                        for (threads, rounded) in [1, 2]
                            .into_iter()
                            .flat_map(|t| rounded.iter().map(move |r| (t, r)))
                        {
                            let dtype = dtype.name().to_lowercase();
                            let name = format!(
                                "{outer}x{inner}/{dtype}/{}/n{columns}/t{threads}/{place}{rounded}",
                                density.0
                            );
                            layer(c, &name, &model, threads, &x, [columns, inner]);
                        }
                    }
                }
            }
        }
    }
}

criterion_group! {
    name = linear;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    targets = all
}
criterion_main!(linear);
