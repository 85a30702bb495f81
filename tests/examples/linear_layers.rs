//! Linear layers of one shape, timed on demand: the side of `tests/compare/linear.py` that is ours.
//!
//! `linear_layers OUTER INNER COLUMNS SPARSITY THREADS LAYERS [--dense]`
//!
//! LAYERS layers read one input, each from weights of its own, of which SPARSITY percent are zeros. Each line
//! of stdin is a number of milliseconds; after about that long, stdout has the median and the least time of a
//! run, in seconds for each layer. The first line of stdout names the kernel.

use lacuna::model::{Dim, Encoding, Graph, Input, Node, Op, Weights};
use lacuna::{DType, Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut, Weight};
use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Uniform in [-1, 1), the same on every machine.
fn random(len: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    (0..len).map(move |_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// The same weight in bytes of its own.
fn copy(weight: &Weight) -> Result<Weight> {
    let mut copy = weight.clone();
    if let Encoding::Bitmask(b) = weight.encoding() {
        let mut b = b.clone();
        b.values = b.values.to_vec().into();
        b.mask = b.mask.to_vec().into();
        copy = Weight::bitmask(weight.shape().to_vec(), DType::F32, b)?;
    } else if let Encoding::Dense(b) = weight.encoding() {
        copy = Weight::dense(weight.shape().to_vec(), DType::F32, b.to_vec().into())?;
    }
    Ok(copy)
}

fn model(args: &[usize]) -> Result<Model> {
    let &[outer, inner, columns, sparsity, _, layers] = args else {
        return Err("six numbers expected".into());
    };
    let limit = sparsity as f32 / 100.0;
    let values: Vec<f32> = random(outer * inner, 1)
        .map(|v| if v.abs() < limit { 0.0 } else { v / 64.0 })
        .collect();
    let mut weight = Weight::from_f32(&[outer, inner], &values);
    if sparsity > 0 {
        weight = weight.encode();
    }
    let (mut nodes, mut weights) = (Vec::new(), Weights::new());
    for i in 0..layers {
        weights.insert(format!("w{i}"), copy(&weight)?);
        nodes.push(Node {
            name: format!("layer{i}"),
            op: Op::MatMul { trans_b: true },
            inputs: vec!["x".into(), format!("w{i}")],
            output: format!("y{i}"),
        });
    }
    let shape = vec![Dim::Fixed(columns), Dim::Fixed(inner)];
    let graph = Graph {
        name: "layers".into(),
        inputs: vec![Input::f32("x", shape)],
        outputs: nodes.iter().map(|n| n.output.clone()).collect(),
        nodes,
    };
    Ok(Model::new(graph, weights)?)
}

fn main() -> Result<()> {
    let dense = std::env::args().any(|a| a == "--dense");
    let numbers = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let args: Vec<usize> = numbers
        .map(|a| a.parse())
        .collect::<std::result::Result<_, _>>()?;
    let model = model(&args)?;
    let options = SessionOptions {
        threads: args[4],
        dense,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options)?;
    drop(model);
    let x: Vec<f32> = random(args[2] * args[1], 3).collect();
    let shape = [args[2], args[1]];
    let mut outputs: Vec<Tensor> = (0..args[5])
        .map(|_| Tensor::zeros(&[args[2], args[0]]))
        .collect();
    let mut outputs: Vec<TensorViewMut<'_>> = outputs
        .iter_mut()
        .map(|t| TensorViewMut::f32(&t.shape, &mut t.data))
        .collect();
    session.run_into(&[TensorView::f32(&shape, &x)], &mut outputs)?;
    println!("{}", session.steps()[0].kernel);
    for line in std::io::stdin().lock().lines() {
        let milliseconds: f64 = line?.trim().parse()?;
        session.run_into(&[TensorView::f32(&shape, &x)], &mut outputs)?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || start.elapsed().as_secs_f64() * 1e3 < milliseconds {
            let before = Instant::now();
            session.run_into(&[TensorView::f32(&shape, &x)], &mut outputs)?;
            times.push(before.elapsed().as_secs_f64() / args[5] as f64);
        }
        times.sort_by(f64::total_cmp);
        println!("{} {}", times[times.len() / 2], times[0]);
    }
    Ok(())
}
