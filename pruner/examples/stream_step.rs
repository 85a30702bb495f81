//! Time of one step of recurrent models in a stream, one thread, batch 1: a line of JSON for each file.
//!
//!     cargo run --release -p lacuna-prune --example stream_step -- MODEL.safetensors ...

use lacuna::{Model, SessionOptions, Stream, Tensor, TensorView, TensorViewMut};
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

/// Steps of a sample, and samples.
const SIZES: [usize; 2] = [2_000, 51];

fn main() -> Result<(), Box<dyn Error>> {
    let mut streams = Vec::new();
    for path in std::env::args().skip(1) {
        let options = SessionOptions {
            threads: 1,
            ..SessionOptions::default()
        };
        let stream = Stream::new(&Model::open(&path)?, options)?;
        streams.push((path, stream, Vec::new()));
    }
    // In turn, so that all of them meet the same machine.
    for _ in 0..SIZES[1] {
        for (_, stream, times) in &mut streams {
            let shape = stream.inputs()[0].1.clone();
            let x: Vec<f32> = (0..shape.iter().product())
                .map(|i: usize| (i as f32).sin())
                .collect();
            let mut y = Tensor::zeros(&stream.outputs()[0].1);
            stream.reset();
            let started = Instant::now();
            for _ in 0..SIZES[0] {
                let mut outputs = [TensorViewMut::f32(&y.shape, &mut y.data)];
                stream.step_into(&[TensorView::f32(&shape, black_box(&x))], &mut outputs)?;
            }
            times.push(started.elapsed().as_secs_f64() / SIZES[0] as f64);
            black_box(&y);
        }
    }
    for (path, stream, times) in &mut streams {
        times.sort_by(f64::total_cmp);
        let at = |share: usize| (times[times.len() * share / 100] * 1e9).round();
        println!(
            "{{\"model\": {path:?}, \"isa\": {:?}, \"median_ns\": {}, \"p10_ns\": {}, \"p90_ns\": {}}}",
            stream.session().isa(),
            at(50),
            at(10),
            at(90)
        );
    }
    Ok(())
}
