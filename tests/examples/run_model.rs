//! Runs a Lacuna file on the tensors of a safetensors file and writes its outputs as safetensors, for
//! comparisons with other runtimes: see `tests/compare/`.
//!
//! `run_model MODEL INPUTS OUTPUTS [--isa NAME] [--threads N] [--batch N] [--dense]`
//!
//! The inputs are tensors named as the graph's inputs, F32 or I64 as the graph says. With `--batch N` they are cut into runs of N along
//! the first axis, and the outputs are put together again. stderr says which kernel ran each step.

use lacuna::model::file::Tensors;
use lacuna::model::{Dim, Symbols};
use lacuna::{DType, Model, Session, SessionOptions, TensorView};
use safetensors::{Dtype, tensor::TensorView as Out};
use std::error::Error;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Args {
    files: Vec<String>,
    isa: Option<String>,
    threads: usize,
    batch: Option<usize>,
    dense: bool,
}

fn args() -> Result<Args> {
    let mut parsed = Args {
        files: Vec::new(),
        isa: None,
        threads: 1,
        batch: None,
        dense: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--isa" => parsed.isa = Some(value()?),
            "--threads" => parsed.threads = value()?.parse()?,
            "--batch" => parsed.batch = Some(value()?.parse()?),
            "--dense" => parsed.dense = true,
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}").into()),
            _ => parsed.files.push(arg),
        }
    }
    match parsed.files.len() {
        3 => Ok(parsed),
        n => Err(format!("{n} files; MODEL, INPUTS and OUTPUTS expected").into()),
    }
}

enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

fn main() -> Result<()> {
    let args = args()?;
    let model = Model::open(&args.files[0])?;
    let tensors = Tensors::open(&args.files[1])?;
    let mut inputs = Vec::new();
    for input in &model.graph().inputs {
        let weight = tensors.weight(&input.name)?;
        let data = match (input.dtype, weight.to_i64()) {
            (DType::I64, Some(data)) => Data::I64(data),
            (DType::I64, None) => return Err(format!("{} is no I64", input.name).into()),
            _ => Data::F32(weight.to_f32().ok_or("inputs are floats")?),
        };
        inputs.push((weight.shape().to_vec(), data));
    }
    let whole = inputs
        .first()
        .and_then(|i| i.0.first())
        .copied()
        .unwrap_or(1);
    let batch = args.batch.unwrap_or(whole).max(1);
    if !whole.is_multiple_of(batch) {
        return Err(format!("{whole} samples in runs of {batch}").into());
    }
    for (shape, _) in &mut inputs {
        match shape.first_mut() {
            Some(first) if *first == whole => *first = batch,
            _ => return Err(format!("inputs of {whole} samples and of shape {shape:?}").into()),
        }
    }
    let mut symbols = Symbols::new();
    for (input, (shape, _)) in model.graph().inputs.iter().zip(&inputs) {
        for (dim, &size) in input.shape.iter().zip(shape) {
            if let Dim::Symbol(name) = dim {
                symbols.insert(name.clone(), size);
            }
        }
    }
    let options = SessionOptions {
        threads: args.threads,
        isa: args.isa,
        dense: args.dense,
        symbols,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options)?;
    for step in session.steps() {
        eprintln!(
            "{} ({}): {}, {}",
            step.node, step.op, step.kernel, step.reason
        );
    }
    let mut outputs: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for run in 0..whole / batch {
        let views: Vec<TensorView<'_>> = inputs
            .iter()
            .map(|(shape, data)| {
                let n: usize = shape.iter().product();
                match data {
                    Data::F32(data) => TensorView::f32(shape, &data[run * n..][..n]),
                    Data::I64(data) => TensorView::i64(shape, &data[run * n..][..n]),
                }
            })
            .collect();
        let results = session.run(&views)?;
        for (i, result) in results.into_iter().enumerate() {
            if run == 0 {
                let mut shape = result.shape.clone();
                if let Some(first) = shape.first_mut() {
                    *first *= whole / batch;
                }
                outputs.push((session.outputs()[i].0.clone(), shape, Vec::new()));
            }
            let bytes = result.data.iter().flat_map(|x| x.to_le_bytes());
            outputs[i].2.extend(bytes);
        }
    }
    let views = outputs
        .iter()
        .map(|(name, shape, bytes)| Ok((name, Out::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, Path::new(&args.files[2]))?;
    Ok(())
}
