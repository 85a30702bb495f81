//! Runs a language model on token ids and writes the logits after each as safetensors, for comparisons
//! with other implementations: see `tests/compare/`.
//!
//! `run_decoder MODEL IDS OUTPUT [--isa NAME] [--threads N] [--chunk N] [--dense] [--round-inputs BOOL] [--bitmask FILE]`
//!
//! IDS is a safetensors file with `input_ids` I64 `[1, T]`; OUTPUT gets `logits` F32 `[1, T, V]`. With
//! `--chunk 1` every token is a step of its own. `--bitmask` writes the model with its 2:4 weights as bitmasks, and runs that.

use lacuna::model::Storage;
use lacuna::model::file::Tensors;
use lacuna::{Decoder, DecoderOptions, Model};
use safetensors::{Dtype, tensor::TensorView};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    let mut options = DecoderOptions {
        threads: 1,
        all_logits: true,
        ..DecoderOptions::default()
    };
    let mut bitmask: Option<String> = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--isa" => options.isa = Some(value()?),
            "--threads" => options.threads = value()?.parse()?,
            "--chunk" => options.chunk = value()?.parse()?,
            "--dense" => options.dense = true,
            "--bitmask" => bitmask = Some(value()?),
            "--round-inputs" => options.round_inputs = Some(value()?.parse()?),
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}").into()),
            _ => files.push(arg),
        }
    }
    let [model, ids, output] = files.as_slice() else {
        return Err(format!("{} files; MODEL, IDS and OUTPUT expected", files.len()).into());
    };
    let mut model = Model::open(model)?;
    if let Some(path) = bitmask {
        for (name, weight) in model.weights().clone() {
            if weight.storage() == Storage::TwoFour {
                model.set_weight(&name, weight.decode().store_as(Storage::Bitmask)?)?;
            }
        }
        model.save(&path)?;
        model = Model::open(&path)?;
    }
    let ids = Tensors::open(Path::new(ids))?.weight("input_ids")?;
    let ids = ids.to_i64().ok_or("input_ids is no I64")?;
    let ids: Vec<u32> = ids
        .iter()
        .map(|&i| u32::try_from(i))
        .collect::<Result<_, _>>()?;
    options.capacity = ids.len();
    let mut decoder = Decoder::new(&model, options)?;
    let mut bytes = Vec::new();
    decoder.score(&ids, |_, logits| {
        bytes.extend(logits.iter().flat_map(|l| l.to_le_bytes()));
    })?;
    let shape = vec![1, ids.len(), decoder.vocabulary()];
    let logits = TensorView::new(Dtype::F32, shape, &bytes)?;
    safetensors::serialize_to_file([("logits", logits)], None, Path::new(output))?;
    Ok(())
}
